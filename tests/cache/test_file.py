"""The file store: its seal, its quota, its instances."""

from __future__ import annotations

import os
import shutil
import stat
import subprocess
from collections.abc import Callable
from pathlib import Path

import pytest

from agent.cache.file import FileStore
from agent.cache.store import Volume
from distrib.errors import NoSpace, StorageFailed, ToolMissing
from distrib.swarm import IMAGE_FILE

MIB = 1 << 20
A, B, C = (letter * 64 for letter in "abc")


@pytest.fixture
def store(tmp_path: Path) -> FileStore:
    return FileStore(tmp_path / "cache", 10 * MIB)


def sealed(store: FileStore, infohash: str = A, size_bytes: int = MIB) -> Volume:
    volume = store.reserve(infohash, size_bytes)
    with store.writing(volume) as target:
        os.pwrite(target.fd, os.urandom(size_bytes), 0)
    return store.seal(volume)


def test_a_volume_is_allocated_in_full(store: FileStore) -> None:
    volume = store.reserve(A, 3 * MIB)
    assert volume.path.stat().st_blocks * 512 >= 3 * MIB


def test_a_sealed_file_is_read_only_to_everybody(store: FileStore) -> None:
    assert stat.S_IMODE(sealed(store).path.stat().st_mode) == 0o444


def test_root_writing_into_a_sealed_file_breaks_the_seal(store: FileStore) -> None:
    volume = sealed(store)
    with volume.path.open("r+b") as image:
        image.write(b"\0")
    assert not store.volumes()[0].sealed


def test_another_file_in_its_place_breaks_the_seal(store: FileStore) -> None:
    volume = sealed(store)
    copy = volume.path.with_name("copy")
    shutil.copy2(volume.path, copy)
    copy.replace(volume.path)
    assert not store.volumes()[0].sealed


@pytest.mark.parametrize("mark", [b"", b"{", b"[]", b'{"v": 1}'])
def test_a_damaged_mark_is_no_mark(store: FileStore, mark: bytes) -> None:
    volume = sealed(store)
    (volume.path.parent / "sealed").write_bytes(mark)
    assert not store.volumes()[0].sealed


def test_a_file_that_is_too_short_is_not_sealed(store: FileStore) -> None:
    volume = store.reserve(A, MIB)
    os.truncate(volume.path, MIB - 512)
    with pytest.raises(StorageFailed, match="bytes, the image"):
        store.seal(volume)
    assert not store.volumes()[0].sealed


def test_a_link_is_not_taken_for_a_volume(store: FileStore, tmp_path: Path) -> None:
    other = tmp_path / "other"
    other.write_bytes(b"precious")
    volume = store.reserve(A, MIB)
    volume.path.unlink()
    volume.path.symlink_to(other)
    assert store.volumes() == ()
    store.remove(volume)
    assert other.read_bytes() == b"precious"


def test_the_quota_speaks_in_numbers(store: FileStore) -> None:
    store.reserve(A, 6 * MIB)
    with pytest.raises(NoSpace) as refused:
        store.reserve(B, 6 * MIB)
    assert refused.value.ids["need_bytes"] == 6 * MIB
    assert refused.value.ids["free_bytes"] == 4 * MIB
    assert "capacity" in refused.value.hint


def test_a_quota_that_was_lowered_evicts_nothing_by_itself(tmp_path: Path) -> None:
    FileStore(tmp_path, 10 * MIB).reserve(A, 6 * MIB)
    smaller = FileStore(tmp_path, 4 * MIB)
    assert len(smaller.volumes()) == 1
    assert smaller.space().free_bytes == 0
    with pytest.raises(NoSpace):
        smaller.check_room(1)


def test_an_overlay_that_outgrew_its_room_counts_as_large_as_it_is(store: FileStore) -> None:
    volume = sealed(store, size_bytes=2 * MIB)
    made = store.make_instance(volume, "l-000001", cow_bytes=65536, scratch_bytes=0)
    write = ["qemu-io", "-f", "qcow2", "-c", f"write -q -P 7 0 {MIB}", str(made.path)]
    subprocess.run(write, check=True)
    assert store.space().used_bytes >= 3 * MIB


def test_the_overlay_is_readable_by_its_owner_alone(store: FileStore) -> None:
    made = store.make_instance(sealed(store), "l-000001", cow_bytes=65536, scratch_bytes=65536)
    assert made.scratch is not None
    assert stat.S_IMODE(made.path.stat().st_mode) == 0o600
    assert stat.S_IMODE(made.scratch.stat().st_mode) == 0o600


def test_without_qemu_img_the_operator_is_told_what_to_install(
    store: FileStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    volume = sealed(store)
    monkeypatch.setenv("PATH", "/nonexistent")
    with pytest.raises(ToolMissing, match="qemu-img") as missing:
        store.make_instance(volume, "l-000001", cow_bytes=65536, scratch_bytes=0)
    assert "qemu-utils" in missing.value.hint
    assert store.instances() == ()


def test_a_qemu_img_that_hangs_is_given_up(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    hanging = tmp_path / "bin" / "qemu-img"
    hanging.parent.mkdir()
    hanging.write_text("#!/bin/sh\nexec sleep 1000\n")
    hanging.chmod(0o755)
    store = FileStore(tmp_path / "cache", 10 * MIB, reflink=False, tool_timeout_s=0.05)
    volume = sealed(store)
    monkeypatch.setenv("PATH", f"{hanging.parent}:{os.environ['PATH']}")
    with pytest.raises(StorageFailed, match="took more than"):
        store.make_instance(volume, "l-000001", cow_bytes=65536, scratch_bytes=0)
    assert store.instances() == ()


@pytest.mark.root
@pytest.mark.parametrize("kind", ["xfs", "btrfs"])
def test_where_the_file_system_can_an_instance_is_a_reflink_copy(
    kind: str, file_system: Callable[..., Path]
) -> None:
    if shutil.which(f"mkfs.{kind}") is None:
        pytest.skip(f"mkfs.{kind} is not installed")
    root = file_system(kind, 512 * MIB)
    store = FileStore(root / "cache", 200 * MIB)
    volume = sealed(store, size_bytes=64 * MIB)
    free = os.statvfs(root).f_bavail * os.statvfs(root).f_frsize
    made = store.make_instance(volume, "l-000001", cow_bytes=MIB, scratch_bytes=0)
    os.sync()
    assert made.format == "raw"
    assert free - os.statvfs(root).f_bavail * os.statvfs(root).f_frsize < 16 * MIB
    with made.path.open("r+b") as own:
        own.write(b"mine")
    assert store.volumes()[0].sealed
    with volume.path.open("rb") as image:
        assert image.read(4) != b"mine"
    assert store.space().used_bytes == 65 * MIB


def test_leftovers_of_a_torrent_client_go_with_the_volume(store: FileStore) -> None:
    volume = store.reserve(A, MIB)
    (volume.path.parent / f".{A}.parts").write_bytes(b"x")
    store.remove(volume)
    assert not volume.path.parent.exists()
    assert store.reserve(A, MIB).path.name == IMAGE_FILE
