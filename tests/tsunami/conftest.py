"""Hosts with an sshd each, and a key that they admit."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from tests.tsunami.sshd import Sshd, make_key, public, running


@pytest.fixture
def key(tmp_path: Path) -> Path:
    return make_key(tmp_path / "key")


@pytest.fixture
def sshds(tmp_path: Path, key: Path) -> Iterator[Callable[[int], list[Sshd]]]:
    """Starts so many, each of which admits ``key`` without limits."""
    with contextlib.ExitStack() as stack:

        def start(count: int) -> list[Sshd]:
            found = [
                stack.enter_context(
                    running(tmp_path / f"host{number}", address=f"127.0.7.{number}")
                )
                for number in range(1, count + 1)
            ]
            for sshd in found:
                sshd.admit(public(key))
            return found

        yield start
