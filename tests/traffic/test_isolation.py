"""Who has no place is not served; who cheats from a node's address harms that address briefly."""

from __future__ import annotations

import asyncio
import contextlib
import os
from collections.abc import Awaitable, Callable
from pathlib import Path

import pytest

from distrib.swarm.classes import Place, Zones, see
from distrib.swarm.profile import lan_profile
from distrib.swarm.session import SwarmSession
from distrib.swarm.torrent import TorrentInfo, info_of
from distrib.swarm.transfer import Transfer
from tests.pull.conftest import NODE, PORT, SEEDER, Published, published, seeding, session

__all__ = ["published"]

STRANGER = "127.0.3.9"
HOSTILE_PORT = PORT + 50
LIMIT_S = 20.0


async def until(what: str, holds: Callable[[], bool], *, limit_s: float = LIMIT_S) -> None:
    try:
        async with asyncio.timeout(limit_s):
            while not holds():  # noqa: ASYNC110 - libtorrent says nothing of what is waited for
                await asyncio.sleep(0.05)
    except TimeoutError:
        raise AssertionError(f"not in {limit_s} s: {what}") from None


def leech(own: SwarmSession, published: Published, directory: Path) -> Transfer:
    directory.mkdir()
    (directory / "image.raw").write_bytes(bytes(published.info.size_bytes))
    return own.add(published.info, info_of(published.torrent), directory)


def farm(*addresses: str) -> Zones:
    return see([Place("r1", "", addresses)], own=[NODE])


async def test_a_stranger_is_not_served_and_not_asked_until_it_has_a_place(
    tmp_path: Path, published: Published
) -> None:
    async with seeding(published, address=SEEDER), session(NODE) as own, session(STRANGER) as other:
        own.admit(farm(SEEDER))
        mine = own.add(published.info, published.torrent, published.directory, seed=True)
        theirs = leech(other, published, tmp_path / "stranger")
        theirs.connect(NODE, PORT)
        mine.connect(STRANGER, PORT)
        with pytest.raises(AssertionError):
            await until("it is served", lambda: theirs.done_bytes > 0, limit_s=1.5)
        assert mine.peers == set()
        # The map is another one now: nobody restarts.
        own.admit(farm(SEEDER, STRANGER))
        theirs.leave(NODE)
        theirs.connect(NODE, PORT)
        await until("it is served", lambda: theirs.is_complete)
        await mine.count()
        assert mine.uploaded_bytes >= published.info.size_bytes


async def test_who_loses_its_place_is_cut_off(tmp_path: Path, published: Published) -> None:
    async with seeding(published, upload_bps=1 << 20) as parent, session(NODE) as own:
        own.admit(farm(SEEDER))
        transfer = leech(own, published, tmp_path / "node")
        transfer.connect(parent.address, parent.port)
        await until("it moves", lambda: transfer.done_bytes > 0)
        own.admit(farm())
        await until("it is cut off", lambda: not transfer.peers)


class Hostile:
    """A process of a local user on a node's address: a session whose image has other bytes."""

    def __init__(self, directory: Path, published: Published) -> None:
        self._published = published
        self._directory = directory
        directory.mkdir()
        (directory / "image.raw").write_bytes(os.urandom(published.info.size_bytes))
        profile = lan_profile(address=SEEDER, port=HOSTILE_PORT)
        profile["seeding_outgoing_connections"] = True
        self._session = SwarmSession(profile, backend="pread")

    async def at_work(self, work: Callable[[], Awaitable[None]]) -> None:
        """Pester the victim while ``work`` goes on."""
        info: TorrentInfo = self._published.info
        async with self._session.running():
            # Not as a seed: libtorrent would look at each piece before it sends it, and not dial.
            have = [True] * (info.pieces - 1) + [False]
            lying = self._session.add(info, self._published.torrent, self._directory, have=have)
            pestering = asyncio.create_task(self._pester(lying))
            try:
                await work()
            finally:
                pestering.cancel()
                await asyncio.gather(pestering, return_exceptions=True)

    async def _pester(self, lying: Transfer) -> None:
        while True:
            lying.leave(NODE)
            lying.connect(NODE, PORT)
            # libtorrent dials within a second.
            await asyncio.sleep(1.5)


Connection = tuple[asyncio.StreamReader, asyncio.StreamWriter]


async def squat(published: Published, address: str, count: int, held: list[Connection]) -> None:
    """Hold ``count`` connections to NODE from one address, each with a peer's handshake, that then
    say nothing."""
    while len(held) < count:
        reader, writer = await asyncio.open_connection(NODE, PORT, local_addr=(address, 0))
        held.append((reader, writer))
        infohash = bytes.fromhex(published.info.infohash)[:20]
        name = b"-XX0000-" + os.urandom(12)
        # The lone bit says that v2 of the protocol is spoken.
        writer.write(b"\x13BitTorrent protocol" + bytes(7) + b"\x10" + infohash + name)


async def let_go(held: list[Connection]) -> None:
    """Close all, for good."""
    for _, writer in held:
        writer.transport.abort()
    await asyncio.gather(*(writer.wait_closed() for _, writer in held), return_exceptions=True)


async def test_connections_that_a_local_user_holds_do_not_keep_its_node_out(
    tmp_path: Path, published: Published
) -> None:
    async with session(NODE) as own, session(SEEDER) as agent:
        own.admit(farm(SEEDER))
        seeded = own.add(published.info, published.torrent, published.directory, seed=True)
        squatting: list[Connection] = []
        try:
            await squat(published, SEEDER, 40, squatting)
            await until("they are taken", lambda: SEEDER in seeded.peers)
            transfer = leech(agent, published, tmp_path / "agent")
            transfer.connect(NODE, PORT)
            await until("the node is served", lambda: transfer.is_complete)
        finally:
            await let_go(squatting)


class Crowd:
    """A local user of a node who holds as many connections as he can get, and opens lost ones."""

    def __init__(self, published: Published, address: str, count: int) -> None:
        self._published, self._address, self._count = published, address, count
        self.held: list[Connection] = []
        self.lost = 0

    async def hold(self) -> None:
        """Until cancelled."""
        gone: list[Connection] = []
        try:
            while True:
                for reader, writer in list(self.held):
                    # What the node says is thrown away, up to its end.
                    with contextlib.suppress(TimeoutError, OSError):
                        async with asyncio.timeout(0):
                            await reader.read(1 << 16)
                    if reader.at_eof() or reader.exception() is not None:
                        writer.transport.abort()
                        self.held.remove((reader, writer))
                        gone.append((reader, writer))
                        self.lost += 1
                with contextlib.suppress(OSError):
                    await squat(self._published, self._address, self._count, self.held)
                await asyncio.sleep(0.02)
        finally:
            await let_go([*self.held, *gone])


async def dial(transfer: Transfer) -> None:
    """As a pull does (agent/pull/machine.py): whom libtorrent lost it does not dial by itself."""
    while True:
        if not transfer.peers:
            transfer.leave(NODE)
            transfer.connect(NODE, PORT)
        await asyncio.sleep(1.5)


@pytest.mark.timeout(180)
async def test_who_holds_more_connections_than_a_session_takes_keeps_nobody_out(
    tmp_path: Path, published: Published
) -> None:
    """Neither another node, nor the agent of the node whose address he has."""
    async with session(NODE) as own, session(SEEDER) as same, session(STRANGER) as other:
        own.admit(farm(SEEDER, STRANGER))
        own.add(published.info, published.torrent, published.directory, seed=True)
        crowd = Crowd(published, SEEDER, 260)
        holding = asyncio.create_task(crowd.hold())
        try:
            await until("he is cut down", lambda: crowd.lost >= 200)
            for agent, name in ((other, "other"), (same, "same")):
                transfer = leech(agent, published, tmp_path / name)
                dialling = asyncio.create_task(dial(transfer))
                try:
                    async with asyncio.timeout(3 * LIMIT_S):
                        await transfer.complete()
                finally:
                    dialling.cancel()
                    await asyncio.gather(dialling, return_exceptions=True)
        finally:
            holding.cancel()
            await asyncio.gather(holding, return_exceptions=True)


async def test_a_local_user_on_a_nodes_address_gets_only_itself_banned(
    tmp_path: Path, published: Published
) -> None:
    hostile = Hostile(tmp_path / "hostile", published)
    async with session(NODE) as own:
        own.admit(farm(SEEDER))
        transfer = leech(own, published, tmp_path / "node")

        async def work() -> None:
            await until("bad blocks came", lambda: bool(transfer.hash_failures))
            async with seeding(published) as real:
                began_s = asyncio.get_running_loop().time()
                while not transfer.is_complete:
                    transfer.connect(real.address, real.port)
                    await asyncio.sleep(0.5)
                    assert asyncio.get_running_loop().time() - began_s < LIMIT_S, "unusable"

        await hostile.at_work(work)
        assert set(transfer.hash_failures) == {SEEDER}
        await transfer.flush()
    assert (tmp_path / "node" / "image.raw").read_bytes() == published.data
