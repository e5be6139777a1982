"""What may go wrong while a new version is copied from an older one: it costs time, no more."""

from __future__ import annotations

import asyncio
import os
import signal
import sys
from pathlib import Path

import pytest

from agent.pull import copying, previous
from agent.pull.pull import Pull
from agent.pull.pulling import Plan
from distrib.bus.messages import State
from distrib.errors import Conflict
from distrib.swarm import hashes
from tests.delta import half_way
from tests.delta.conftest import CHANGED, SIZE
from tests.delta.node import MIB, PIECE, Node
from tests.delta.test_delta import FETCHED, hold_old
from tests.pull.conftest import Published, seeding
from tests.swarm.test_hashes import answering, lie

ROOT = Path(__file__).parents[2]
SAME_PIECE = next(i for i in range(40, SIZE // PIECE) if i * PIECE + 8192 not in CHANGED)


async def test_a_bit_that_flipped_in_the_older_version_costs_its_piece_and_is_told(
    node: Node, old: Published, new: Published
) -> None:
    async with node.running():
        await hold_old(node, old)
        node.spoil(old, SAME_PIECE * PIECE + 5)
        async with seeding(new) as seeder:
            record = await node.pull(new, "2.0", (seeder,))
    assert record.state is State.READY
    assert node.bytes_of(new) == new.data
    assert record.fetched_bytes == FETCHED + PIECE
    assert node.damaged == [old.info.infohash]
    assert node.record(old).state is State.PULLING, "it is repaired"


async def test_an_older_version_that_ends_early_is_copied_as_far_as_it_goes(
    node: Node, old: Published, new: Published
) -> None:
    async with node.running():
        await hold_old(node, old)
        os.truncate(node.cache.volume(old.info.infohash).path, SIZE // 2)
        async with seeding(new) as seeder:
            record = await node.pull(new, "2.0", (seeder,))
    assert record.state is State.READY
    assert node.bytes_of(new) == new.data
    assert record.fetched_bytes + record.copied_bytes == SIZE


async def test_a_version_that_is_copied_from_cannot_be_evicted(
    node: Node, old: Published, new: Published, monkeypatch: pytest.MonkeyPatch
) -> None:
    refused: list[str] = []
    note = Pull.on_copied

    def evict_then_note(self: Pull, piece: int, count: int) -> None:
        with pytest.raises(Conflict) as error:
            node.cache.evict(old.info.infohash, force=True)
        refused.append(error.value.message)
        note(self, piece, count)

    monkeypatch.setattr(Pull, "on_copied", evict_then_note)
    async with node.running():
        await hold_old(node, old)
        async with seeding(new) as seeder:
            await node.pull(new, "2.0", (seeder,))
    assert refused
    assert all("held" in message for message in refused)
    node.cache.evict(old.info.infohash, force=True)
    assert node.bytes_of(new) == new.data


@pytest.mark.parametrize("boot_id", ["this boot", "after a power cut"])
async def test_killed_half_way_through_the_copy(
    node: Node, old: Published, new: Published, boot_id: str
) -> None:
    async with node.running():
        await hold_old(node, old)
    async with seeding(new) as seeder:
        child = await asyncio.create_subprocess_exec(
            *(sys.executable, "-m", "tests.delta.half_way"),
            *(str(node.directory), str(new.directory), seeder.address, str(seeder.port)),
            stdout=asyncio.subprocess.PIPE,
            cwd=ROOT,
        )
        assert child.stdout is not None
        try:
            async with asyncio.timeout(30):
                while b"half" not in await child.stdout.readline():
                    pass
        finally:
            child.send_signal(signal.SIGKILL)
            await child.wait()
        again = Node(node.directory, boot_id=boot_id)
        assert again.record(new).state is State.PULLING
        resumed = again.resume.load(new.info.infohash, new.info.pieces)
        if boot_id == "this boot":
            assert resumed is not None
            assert resumed.copied_bytes >= half_way.HALF_BYTES
        async with again.running():
            record = await again.pull(new, "2.0", (seeder,))
    assert record.state is State.READY
    assert again.bytes_of(new) == new.data
    assert record.fetched_bytes <= 2 * FETCHED


async def test_cancelled_half_way_it_goes_on_with_what_is_there(
    node: Node, old: Published, new: Published, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(copying, "STEP_BYTES", MIB)
    half = asyncio.Event()
    note = Pull.on_copied

    def note_half(self: Pull, piece: int, count: int) -> None:
        note(self, piece, count)
        if self.copied_bytes >= SIZE // 2:
            half.set()

    monkeypatch.setattr(Pull, "on_copied", note_half)
    async with node.running():
        await hold_old(node, old)
        async with seeding(new) as seeder:
            running = asyncio.create_task(node.begin(new, "2.0", (seeder,)).run())
            await half.wait()
            running.cancel()
            with pytest.raises(asyncio.CancelledError):
                await running
            record = await node.pull(new, "2.0", (seeder,))
    assert node.bytes_of(new) == new.data
    assert record.fetched_bytes <= 2 * FETCHED


async def test_hashes_that_are_not_the_torrents_are_asked_from_another(
    node: Node, old: Published, new: Published
) -> None:
    async with node.running():
        await hold_old(node, old)
        async with answering(lie) as liar, seeding(new) as seeder:
            record = await node.pull(new, "2.0", (liar, seeder))
    assert node.bytes_of(new) == new.data
    assert record.fetched_bytes == FETCHED


async def test_without_hashes_from_anybody_all_is_fetched(
    node: Node, old: Published, new: Published, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(hashes, "SILENCE_S", 0.3)
    monkeypatch.setattr(previous, "ASK_LIMIT_S", 0.8)
    async with node.running():
        await hold_old(node, old)
        async with answering(lambda _: b"") as silent, seeding(new) as seeder:
            running = node.begin(new, "2.0", (silent,))
            pulling = asyncio.create_task(running.run())
            async with asyncio.timeout(30):
                while running.reason is None:  # noqa: ASYNC110 - it stalls after its own time
                    await asyncio.sleep(0.05)
            running.follow_plan(Plan((seeder,)))
            transfer = await pulling
            assert transfer is not None
            await node.sessions["pread"].remove(transfer)
    assert node.bytes_of(new) == new.data
    assert (node.record(new).fetched_bytes, node.record(new).copied_bytes) == (SIZE, 0)
