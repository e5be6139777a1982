"""SSH keeps the contract of sources; and pieces go on from who is still fetching them."""

from __future__ import annotations

import asyncio
import base64
import os
import threading
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import paramiko
import pytest

from agent.cache.file import FileStore
from agent.pull.pulling import KNOWN_MAX, Plan
from agent.pull.source import Source
from agent.pull.tsunami import SshAccess, TsunamiSource, fetch_layers
from agent.serving_pieces import key_line
from agent.socket.caller import Caller
from agent.socket.server import Args, Send, SocketServer
from distrib.bus.messages import Peer
from distrib.errors import TimedOut
from distrib.swarm.pieces import piece_hashes
from distrib.swarm.transfer import Transfer
from distrib.tsunami.keys import Identity
from distrib.tsunami.protocol import bitmap
from tests.contracts.test_source import (
    SourceFor,
    test_it_brings_every_piece,
    test_it_ends_when_another_source_brought_the_rest,
    test_it_lets_go_when_it_is_cancelled,
)
from tests.pull.conftest import IMAGE_BYTES, NODE, Published, published, session
from tests.tsunami.sshd import USER, Sshd, make_key, public, running

__all__ = [
    "published",
    "test_it_brings_every_piece",
    "test_it_ends_when_another_source_brought_the_rest",
    "test_it_lets_go_when_it_is_cancelled",
]


@pytest.fixture
def hosts(tmp_path: Path) -> Iterator[list[Sshd]]:
    """Two peers that admit one key, each for an agent's socket of its own."""
    key = make_key(tmp_path / "key")
    with (
        running(tmp_path / "p1", address="127.0.7.1") as one,
        running(tmp_path / "p2", address="127.0.7.2") as two,
    ):
        for sshd in (one, two):
            sshd.admit(key_line(public(key), agent_socket=sshd.directory / "agent.sock"))
        yield [one, two]


@asynccontextmanager
async def serving(
    host: Sshd, published: Published, file: Path, have: list[bool] | None = None
) -> AsyncIterator[Peer]:
    """An agent's socket on a host, with the image in ``file``, or parts of it."""
    info = published.info
    held = have or [True] * info.pieces

    async def pieces(caller: Caller, args: Args, send: Send) -> dict[str, object]:
        assert args["infohash"] == info.infohash
        fd = os.open(file, os.O_RDONLY)
        try:
            said = {"image": "x", "size_bytes": info.size_bytes, "piece_bytes": info.piece_bytes}
            raw = base64.b64encode(bitmap(held)).decode()
            await send.lend(said | {"have": raw}, fd)
            await asyncio.Event().wait()
        finally:
            os.close(fd)
        return {}

    async def hashes(caller: Caller, args: Args, send: Send) -> dict[str, object]:
        found = piece_hashes(published.torrent, info)[args["first"] :][: args["count"]]
        return {"hashes": base64.b64encode(b"".join(found)).decode()}

    table = {"pieces": pieces, "hashes": hashes}
    server = SocketServer(host.directory / "agent.sock", table, admin_groups=())
    async with server.running():
        yield Peer(
            node=host.directory.name,
            address=host.address,
            port=1,
            ssh_port=host.port,
            host_keys=(host.host_key,),
        )


def access(hosts: list[Sshd]) -> SshAccess:
    return SshAccess(lambda: Identity.read(hosts[0].directory.parent / "key"), USER)


@pytest.fixture
def source_for(hosts: list[Sshd]) -> SourceFor:
    @asynccontextmanager
    async def ssh(published: Published, transfer: Transfer) -> AsyncIterator[Source]:
        async with serving(hosts[0], published, published.directory / "image.raw") as peer:
            yield TsunamiSource(Plan((peer,)), access(hosts))

    return ssh


@pytest.fixture
async def transfer(tmp_path: Path, published: Published) -> AsyncIterator[Transfer]:
    """Knows the piece layer, as a pull over SSH does before its first piece."""
    store = FileStore(tmp_path / "store", 2 * IMAGE_BYTES)
    volume = store.reserve(published.info.infohash, IMAGE_BYTES)
    async with session(NODE) as own:
        with store.writing(volume) as target:
            opened = own.add(published.info, published.torrent, target.directory)
            yield opened
            await own.remove(opened)


async def test_the_piece_layer_comes_from_a_peer_too(
    hosts: list[Sshd], published: Published
) -> None:
    async with serving(hosts[0], published, published.directory / "image.raw") as peer:
        torrent = await asyncio.to_thread(
            fetch_layers, access(hosts), peer, published.raw_info, published.info
        )
    info = published.info
    assert piece_hashes(torrent, info) == piece_hashes(published.torrent, info)


async def test_a_peer_with_bad_bytes_is_named_and_a_fallback_brings_the_rest(
    hosts: list[Sshd], published: Published, transfer: Transfer, tmp_path: Path
) -> None:
    bad_file = tmp_path / "bad.raw"
    bad_file.write_bytes(bytes(IMAGE_BYTES))
    named: list[str] = []
    async with (
        serving(hosts[0], published, bad_file) as bad,
        serving(hosts[1], published, published.directory / "image.raw") as good,
    ):
        source = TsunamiSource(
            Plan((bad,), (good,)),
            access(hosts),
            on_bad_peer=lambda peer, _: named.append(peer.node),
        )
        async with asyncio.timeout(60):
            await source.bring(transfer)
    assert transfer.missing() == []
    assert set(named) == {"p1"}


async def test_two_peers_with_half_each_make_a_whole(
    hosts: list[Sshd], published: Published, transfer: Transfer
) -> None:
    file, count = published.directory / "image.raw", published.info.pieces
    brought: dict[str, int] = {}

    def tell(peer: Peer, size: int) -> None:
        brought[peer.node] = brought.get(peer.node, 0) + size

    async with (
        serving(hosts[0], published, file, [i % 2 == 0 for i in range(count)]) as even,
        serving(hosts[1], published, file, [i % 2 == 1 for i in range(count)]) as odd,
    ):
        source = TsunamiSource(Plan((even, odd)), access(hosts), brought=tell)
        async with asyncio.timeout(60):
            await source.bring(transfer)
    assert transfer.missing() == []
    assert sorted(brought) == ["p1", "p2"]
    assert sum(brought.values()) == IMAGE_BYTES


async def test_only_a_deadline_ends_a_pull_from_nobody(
    hosts: list[Sshd], transfer: Transfer
) -> None:
    hosts[0].stop()
    gone = Peer(node="p1", address="127.0.7.1", port=1, ssh_port=1, host_keys=(hosts[0].host_key,))
    now_s = asyncio.get_running_loop().time()
    source = TsunamiSource(Plan((gone,)), access(hosts), deadline_s=now_s + 1.5)
    with pytest.raises(TimedOut, match="deadline"):
        await source.bring(transfer)


async def test_what_is_opened_for_a_pull_that_has_ended_is_closed(
    hosts: list[Sshd], published: Published, transfer: Transfer
) -> None:
    """A thread that logs in cannot be cancelled: its connection comes when nobody wants it."""
    dialling, go_on = threading.Event(), threading.Event()

    def identity() -> Identity:
        dialling.set()
        assert go_on.wait(30)
        return Identity.read(hosts[0].directory.parent / "key")

    before = set(threading.enumerate())
    async with serving(hosts[0], published, published.directory / "image.raw") as peer:
        source = TsunamiSource(Plan((peer,)), SshAccess(identity, USER))
        bringing = asyncio.create_task(source.bring(transfer))
        await asyncio.to_thread(dialling.wait, 30)
        bringing.cancel()
        await asyncio.gather(bringing, return_exceptions=True)
        go_on.set()
        left = {one for one in threading.enumerate() if one.name.startswith("pieces")} - before
        for thread in left:
            await asyncio.to_thread(thread.join, 30)
    assert left
    connections = [one for one in threading.enumerate() if isinstance(one, paramiko.Transport)]
    assert [one for one in connections if one not in before and one.is_active()] == []


@dataclass(frozen=True)
class FakePeers(SshAccess):
    """Peers that are not there: each takes a log-in and a subscription, and has nothing to send."""

    pieces: int = 0
    subscribed: threading.Semaphore = field(default_factory=lambda: threading.Semaphore(0))

    def open(self, peer: Peer, infohash: str) -> Any:
        return SilentClient(self)


class SilentClient:
    def __init__(self, farm: FakePeers) -> None:
        self._farm = farm
        self._closed = threading.Event()

    def open(self, **_: int) -> bytearray:
        return bytearray(b"\x01" * self._farm.pieces)

    def next(self) -> None:
        self._closed.wait()

    def subscribe(self, share: bytearray) -> None:
        self._farm.subscribed.release()

    def close(self) -> None:
        self._closed.set()


async def test_as_many_peers_as_a_pull_knows_are_all_asked_for_pieces(
    transfer: Transfer, published: Published
) -> None:
    many = FakePeers(lambda: pytest.fail("nobody"), USER, pieces=published.info.pieces)
    peers = tuple(
        Peer(node=f"wn{n:03}", address=f"192.0.2.{n}", port=1, ssh_port=22)
        for n in range(KNOWN_MAX)
    )
    bringing = asyncio.create_task(TsunamiSource(Plan(peers), many).bring(transfer))
    try:
        async with asyncio.timeout(30):
            for _ in peers:
                await asyncio.to_thread(many.subscribed.acquire, timeout=30)
    finally:
        bringing.cancel()
        await asyncio.gather(bringing, return_exceptions=True)
