"""A file system that is smaller than the quota, or that others fill."""

from __future__ import annotations

import contextlib
import os
import subprocess
from collections.abc import Callable
from datetime import datetime
from pathlib import Path

import pytest

from agent.cache import durable
from agent.cache.cache import Cache
from agent.cache.file import FileStore
from agent.cache.records import ImageVersion
from agent.cache.roots import allocate
from distrib.bus.messages import NodeReason, State
from distrib.errors import NoSpace, StorageFailed

pytestmark = pytest.mark.root
MIB = 1 << 20
A, B = "a" * 64, "b" * 64


@pytest.fixture
def small(file_system: Callable[..., Path]) -> Path:
    """An ext4 of 32 MiB, nothing kept for root, and so about 27 MiB for files."""
    return file_system("ext4", 32 * MIB, "-q", "-m", "0")


def free_bytes(path: Path) -> int:
    found = os.statvfs(path)
    return found.f_bavail * found.f_frsize


def fill(file: Path) -> None:
    with file.open("wb", buffering=0) as others:
        for chunk_bytes in (MIB, 4096):
            with contextlib.suppress(OSError):
                while others.write(bytes(chunk_bytes)) == chunk_bytes:
                    pass


def test_a_quota_beyond_the_disk_is_refused_with_the_disks_numbers(small: Path) -> None:
    store = FileStore(small / "cache", 1000 * MIB)
    with pytest.raises(NoSpace, match="file system") as refused:
        store.reserve(A, 100 * MIB)
    assert refused.value.ids["free_bytes"] == free_bytes(small)
    assert "file system" in refused.value.hint
    assert list((small / "cache" / "volumes").iterdir()) == []


def test_a_disk_that_fills_up_in_the_middle_leaves_nothing_behind(small: Path) -> None:
    before = free_bytes(small)
    with pytest.raises(NoSpace):
        allocate(small / "image.raw", before + MIB, mode=0o600)
    assert not (small / "image.raw").exists()
    assert free_bytes(small) == before


def test_what_was_reserved_can_be_written_though_others_fill_the_disk(small: Path) -> None:
    store = FileStore(small / "cache", 1000 * MIB)
    volume = store.reserve(A, 8 * MIB)
    fill(small / "others")
    with store.writing(volume) as target:
        assert os.pwrite(target.fd, os.urandom(8 * MIB), 0) == 8 * MIB
    assert store.volumes()[0].size_bytes == 8 * MIB


def test_a_state_file_is_kept_when_its_replacement_finds_no_room(tmp_path: Path) -> None:
    tiny = tmp_path / "tiny"
    tiny.mkdir()
    subprocess.run(["mount", "-t", "tmpfs", "-o", "size=64k", "tmpfs", str(tiny)], check=True)
    try:
        state = tiny / "state.json"
        durable.replace(state, b"old")
        fill(tiny / "others")
        with pytest.raises(StorageFailed, match="No space") as full:
            durable.replace(state, b"new")
        assert full.value.ids["path"] == str(state)
        assert state.read_bytes() == b"old"
        assert {p.name for p in tiny.iterdir()} == {"state.json", "others"}
    finally:
        subprocess.run(["umount", str(tiny)], check=True)


def test_the_cache_evicts_for_a_disk_that_others_filled(
    small: Path, tmp_path: Path, clock: Callable[[], datetime], image: Callable[..., ImageVersion]
) -> None:
    store = FileStore(small / "cache", 1000 * MIB)
    cache = Cache(state_dir=tmp_path / "state", stores=[store], clock=clock)
    cache.recover()
    old = cache.desire(image(1, 12 * MIB))
    cache.fail(old.infohash, NodeReason.STALLED)
    cache.set_desired([])
    left = free_bytes(small)
    new = cache.desire(image(2, left + 4 * MIB))
    assert new.state is State.RESERVED
    assert cache.record(old.infohash) is None


def test_the_cache_evicts_nothing_in_vain(
    small: Path, tmp_path: Path, clock: Callable[[], datetime], image: Callable[..., ImageVersion]
) -> None:
    store = FileStore(small / "cache", 1000 * MIB)
    cache = Cache(state_dir=tmp_path / "state", stores=[store], clock=clock)
    cache.recover()
    old = cache.desire(image(1, 12 * MIB))
    cache.fail(old.infohash, NodeReason.STALLED)
    cache.set_desired([])
    new = cache.desire(image(2, 100 * MIB))
    assert (new.state, new.reason) == (State.FAILED, NodeReason.NO_SPACE)
    assert cache.record(old.infohash) is not None
    assert len(store.volumes()) == 1
