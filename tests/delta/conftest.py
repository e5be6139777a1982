"""Two versions of an image, and a seeder that has the newer one."""

from __future__ import annotations

import os
import random
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from tests.cache.conftest import devices, file_system
from tests.delta.node import MIB, PIECE, Node, edited, publish
from tests.pull.conftest import Published

__all__ = ["devices", "file_system"]

SIZE = 12 * MIB
CHANGED = tuple(piece * PIECE + 8192 for piece in random.Random(7).sample(range(SIZE // PIECE), 9))


@pytest.fixture(scope="session")
def old(tmp_path_factory: pytest.TempPathFactory) -> Published:
    return publish(tmp_path_factory.mktemp("versions") / "old", os.urandom(SIZE))


@pytest.fixture(scope="session")
def new(tmp_path_factory: pytest.TempPathFactory, old: Published) -> Published:
    """Nine pieces differ."""
    return publish(tmp_path_factory.mktemp("versions") / "new", edited(old.data, CHANGED))


@pytest.fixture
def node(tmp_path: Path) -> Node:
    return Node(tmp_path / "node")


@pytest.fixture
def publishing(tmp_path: Path) -> Iterator[Callable[..., Published]]:
    """Publishes bytes as a version of their own."""
    count = iter(range(100))
    yield lambda data, **how: publish(tmp_path / f"published-{next(count)}", data, **how)
