"""Instances as block devices: loop devices over files of the cache, and what becomes of them."""

from __future__ import annotations

import os
import stat
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from agent.cache import loops
from agent.cache.file import FileStore
from agent.cache.instances import give_to
from agent.cache.store import Instance, Volume
from distrib.errors import NoSpace
from tests.cache.node import Node

pytestmark = pytest.mark.root
MIB = 1 << 20
HASH = "a" * 64
BYTES = b"boot sector" + bytes(1000) + b"the end"


@pytest.fixture
def cache_dir(tmp_path: Path) -> Iterator[Path]:
    """A directory whose loop devices are all detached at the end."""
    yield tmp_path / "cache"
    for loop in loops.attached(tmp_path):
        loops.detach(loop.device)


def image(store: FileStore, size_bytes: int = MIB + 700) -> Volume:
    """A sealed volume whose size is not one of whole sectors."""
    volume = store.reserve(HASH, size_bytes)
    with store.writing(volume) as target:
        os.pwrite(target.fd, BYTES, 0)
        os.pwrite(target.fd, BYTES, size_bytes - len(BYTES))
    return store.seal(volume)


def block_instance(store: FileStore, volume: Volume, lease: str = "l-1") -> Instance:
    return store.make_block_instance(volume, lease, cow_bytes=65536, scratch_bytes=0)


def devices(under: Path) -> list[Path]:
    return [loop.device for loop in loops.attached(under)]


def read(path: Path) -> bytes:
    return path.read_bytes()


def test_the_job_writes_to_a_device_and_never_to_the_image(cache_dir: Path) -> None:
    store = FileStore(cache_dir, 10 * MIB)
    volume = image(store)
    before = read(volume.path)
    made = block_instance(store, volume)
    assert (made.block, made.format) == (True, "raw")
    assert stat.S_ISBLK(made.path.stat().st_mode)
    (loop,) = loops.attached(cache_dir)
    assert loop.direct
    device = read(made.path)
    assert device[: len(before)] == before
    assert device[len(before) :].strip(b"\0") == b""  # to the next whole sector
    fd = os.open(made.path, os.O_RDWR)
    os.pwrite(fd, b"written by a job", 0)
    os.fsync(fd)
    os.close(fd)
    assert read(volume.path) == before
    store.drop_instance("l-1")
    assert devices(cache_dir) == []
    assert list((cache_dir / "instances").iterdir()) == []


def test_a_copy_is_allocated_and_counts_in_full(cache_dir: Path) -> None:
    """The file system here makes no reflink copies."""
    store = FileStore(cache_dir, 3 * MIB, reflink=False)
    volume = image(store)
    used = store.space().used_bytes
    made = block_instance(store, volume)
    file = made.path.parent / "root.raw"
    assert file.stat().st_blocks * 512 >= volume.size_bytes
    assert store.space().used_bytes - used >= volume.size_bytes
    with pytest.raises(NoSpace):
        block_instance(store, volume, "l-2")
    assert len(store.instances()) == len(devices(cache_dir)) == 1
    store.drop_instance("l-1")
    assert store.space().used_bytes == used


@pytest.mark.parametrize(
    ("kind", "size_bytes"), [("xfs", 300 * MIB), ("btrfs", 120 * MIB)], ids=["xfs", "btrfs"]
)
def test_where_reflink_copies_can_be_made_only_what_is_written_is_its_own(
    file_system: Callable[..., Path], kind: str, size_bytes: int
) -> None:
    root = file_system(kind, size_bytes) / "cache"
    store = FileStore(root, 100 * MIB)
    volume = image(store, 16 * MIB + 700)
    used = store.space().used_bytes
    made = block_instance(store, volume)
    try:
        assert store.space().used_bytes - used == 65536
        assert store.overruns() == ()
        fd = os.open(made.path, os.O_RDWR)
        for at in range(0, 4 * MIB, MIB):
            os.pwrite(fd, os.urandom(256 * 1024), at)
        os.fsync(fd)
        os.close(fd)
        (overrun,) = store.overruns()
        assert (overrun.lease, overrun.cow_bytes) == ("l-1", 65536)
        assert MIB <= overrun.used_bytes <= 4 * MIB
    finally:
        store.drop_instance("l-1")
    assert devices(root) == []


def test_an_ordinary_users_device_is_his_alone_and_goes_back(cache_dir: Path) -> None:
    store = FileStore(cache_dir, 10 * MIB)
    made = block_instance(store, image(store))
    device = made.path.resolve()
    give_to(made, 65534)
    found = device.stat()
    assert (found.st_uid, stat.S_IMODE(found.st_mode)) == (65534, 0o600)
    store.drop_instance("l-1")
    assert device.stat().st_uid == 0


def test_after_a_crash_the_same_device_is_found_again(cache_dir: Path) -> None:
    store = FileStore(cache_dir, 10 * MIB)
    made = block_instance(store, image(store))
    device = made.path.resolve()
    again = FileStore(cache_dir, 10 * MIB)
    assert again.instances() == (made,)
    assert made.path.resolve() == device
    assert again.leftovers() == ()


def test_after_a_boot_the_instance_has_a_device_under_its_old_name(cache_dir: Path) -> None:
    store = FileStore(cache_dir, 10 * MIB)
    made = block_instance(store, image(store))
    fd = os.open(made.path, os.O_RDWR)
    os.pwrite(fd, b"kept", 0)
    os.fsync(fd)
    os.close(fd)
    loops.detach(made.path.resolve())
    assert FileStore(cache_dir, 10 * MIB).instances() == (made,)
    assert read(made.path)[:4] == b"kept"


def test_a_device_that_nothing_owns_is_named_and_swept(cache_dir: Path) -> None:
    store = FileStore(cache_dir, 10 * MIB)
    image(store)
    stray = cache_dir / "instances" / "stray.raw"
    stray.write_bytes(bytes(MIB))
    leaked = loops.attach(stray)
    stray.unlink()  # and its file has no name any more
    assert store.leftovers() == (str(leaked),)
    assert store.sweep() == (str(leaked),)
    assert store.leftovers() == ()


def test_a_lease_as_a_block_device_outlives_the_agent_and_ends_with_its_release(
    tmp_path: Path, cache_dir: Path, clock: object, image: Callable[..., object]
) -> None:
    node = Node(tmp_path, clock)
    version = image(1)
    node.pull(version)  # type: ignore[arg-type]
    lease = node.lease(version, block=True)  # type: ignore[arg-type]
    assert lease.block
    node.restart()
    assert node.cache.leases() == (lease,)
    assert Path(lease.device).is_block_device()
    node.cache.release(lease.lease)
    assert devices(tmp_path) == []


def test_no_file_of_the_cache_is_sparse(cache_dir: Path) -> None:
    store = FileStore(cache_dir, 100 * MIB)
    volume = store.reserve(HASH, 8 * MIB)
    assert volume.path.stat().st_blocks * 512 >= 8 * MIB
    with store.writing(volume) as target:
        os.pwrite(target.fd, b"x", 0)
    made = store.make_instance(store.seal(volume), "l-1", cow_bytes=65536, scratch_bytes=4 * MIB)
    assert made.scratch is not None
    assert made.scratch.stat().st_blocks * 512 >= 4 * MIB
