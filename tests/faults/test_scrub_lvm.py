"""The scrub in user-mode Linux: below a volume group, and on a file system without O_DIRECT."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path

import pytest

from agent.cache.lvm import LvmStore
from distrib.bus.messages import State
from tests.delta.node import MIB, PIECE, Node, publish
from tests.faults.disks import flip_on_a_disk
from tests.faults.scrubbing import Scrubbing, holding
from tests.uml.disks import DISKS, NO_UDEV, VG, run, volume_group

pytestmark = pytest.mark.uml

SIZE = 4 * MIB + 5000
BAD = 41


@pytest.fixture
def group() -> Iterator[str]:
    with volume_group() as name:
        yield name


def where(infohash: str) -> int:
    """The byte of the disk where an image's logical volume begins."""
    column = ["--noheadings", "--units", "b", "--nosuffix", "--config", NO_UDEV, "-o"]
    start = run("pvs", *column, "pe_start", str(DISKS[0])).stdout
    extent = run("vgs", *column, "vg_extent_size", VG).stdout
    ranges = run("lvs", *column, "seg_pe_ranges", f"{VG}/distrib-{infohash}").stdout.split()
    first = int(ranges[0].partition(":")[2].partition("-")[0])
    return int(start) + first * int(extent)


@pytest.mark.usefixtures("group")
async def test_a_bit_that_flips_below_a_logical_volume_is_found_and_mended(tmp_path: Path) -> None:
    published = publish(tmp_path / "image", os.urandom(SIZE))
    node = Node(tmp_path / "node", [LvmStore(VG, tmp_path / "lvm")])
    async with holding(node, published) as seeder:
        assert node.bytes_of(published) == published.data
        flip_on_a_disk(DISKS[0], where(published.info.infohash) + BAD * PIECE + 77)
        scrubbing = Scrubbing(node)
        await scrubbing.in_days(10)
        assert scrubbing.found == [
            (published.info.infohash, f"piece {BAD} of {published.info.pieces} is bad")
        ]
        before = node.record(published)
        record = await node.pull(published, "1.0", (seeder,), store="lvm")
        assert record.state is State.READY
        assert record.fetched_bytes - before.fetched_bytes == PIECE
        assert node.bytes_of(published) == published.data
        assert node.cache.volume(published.info.infohash).sealed


async def test_a_bad_piece_is_found_where_there_is_no_direct_io(tmp_path: Path) -> None:
    published = publish(tmp_path / "image", os.urandom(SIZE))
    node = Node(tmp_path / "node")
    async with holding(node, published):
        path = node.cache.volume(published.info.infohash).path
        with pytest.raises(OSError, match="Invalid argument"):
            os.open(path, os.O_RDONLY | os.O_DIRECT)
        scrubbing = Scrubbing(node)
        await scrubbing.in_days(10)
        assert scrubbing.found == []
        node.spoil(published, BAD * PIECE)
        await scrubbing.in_days(10)
        assert len(scrubbing.found) == 1
