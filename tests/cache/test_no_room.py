"""ENOSPC from below the quota, wherever it comes: one reason, a clean cache, and on it goes once
there is room again."""

from __future__ import annotations

import contextlib
import os
import shutil
import subprocess
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from datetime import UTC, datetime
from pathlib import Path

import pytest

from agent.cache import loops
from agent.cache.cache import Cache
from agent.cache.file import FileStore
from agent.cache.holders import TimeHolder
from agent.cache.records import ImageVersion
from distrib.bus.messages import NodeReason, State
from distrib.errors import DistribError, NoSpace, StorageFailed

pytestmark = pytest.mark.root
MIB = 1 << 20
LATER = TimeHolder(datetime(2036, 1, 1, tzinfo=UTC))


class Full:
    """A cache with a quota beyond its disk, an ext4 of about 27 MiB."""

    def __init__(self, disk: Path, state_dir: Path, clock: Callable[[], datetime]) -> None:
        self.disk, self.state_dir, self.clock = disk, state_dir, clock
        self.start()

    def start(self) -> None:
        self.store = FileStore(self.disk / "cache", 1 << 30)
        self.cache = Cache(state_dir=self.state_dir, stores=[self.store], clock=self.clock)
        assert self.cache.recover().corrupt == ()

    def pull(self, image: ImageVersion) -> State:
        record = self.cache.desire(image, retry=True)
        if record.state not in (State.RESERVED, State.PULLING):
            return record.state
        self.cache.start_pull(image.infohash)
        with self.store.writing(self.cache.volume(image.infohash)) as target:
            os.pwrite(target.fd, os.urandom(image.size_bytes), 0)
        self.cache.to_verifying(image.infohash)
        return self.cache.ready(image.infohash).state

    def lease(self, image: ImageVersion, *, scratch_bytes: int = 0, block: bool = False) -> str:
        lease = self.cache.lease(
            image.infohash,
            holder=LATER,
            user="alice",
            cow_bytes=65536,
            scratch_bytes=scratch_bytes,
            block=block,
        )
        return lease.lease

    def files(self) -> list[str]:
        roots = (self.disk / "cache", self.state_dir)
        return sorted(str(file) for root in roots for file in root.rglob("*") if file.is_file())

    @contextmanager
    def others_fill(self, left_bytes: int = 0, *, where: Path | None = None) -> Iterator[None]:
        """Another's file takes all but ``left_bytes`` of a disk."""
        file = (where or self.disk) / "others"
        found = os.statvfs(file.parent)
        with file.open("wb", buffering=0) as others:
            with contextlib.suppress(OSError):
                left = found.f_bavail * found.f_frsize - left_bytes
                os.posix_fallocate(others.fileno(), 0, max(1, left))
            for chunk_bytes in (MIB, 4096) if not left_bytes else ():
                with contextlib.suppress(OSError):
                    while others.write(bytes(chunk_bytes)) == chunk_bytes:
                        pass
        try:
            yield
        finally:
            file.unlink()


@pytest.fixture
def full(
    file_system: Callable[..., Path], tmp_path: Path, clock: Callable[[], datetime]
) -> Iterator[Full]:
    disk = file_system("ext4", 32 * MIB, "-q", "-m", "0")
    yield Full(disk, tmp_path / "state", clock)
    for loop in loops.attached(disk):
        loops.detach(loop.device)


def test_a_pull_on_a_full_disk_fails_once_and_is_done_when_there_is_room(
    full: Full, image: Callable[..., ImageVersion]
) -> None:
    wanted = image(1, 8 * MIB)
    with full.others_fill(4 * MIB):
        record = full.cache.desire(wanted)
        assert (record.state, record.reason) == (State.FAILED, NodeReason.NO_SPACE)
        assert "file system" in record.text
        assert full.store.volumes() == ()
        assert not list((full.disk / "cache" / "volumes").iterdir())
    assert full.pull(wanted) is State.READY


def test_a_pull_goes_on_though_others_fill_the_disk_and_is_sealed_when_it_can_be(
    full: Full, image: Callable[..., ImageVersion]
) -> None:
    wanted = image(1, 8 * MIB)
    full.cache.desire(wanted)
    full.cache.start_pull(wanted.infohash)
    with full.others_fill():
        with full.store.writing(full.cache.volume(wanted.infohash)) as target:
            assert os.pwrite(target.fd, os.urandom(8 * MIB), 0) == 8 * MIB
        full.cache.to_verifying(wanted.infohash)
        # Its mark needs a block of its own, which is not there.
        record = full.cache.ready(wanted.infohash)
        assert (record.state, record.reason) == (State.FAILED, NodeReason.NO_SPACE)
        assert not full.store.volumes()[0].sealed
    assert full.pull(wanted) is State.READY


@pytest.mark.parametrize("block", [False, True], ids=["file", "block"])
def test_a_lease_on_a_full_disk_is_refused_and_leaves_nothing(
    full: Full, image: Callable[..., ImageVersion], block: bool
) -> None:
    wanted = image(1, 4 * MIB)
    assert full.pull(wanted) is State.READY
    before = full.files()
    for left_bytes in (0, 128 * 1024):
        with full.others_fill(left_bytes):
            with pytest.raises(NoSpace):
                full.lease(wanted, scratch_bytes=MIB, block=block)
            assert [f for f in full.files() if "others" not in f] == before
            assert full.cache.leases() == ()
            assert loops.attached(full.disk) == ()
    full.cache.release(full.lease(wanted, scratch_bytes=MIB, block=block))


def test_a_scratch_disk_that_does_not_fit_is_refused_before_anything_is_made(
    full: Full, image: Callable[..., ImageVersion]
) -> None:
    wanted = image(1, 4 * MIB)
    full.pull(wanted)
    with pytest.raises(NoSpace, match="file system"):
        full.lease(wanted, scratch_bytes=64 * MIB)
    assert full.cache.leases() == ()
    assert full.cache.record(wanted.infohash) is not None


def test_an_image_that_nobody_needs_makes_room_for_a_lease_though_the_quota_would_do(
    full: Full, image: Callable[..., ImageVersion]
) -> None:
    wanted, old = image(1, 4 * MIB), image(2, 12 * MIB)
    full.pull(wanted)
    full.pull(old)
    full.cache.set_desired([wanted.infohash])
    full.lease(wanted, scratch_bytes=16 * MIB)
    assert full.cache.record(old.infohash) is None


@pytest.fixture
def small_state(tmp_path: Path) -> Iterator[Path]:
    """A state directory on a file system of its own, of 128 KiB."""
    directory = tmp_path / "small"
    directory.mkdir()
    subprocess.run(["mount", "-t", "tmpfs", "-o", "size=128k", "tmpfs", directory], check=True)
    yield directory
    subprocess.run(["umount", directory], check=True)


def test_a_full_state_directory_refuses_and_loses_nothing(
    file_system: Callable[..., Path],
    small_state: Path,
    clock: Callable[[], datetime],
    image: Callable[..., ImageVersion],
) -> None:
    full = Full(file_system("ext4", 32 * MIB, "-q", "-m", "0"), small_state, clock)
    held, late = image(1, 2 * MIB), image(2, 2 * MIB)
    full.pull(held)
    lease = full.lease(held)
    before = {h.record for h in full.cache.snapshot().holdings}
    with full.others_fill(where=small_state):
        for refused in (
            lambda: full.cache.desire(late),
            lambda: full.lease(held),
            lambda: full.cache.pin(held.infohash),
        ):
            with pytest.raises(StorageFailed, match="No space"):
                refused()
        assert {h.record for h in full.cache.snapshot().holdings} == before
        assert [one.lease for one in full.cache.leases()] == [lease]
        # What gives room back works.
        full.cache.release(lease)
        assert full.store.instances() == ()
    full.start()
    assert {h.record.infohash for h in full.cache.snapshot().holdings} == {held.infohash}
    assert full.pull(late) is State.READY
    full.cache.release(full.lease(late))


def test_a_disk_that_fills_up_under_leases_gives_no_more_and_keeps_those_that_are(
    full: Full, image: Callable[..., ImageVersion]
) -> None:
    wanted = image(1, 4 * MIB)
    full.pull(wanted)
    held = [full.lease(wanted) for _ in range(3)]
    with full.others_fill():
        for _ in range(3):
            with pytest.raises(DistribError):
                full.lease(wanted)
        full.start()
        assert [one.lease for one in full.cache.leases()] == sorted(held)
        for lease in held:
            full.cache.release(lease)
        assert full.store.instances() == ()
    shutil.rmtree(full.disk / "lost+found")
    full.cache.set_desired([])
    full.cache.collect()
    assert full.store.volumes() == ()
