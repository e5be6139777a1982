"""A volume group of one's own, and the store in it; all of this runs in user-mode Linux."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from agent.cache.lvm import LvmStore
from agent.cache.store import Volume
from tests.uml.disks import DISKS, VG, volume_group

MIB = 1 << 20
SIZE = 3 * MIB
A, B = "a" * 64, "b" * 64

Open = Callable[..., LvmStore]


@pytest.fixture
def group() -> Iterator[str]:
    """A group of 95 MiB."""
    with volume_group() as name:
        yield name


@pytest.fixture
def open_store(group: str, tmp_path: Path) -> Open:
    """Starts the store, as an agent does."""

    def open_(**settings: Any) -> LvmStore:
        return LvmStore(VG, tmp_path / "lvm", **settings)

    return open_


@pytest.fixture
def store(open_store: Open) -> LvmStore:
    return open_store()


@pytest.fixture
def two_disks() -> Iterator[str]:
    with volume_group(*DISKS[:2]) as name:
        yield name


def sealed(store: LvmStore, infohash: str = A, size_bytes: int = SIZE) -> Volume:
    """A volume of random bytes, as a pull leaves it."""
    volume = store.reserve(infohash, size_bytes)
    with store.writing(volume) as target:
        os.pwrite(target.fd, os.urandom(size_bytes), 0)
    return store.seal(volume)


def write(path: Path, data: bytes, offset: int = 0) -> None:
    """As a guest does, past the host's page cache."""
    fd = os.open(path, os.O_RDWR | os.O_SYNC)
    try:
        os.pwrite(fd, data, offset)
    finally:
        os.close(fd)


def content(path: Path) -> bytes:
    return path.read_bytes()
