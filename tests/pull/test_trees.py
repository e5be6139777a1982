"""Trees that the planner makes, over real sessions: every byte arrives, and a feeder may vanish."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Mapping
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import dataclass
from pathlib import Path

import pytest

from agent.pull.pulling import ParentLost, Plan
from agent.pull.stripes import STRIPES, Striped, unwanted_of
from agent.pull.swarm import SwarmSource
from distrib.bus.messages import Peer
from distrib.swarm import relay_cost
from distrib.swarm.profile import lan_profile
from distrib.swarm.relay import plan_relay
from distrib.swarm.relay_cost import Shape, Terms
from distrib.swarm.relay_layout import lay_out
from distrib.swarm.relay_peers import Links, Member, RelayPeer
from distrib.swarm.session import SwarmSession
from tests.pull.conftest import IMAGE_BYTES, PIECE_BYTES, PORT, SEEDER, Published, session

NODES = 7
SEEDER_BPS = 8 << 20


def _peers(peers: tuple[RelayPeer, ...]) -> tuple[Peer, ...]:
    return tuple(Peer(node=p.node, address=p.address, port=p.port) for p in peers)


def planned(members: Mapping[str, Member], seeder: Member) -> Mapping[str, Links]:
    """What the planner tells each node, where depth counts for everything, a start for nothing."""
    terms = Terms(size_bytes=IMAGE_BYTES, piece_bytes=PIECE_BYTES, trees=True)
    layout = lay_out((), members, [seeder], terms)
    assert [group.shape for group in layout] == [Shape.TREES]
    return plan_relay(layout, members, [seeder]).links


@dataclass
class Node:
    """A node in two sessions, without an agent around it."""

    sessions: list[SwarmSession]
    store: Striped
    sources: list[SwarmSource]
    file: Path
    lost: list[ParentLost]

    async def fetch(self) -> None:
        async with asyncio.TaskGroup() as group:
            for source in self.sources:
                group.create_task(source.bring(self.store))


@asynccontextmanager
async def node_of(
    directory: Path, published: Published, member: Member, links: Links
) -> AsyncIterator[Node]:
    await asyncio.to_thread(directory.mkdir)
    file = directory / "image.raw"
    await asyncio.to_thread(file.write_bytes, bytes(IMAGE_BYTES))
    plan = Plan(_peers(links.parents), _peers(links.fallbacks), _peers(links.neighbours), STRIPES)
    assert links.stripes == STRIPES
    lost: list[ParentLost] = []
    async with AsyncExitStack() as stack:
        sessions, parts = [], []
        for stripe, port in enumerate(member.stripe_ports):
            own = SwarmSession(lan_profile(address=member.address, port=port), backend="pread")
            await stack.enter_async_context(own.running())
            unwanted = unwanted_of(stripe, published.info.pieces, None, ())
            sessions.append(own)
            parts.append(own.add(published.info, published.raw_info, directory, unwanted=unwanted))
        sources = [
            SwarmSource(part, plan.of_stripe(stripe), on_parent_lost=lost.append)
            for stripe, part in enumerate(parts)
        ]
        yield Node(sessions, Striped(parts), sources, file, lost)


async def test_all_bytes_arrive_over_trees_although_who_feeds_two_vanishes_half_way(
    tmp_path: Path, published: Published, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(relay_cost, "DELAY_FLOOR_S", 0.0)
    monkeypatch.setattr(relay_cost, "TREES_START_S", 0.0)
    members = {
        f"wn{number}": Member(
            f"wn{number}",
            f"127.0.3.{20 + number}",
            PORT,
            rack="r1",
            stripe_ports=(PORT, PORT + 2),
        )
        for number in range(NODES)
    }
    seeder = Member("seeder", SEEDER, PORT, has_all=True, progress=1.0)
    links = planned(members, seeder)
    feeds = [peer.node for one in links.values() for peer in one.parents if peer.node in members]
    victim = max(members, key=feeds.count)
    orphans = {name for name, one in links.items() if victim in {p.node for p in one.parents}}
    assert len(orphans) == 2
    async with AsyncExitStack() as stack:
        source = await stack.enter_async_context(session(SEEDER))
        serving = source.add(published.info, published.torrent, published.directory, seed=True)
        serving.limit(download_bps=0, upload_bps=SEEDER_BPS)
        nodes: dict[str, Node] = {}
        lives = {name: AsyncExitStack() for name in members}
        for name, member in members.items():
            await stack.enter_async_context(lives[name])
            nodes[name] = await lives[name].enter_async_context(
                node_of(tmp_path / name, published, member, links[name])
            )
        fetching = {name: asyncio.create_task(node.fetch()) for name, node in nodes.items()}
        while nodes[victim].store.done_bytes < IMAGE_BYTES // 2:
            await nodes[victim].store.moved()
        fetching[victim].cancel()
        await asyncio.gather(fetching[victim], return_exceptions=True)
        await lives[victim].aclose()
        others = [task for name, task in fetching.items() if name != victim]
        async with asyncio.timeout(60):
            await asyncio.gather(*others)
        await serving.count()
        for name, node in nodes.items():
            if name != victim:
                assert node.store.missing() == []
                assert {gone.parent.node for gone in node.lost} <= {victim}
        assert {n for n, node in nodes.items() if node.lost and n != victim} <= orphans
        # Each piece is sent about once: nobody asks the seeder for what its parent gives.
        assert serving.uploaded_bytes < 1.6 * IMAGE_BYTES
        for node in nodes.values():
            for part in node.store.parts:
                if node is not nodes[victim]:
                    await part.flush()
    for name, node in nodes.items():
        if name != victim:
            assert node.file.read_bytes() == published.data
