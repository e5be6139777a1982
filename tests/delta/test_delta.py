"""A new version starts from the older one on the node: what is the same is copied, the rest comes
over a real swarm, and the whole has the site list's SHA-512."""

from __future__ import annotations

import os
import subprocess
from collections.abc import Callable
from datetime import UTC, datetime
from pathlib import Path

import pytest

from agent.cache.device import DeviceStore
from agent.cache.file import FileStore
from agent.cache.holders import TimeHolder
from distrib.bus.messages import Peer, State
from tests.delta.conftest import CHANGED, SIZE
from tests.delta.node import MIB, PIECE, Node, edited
from tests.pull.conftest import Published, seeding

FETCHED = len(CHANGED) * PIECE


async def hold_old(node: Node, old: Published, *, store: str = "file") -> None:
    async with seeding(old) as seeder:
        assert (await node.pull(old, "1.0", (seeder,), store=store)).state is State.READY


async def test_only_what_changed_is_fetched(node: Node, old: Published, new: Published) -> None:
    async with node.running():
        await hold_old(node, old)
        async with seeding(new) as seeder:
            record = await node.pull(new, "2.0", (seeder,))
    assert record.state is State.READY
    assert node.bytes_of(new) == new.data
    assert (record.fetched_bytes, record.copied_bytes) == (FETCHED, SIZE - FETCHED)
    assert node.torrents.with_layers(record) == (new.info, new.torrent)


async def test_the_first_version_of_an_image_is_fetched_whole(node: Node, old: Published) -> None:
    async with node.running():
        await hold_old(node, old)
    assert (node.record(old).fetched_bytes, node.record(old).copied_bytes) == (SIZE, 0)


async def test_what_a_job_writes_into_its_instance_is_not_copied(
    node: Node, old: Published, new: Published
) -> None:
    async with node.running():
        await hold_old(node, old)
        lease = node.cache.lease(
            old.info.infohash,
            holder=TimeHolder(datetime.max.replace(tzinfo=UTC)),
            user="u",
            cow_bytes=SIZE,
        )
        (instance,) = node.stores[0].instances()
        with instance.path.open("r+b") as file:
            file.write(b"the job's own" * 100_000)
        async with seeding(new) as seeder:
            await node.pull(new, "2.0", (seeder,))
    assert node.bytes_of(new) == new.data
    assert node.damaged == []
    assert node.cache.leases() == (lease,)


async def test_pieces_that_moved_and_images_that_grew_or_shrank(
    node: Node, old: Published, publishing: Callable[..., Published]
) -> None:
    first, rest = old.data[: 2 * MIB], old.data[2 * MIB :]
    grown = publishing(rest + first + os.urandom(3 * PIECE + 100))
    shrunk = publishing(grown.data[PIECE : 5 * MIB + 77])
    async with node.running():
        await hold_old(node, old)
        async with seeding(grown) as seeder:
            larger = await node.pull(grown, "2.0", (seeder,))
        async with seeding(shrunk) as seeder:
            smaller = await node.pull(shrunk, "3.0", (seeder,))
    assert node.bytes_of(grown) == grown.data
    assert larger.fetched_bytes == 3 * PIECE + 100
    assert node.bytes_of(shrunk) == shrunk.data
    assert smaller.fetched_bytes == 77


async def test_an_older_version_with_smaller_pieces_serves_as_well(
    node: Node, old: Published, publishing: Callable[..., Published]
) -> None:
    coarse = publishing(edited(old.data, [3 * MIB]), piece_bytes=4 * PIECE)
    async with node.running():
        await hold_old(node, old)
        async with seeding(coarse) as seeder:
            record = await node.pull(coarse, "2.0", (seeder,))
    assert node.bytes_of(coarse) == coarse.data
    assert record.fetched_bytes == 4 * PIECE


async def test_where_fetching_is_as_fast_as_copying_all_is_fetched(
    tmp_path: Path, old: Published, new: Published
) -> None:
    node = Node(tmp_path / "node", link_bps=10_000 * MIB)
    async with node.running():
        await hold_old(node, old)
        async with seeding(new) as seeder:
            record = await node.pull(new, "2.0", (seeder,))
    assert (record.fetched_bytes, record.copied_bytes) == (SIZE, 0)


async def test_a_peer_that_has_neither_torrent_nor_hashes_is_passed_over(
    node: Node, old: Published, new: Published
) -> None:
    nobody = Peer(node="nobody", address="127.0.3.99", port=17881)
    async with node.running():
        await hold_old(node, old)
        # The seeder of the old version knows nothing of the new one.
        async with seeding(old, address="127.0.3.3") as other, seeding(new) as seeder:
            record = await node.pull(new, "2.0", (nobody, other, seeder))
    assert record.fetched_bytes == FETCHED


async def test_from_a_file_to_a_device(
    tmp_path: Path, devices: Callable[..., list[Path]], old: Published, new: Published
) -> None:
    disks = DeviceStore(
        devices(SIZE + MIB),
        tmp_path / "links",
        instances_dir=tmp_path / "instances",
        instances_capacity_bytes=0,
    )
    node = Node(tmp_path / "node", stores=(FileStore(tmp_path / "cache", 64 * MIB), disks))
    async with node.running():
        await hold_old(node, old)
        async with seeding(new) as seeder:
            record = await node.pull(new, "2.0", (seeder,), store="device")
    assert record.state is State.READY, record.text
    assert node.bytes_of(new) == new.data
    assert (record.fetched_bytes, record.copied_bytes) == (FETCHED, SIZE - FETCHED)


@pytest.mark.parametrize(
    "system", [("xfs", "-q", "-m", "reflink=1"), ("btrfs", "-q")], ids=lambda system: system[0]
)
async def test_blocks_are_shared_where_the_file_system_can(
    tmp_path: Path,
    file_system: Callable[..., Path],
    old: Published,
    new: Published,
    system: tuple[str, ...],
) -> None:
    kind, *arguments = system
    root = file_system(kind, 320 * MIB, *arguments)
    node = Node(tmp_path / "node", stores=(FileStore(root / "cache", 64 * MIB),))
    async with node.running():
        await hold_old(node, old)
        async with seeding(new) as seeder:
            record = await node.pull(new, "2.0", (seeder,))
    assert node.bytes_of(new) == new.data
    assert record.fetched_bytes == FETCHED
    assert _shared_bytes(node.cache.volume(new.info.infohash).path) == SIZE - FETCHED


def _shared_bytes(file: Path) -> int:
    listed = subprocess.run(
        ["filefrag", "-v", "-b4096", str(file)], capture_output=True, text=True, check=True
    )
    extents = [
        line for line in listed.stdout.splitlines() if line.endswith(("shared", "shared,eof"))
    ]
    return sum(int(line.split(":")[3]) * 4096 for line in extents)
