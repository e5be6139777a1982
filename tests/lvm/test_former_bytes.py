"""What earlier jobs wrote is nowhere to be seen."""

from __future__ import annotations

import os
from collections.abc import Iterator

import pytest

from agent.cache.lvm import LvmStore
from distrib.errors import Conflict
from tests.lvm.conftest import MIB, SIZE, A, Open, content, sealed, write
from tests.uml.disks import DISKS, NO_UDEV, VG, run, volume_group

pytestmark = pytest.mark.uml
FORMER = b"SECRET OF AN EARLIER JOB"


@pytest.fixture
def group() -> Iterator[str]:
    """A group on a disk that was used before."""
    with volume_group(former=FORMER) as name:
        yield name


def on_disk(data: bytes) -> bool:
    """Whether the physical volume holds these bytes, past what the host remembers of it."""
    with DISKS[0].open("rb") as disk:
        os.posix_fadvise(disk.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)
        return data in disk.read()


def test_past_an_images_end_there_is_nothing_on_the_volume_and_its_snapshots(
    store: LvmStore,
) -> None:
    data = os.urandom(SIZE - 20_001)
    volume = store.reserve(A, len(data))
    raw = content(volume.path)
    assert FORMER in raw, "the extents were used before"
    with store.writing(volume) as target:
        os.pwrite(target.fd, data, 0)
    volume = store.seal(volume)
    made = store.make_instance(volume, "l-000001", cow_bytes=MIB, scratch_bytes=0)
    for path in (volume.path, made.path):
        seen = content(path)
        assert seen[: len(data)] == data
        assert seen[len(data) :] == bytes(SIZE - len(data))


@pytest.mark.parametrize("wipe", ["discard", "none"])
def test_a_scratch_disk_is_empty_whatever_lay_there(open_store: Open, wipe: str) -> None:
    store = open_store(wipe=wipe)
    volume = sealed(store)
    for lease in ("l-000001", "l-000002"):
        made = store.make_instance(volume, lease, cow_bytes=MIB, scratch_bytes=2 * MIB)
        assert made.scratch is not None
        assert content(made.scratch) == bytes(2 * MIB)
        write(made.scratch, FORMER * 1000)
        store.drop_instance(lease)


def test_what_is_to_be_zeroed_goes_at_once_and_is_zeroed_by_the_sweep(open_store: Open) -> None:
    store = open_store(wipe="zero")
    volume = sealed(store)
    made = store.make_instance(volume, "l-000001", cow_bytes=MIB, scratch_bytes=MIB)
    mark = os.urandom(4096)
    assert made.scratch is not None
    write(made.scratch, mark, 65536)
    write(made.path, mark, 65536)
    store.drop_instance("l-000001")
    assert store.instances() == ()
    assert not made.path.exists()
    assert on_disk(mark)
    assert sorted(p.rpartition("/")[2] for p in store.leftovers()) == [
        "distrib-gone-cow-l-000001",
        "distrib-gone-scratch-l-000001",
    ]
    assert len(store.sweep()) == 2
    assert store.leftovers() == ()
    assert store.space().used_bytes == SIZE
    assert not on_disk(mark)


def test_an_instance_in_use_stays_and_is_removed_once_it_is_let_go(store: LvmStore) -> None:
    volume = sealed(store)
    made = store.make_instance(volume, "l-000001", cow_bytes=MIB, scratch_bytes=0)
    with made.path.open("rb"):
        with pytest.raises(Exception, match=r"lvremove: .*in use"):
            store.drop_instance("l-000001")
        with pytest.raises(Conflict):
            store.remove(volume)
    store.drop_instance("l-000001")
    store.remove(volume)
    assert run("lvs", "--noheadings", VG).stdout == ""


def test_an_instance_that_was_half_made_goes_at_the_next_start(
    store: LvmStore, open_store: Open
) -> None:
    sealed(store)
    run("lvcreate", "--config", NO_UDEV, "-n",
        "distrib-scratch-l-000009", "--addtag", "distrib", "--addtag", "distrib.lease=l-000009",
        "-L", "1m", VG)  # fmt: skip
    again = open_store()
    assert "scratch" not in run("lvs", VG).stdout
    assert len(again.volumes()) == 1
