"""A pull in two stripes: each from its own parent, one verified volume."""

from __future__ import annotations

import asyncio
import hashlib
from collections.abc import AsyncIterator, Sequence
from contextlib import AsyncExitStack, asynccontextmanager
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from agent.cache.file import FileStore
from agent.cache.store import WriteTarget
from agent.pull.pull import Pull
from agent.pull.pulling import Plan
from agent.pull.resume import ResumeFiles
from agent.pull.stripes import STRIPES, Striped, close, unwanted_of
from agent.pull.swarm import SwarmSource
from agent.seeding import IDLE_S, SECOND_LINGERS_S, Seeding
from distrib.bus.messages import Peer
from distrib.swarm.profile import lan_profile
from distrib.swarm.session import SwarmSession
from distrib.swarm.transfer import Transfer
from tests.delta.node import Node as Running
from tests.pull.conftest import IMAGE_BYTES, NODE, PIECE_BYTES, PORT, SEEDER, Published, seeding

EVEN, ODD = "127.0.3.11", "127.0.3.12"


class Node:
    """A node with a session a stripe, a volume and resume files."""

    def __init__(self, directory: Path, published: Published) -> None:
        self.published = published
        self.store = FileStore(directory / "cache", 4 * IMAGE_BYTES)
        self.volume = self.store.reserve(published.info.infohash, IMAGE_BYTES)
        self.resume_files = ResumeFiles(directory / "resume", boot_id="this boot")

    @asynccontextmanager
    async def sessions(self) -> AsyncIterator[dict[str, SwarmSession]]:
        async with AsyncExitStack() as stack:
            opened = {}
            for key, port in (("pread", PORT), ("pread-2", PORT + 2)):
                opened[key] = SwarmSession(lan_profile(address=NODE, port=port), backend="pread")
                await stack.enter_async_context(opened[key].running())
            yield opened

    def begin(
        self, sessions: dict[str, SwarmSession], target: WriteTarget, parents: Sequence[Peer]
    ) -> tuple[Pull, list[SwarmSource]]:
        info = self.published.info
        resumed = self.resume_files.load(info.infohash, info.pieces)
        have = resumed.have if resumed else None
        plan = Plan(tuple(parents), stripes=STRIPES)
        store = Striped(
            [
                session.add(
                    info,
                    self.published.raw_info,
                    target.directory,
                    have=have,
                    unwanted=unwanted_of(stripe, info.pieces, have, ()),
                )
                for stripe, session in enumerate(sessions.values())
            ]
        )
        pull = Pull(
            store,
            target,
            sha512=hashlib.sha512(self.published.data).hexdigest(),
            raw_info=self.published.raw_info,
            resume_files=self.resume_files,
            resumed=resumed,
        )
        sources = [
            SwarmSource(part, plan.of_stripe(stripe)) for stripe, part in enumerate(store.parts)
        ]
        return pull, sources


@pytest.fixture
def node(tmp_path: Path, published: Published) -> Node:
    return Node(tmp_path, published)


async def test_each_stripe_comes_from_its_own_parent_and_is_resumed_with_the_other(
    node: Node, published: Published
) -> None:
    async with AsyncExitStack() as stack:
        parents = [
            await stack.enter_async_context(seeding(published, address=a, upload_bps=4 << 20))
            for a in (EVEN, ODD)
        ]
        async with node.sessions() as sessions:
            with node.store.writing(node.volume) as target:
                pull, sources = node.begin(sessions, target, parents)
                fetching = asyncio.create_task(pull.fetch(sources))
                while pull.done_bytes < IMAGE_BYTES // 3:
                    await pull.transfer.moved()
                await pull.checkpoint()
                fetching.cancel()
                await asyncio.gather(fetching, return_exceptions=True)
                noted = pull.noted()
        assert {index % 2 for index, held in enumerate(noted.have) if held} == {0, 1}
        async with node.sessions() as sessions:
            with node.store.writing(node.volume) as target:
                pull, sources = node.begin(sessions, target, parents)
                assert pull.resumed_bytes >= IMAGE_BYTES // 3
                assert pull.done_bytes == pull.resumed_bytes
                await pull.fetch(sources)
                assert pull.done_bytes == IMAGE_BYTES
                assert await pull.conclude() == published.torrent
                shares = [part.fetched_bytes for part in pull.transfer.parts]  # type: ignore[union-attr]
                assert pull.wasted_bytes == 0
                # Each torrent knows one parent, and took nothing but its stripe from it.
                wanted = (IMAGE_BYTES - pull.resumed_bytes) / 2
                assert all(abs(share - wanted) < 0.25 * IMAGE_BYTES for share in shares)
    assert node.volume.path.read_bytes() == published.data


async def test_what_came_in_stripes_is_served_whole_on_both_ports_and_later_on_one(
    node: Node, published: Published
) -> None:
    now_s = 0.0
    async with seeding(published) as parent, node.sessions() as sessions:
        served = Seeding(sessions, monotonic=lambda: now_s)
        with node.store.writing(node.volume) as target:
            pull, sources = node.begin(sessions, target, [parent])
            await pull.fetch(sources)
            await pull.conclude()
            served.take(published.info.infohash, pull.transfer, {"swarm": IMAGE_BYTES})
        await served.look()
        assert isinstance(served.get(published.info.infohash), Striped)
        now_s += IDLE_S
        await served.look()
        assert published.info.infohash not in served
        path = node.volume.path.parent
        served.open(published.info, published.torrent, path, "pread", upload_bps=0)
        assert [len(session.transfers) for session in sessions.values()] == [1, 1]
        assert all(session.transfers[0].is_complete for session in sessions.values())
        now_s += SECOND_LINGERS_S
        await served.look()
        assert [len(session.transfers) for session in sessions.values()] == [1, 0]
        await served.close_all()
        assert not list(served)


async def test_a_chain_becomes_trees_in_mid_pull_and_nothing_comes_twice(
    tmp_path: Path, published: Published
) -> None:
    node = Running(tmp_path)
    async with AsyncExitStack() as stack:
        first, even, odd = [
            await stack.enter_async_context(seeding(published, address=a, upload_bps=8 << 20))
            for a in (SEEDER, EVEN, ODD)
        ]
        await stack.enter_async_context(node.running())
        second = SwarmSession(lan_profile(address=NODE, port=PORT + 2), backend="pread")
        await stack.enter_async_context(second.running())
        node.sessions["pread-2"] = second
        pull = node.begin(published, "1.0", (first,))
        running = asyncio.create_task(pull.run())
        while pull.transfer is None:  # noqa: ASYNC110 - its volume is made first
            await asyncio.sleep(0.01)
        while pull.transfer.done_bytes < IMAGE_BYTES // 3:
            await pull.transfer.moved()
        assert isinstance(pull.transfer, Transfer)
        pull.follow_plan(Plan((even, odd), fallbacks=(first,), stripes=STRIPES))
        async with asyncio.timeout(30):
            store = await running
        assert isinstance(store, Striped)
        one, other = (part.fetched_bytes for part in store.parts)
        assert min(one, other) > IMAGE_BYTES // 5
        assert abs(one - other) < IMAGE_BYTES // 8
        # What was under way at the moment of the change is all that may come again.
        record = node.record(published)
        assert IMAGE_BYTES <= record.fetched_bytes < 1.05 * IMAGE_BYTES
        await close(store, node.sessions)
    assert node.bytes_of(published) == published.data


async def test_pieces_that_were_to_come_otherwise_may_be_offered_and_the_rest_is_waited_for(
    node: Node, published: Published
) -> None:
    info, data = published.info, published.data
    otherwise = range(8)
    async with AsyncExitStack() as stack:
        sessions = await stack.enter_async_context(node.sessions())
        target = stack.enter_context(node.store.writing(node.volume))
        store = Striped(
            [
                session.add(
                    info,
                    published.torrent,
                    target.directory,
                    unwanted=unwanted_of(stripe, info.pieces, None, otherwise),
                )
                for stripe, session in enumerate(sessions.values())
            ]
        )
        assert store.missing() == list(range(8, info.pieces))
        for index in (0, 1, *range(8, info.pieces - 1)):
            assert await store.offer(index, data[index * PIECE_BYTES :][: info.piece_size(index)])
        assert store.missing() == [info.pieces - 1]
        assert not all(part.is_complete for part in store.parts)
        last = info.pieces - 1
        wrong, right = bytes(info.piece_size(last)), data[last * PIECE_BYTES :]
        # Two at the same moment: each is judged by its own bytes.
        assert await asyncio.gather(store.offer(last, wrong), store.offer(last, right)) == [
            False,
            True,
        ]
        async with asyncio.timeout(10):
            await store.complete()


@given(st.lists(st.booleans(), max_size=60), st.sets(st.integers(0, 59)))
def test_every_missing_piece_is_fetched_once(have: list[bool], others: set[int]) -> None:
    pieces = len(have)
    fetched = []
    for stripe in range(STRIPES):
        unwanted = set(unwanted_of(stripe, pieces, have, others))
        assert not any(have[index] for index in unwanted)
        fetched += [i for i in range(pieces) if i not in unwanted and not have[i]]
    missing = [i for i in range(pieces) if not have[i] and i not in others]
    assert sorted(fetched) == missing
