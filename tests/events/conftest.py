"""A database for each story, and handlers."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from tests.events.stories import Outbox, Script


@pytest.fixture
def outbox(tmp_path: Path) -> Iterator[Outbox]:
    """A head's database."""
    state_dir = tmp_path / "head"
    state_dir.mkdir()
    made = Outbox(state_dir)
    yield made
    made.database.close()


@pytest.fixture
def script(tmp_path: Path) -> Callable[..., Script]:
    """Makes handlers: ``script("exit 1")``."""

    def make(body: str = "", name: str = "handler") -> Script:
        return Script(tmp_path / name, body)

    return make
