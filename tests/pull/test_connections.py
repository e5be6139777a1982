"""Two connections with one peer: when one of them is closed, the other is left alone."""

from __future__ import annotations

import asyncio
from types import SimpleNamespace
from typing import Any, cast

import pytest

from agent.pull import machine, pulling, swarm
from agent.pull.pulling import Answer, Plan
from agent.pull.swarm import SwarmSource
from distrib.bus.messages import Peer
from distrib.swarm.events import PeerDown, PeerSample, PeersSampled, PeerUp
from distrib.swarm.transfer import Transfer
from tests.pull.conftest import PORT, SEEDER, Published

PARENT = Peer(node="parent", address=SEEDER, port=PORT)
DIALLED, INCOMING = PORT, 40001


def sampled(*ports: int) -> PeersSampled:
    return PeersSampled(tuple(PeerSample(SEEDER, port, True, 0, 0, 0, 0) for port in ports))


def opened(published: Published, handle: SimpleNamespace, left: list[str]) -> Transfer:
    info = published.info
    return Transfer(
        cast(Any, handle), info, [False] * info.pieces, forget=lambda _, peer: left.append(peer)
    )


def test_a_peer_is_there_as_long_as_one_connection_with_it_is(published: Published) -> None:
    transfer = opened(published, SimpleNamespace(), [])
    transfer.on_event(PeerUp(SEEDER, DIALLED))
    transfer.on_event(PeerUp(SEEDER, INCOMING))
    transfer.on_event(PeerDown(SEEDER, DIALLED, "duplicate"))
    assert transfer.peers == {SEEDER}
    transfer.on_event(PeerDown(SEEDER, INCOMING, "gone"))
    assert transfer.peers == set()


def test_who_came_while_libtorrent_was_asked_is_there(published: Published) -> None:
    transfer = opened(published, SimpleNamespace(), [])
    transfer.on_event(PeerUp(SEEDER, INCOMING))
    transfer.on_event(sampled())
    assert transfer.peers == {SEEDER}
    # Whose end was never told is gone all the same.
    transfer.on_event(sampled())
    assert transfer.peers == set()


async def test_a_parent_is_not_left_because_a_second_connection_with_it_was_closed(
    published: Published, monkeypatch: pytest.MonkeyPatch
) -> None:
    # Silence has a parent probed, too; here only what befalls its connections shall.
    for name in ("QUIET_MIN_S", "QUIET_MAX_S"):
        monkeypatch.setattr(pulling, name, 1000.0)
    monkeypatch.setattr(machine, "OPENING_S", 0.0)
    probed: list[str] = []
    left: list[str] = []
    dials: asyncio.Queue[tuple[str, int]] = asyncio.Queue()

    async def probe(peer: Peer) -> Answer:
        probed.append(peer.node)
        return Answer.TAKES

    async def read() -> None:
        while not transfer.events.empty():  # noqa: ASYNC110 - nobody is told that it is empty
            await asyncio.sleep(0)

    monkeypatch.setattr(swarm, "probe", probe)
    transfer = opened(published, SimpleNamespace(connect_peer=dials.put_nowait), left)
    source = SwarmSource(transfer, Plan((PARENT,)))
    bringing = asyncio.create_task(source.bring(cast(Any, transfer)))
    async with asyncio.timeout(60):
        assert await dials.get() == (SEEDER, PORT)
        transfer.on_event(PeerUp(SEEDER, DIALLED))
        transfer.on_event(PeerUp(SEEDER, INCOMING))
        transfer.on_event(sampled(INCOMING))
        transfer.on_event(PeerDown(SEEDER, DIALLED, "duplicate"))
        await read()
        transfer.on_event(sampled(INCOMING))
        await read()
        assert (probed, left) == ([], [])
        transfer.on_event(PeerDown(SEEDER, INCOMING, "gone"))
        assert await dials.get() == (SEEDER, PORT)
    assert (probed, left) == (["parent"], [SEEDER])
    bringing.cancel()
    await asyncio.gather(bringing, return_exceptions=True)
