"""An agent lends what is ready, approved and asked for by who may; and takes it back."""

from __future__ import annotations

import asyncio
import os
import threading
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import pytest

from agent.cache.records import ImageVersion
from agent.lending import Lending
from agent.pull.torrents import TorrentFiles
from agent.serving_pieces import AgentShelf
from agent.socket.server import SocketServer
from distrib.errors import Conflict, DistribError
from distrib.swarm.transfer import Transfer
from distrib.tsunami.protocol import flags
from distrib.tsunami.serving import Lent
from tests.agent.test_operations import MIB, Place
from tests.pull.conftest import NODE, Published, published, session
from tests.trust.conftest import World, world

__all__ = ["published", "world"]

NOBODY = 65534


@pytest.fixture
def place(tmp_path: Path, world: World) -> Place:
    return Place(tmp_path, world)


@asynccontextmanager
async def lending(place: Place, root: Path, user: str | None = None) -> AsyncIterator[Path]:
    table = Lending(
        place.cache,
        place.authority,
        torrents=TorrentFiles(root / "torrents"),
        pulls={},
        user=user,
    ).table
    server = SocketServer(root / "agent.sock", table, admin_groups=())
    async with server.running():
        yield root / "agent.sock"


def lend(path: Path, infohash: str) -> Lent:
    return AgentShelf(path).lend(infohash)


async def test_a_ready_image_is_lent_whole_and_held_meanwhile(place: Place, tmp_path: Path) -> None:
    async with lending(place, tmp_path) as path:
        lent = await asyncio.to_thread(lend, path, place.infohash)
        pieces = -(-lent.size_bytes // lent.piece_bytes)
        assert flags(lent.have, pieces) == b"\x01" * pieces
        assert os.pread(lent.fd, 2 * MIB, 0) == bytes(MIB)
        with pytest.raises(OSError, match="Bad file descriptor"):
            os.write(lent.fd, b"x")
        with pytest.raises(Conflict, match="held"):
            place.cache.evict(place.infohash, force=True)
        lent.close()
        os.close(lent.fd)
        async with asyncio.timeout(10):
            while place.cache._room.held[place.infohash]:  # noqa: ASYNC110 - the agent's side
                await asyncio.sleep(0.01)
        place.cache.evict(place.infohash, force=True)
        with pytest.raises(DistribError, match="no such image"):
            await asyncio.to_thread(lend, path, place.infohash)


async def test_what_is_withdrawn_is_taken_back(place: Place, tmp_path: Path) -> None:
    async with lending(place, tmp_path) as path:
        lent = await asyncio.to_thread(lend, path, place.infohash)
        updates = lent.updates()
        told: list[DistribError] = []

        def follow() -> None:
            try:
                next(iter(updates), None)
            except DistribError as error:
                told.append(error)

        thread = threading.Thread(target=follow)
        thread.start()
        place.cache.block(place.infohash, "not on the site list")
        await asyncio.to_thread(thread.join, 20)
        lent.close()
        os.close(lent.fd)
        assert [error.code for error in told] == ["revoked"]
        with pytest.raises(DistribError, match="not on the site list") as refused:
            await asyncio.to_thread(lend, path, place.infohash)
        assert refused.value.code == "revoked"


def as_nobody(path: Path, infohash: str) -> str:
    """What an account without any right is told, or its first bytes of the image."""
    read, write = os.pipe()
    child = os.fork()
    if child == 0:
        try:
            os.setgroups([])
            os.setgid(NOBODY)
            os.setuid(NOBODY)
            lent = lend(path, infohash)
            told = os.pread(lent.fd, 4, 0).hex()
        except DistribError as error:
            told = error.code
        except BaseException as error:  # noqa: BLE001 - told to the parent
            told = repr(error)
        os.write(write, told.encode())
        os._exit(0)
    os.close(write)
    with os.fdopen(read, "rb") as answer:
        told = answer.read().decode()
    os.waitpid(child, 0)
    return told


@pytest.mark.root
@pytest.mark.filterwarnings("ignore:This process .* is multi-threaded:DeprecationWarning")
async def test_the_account_that_serves_needs_no_right_of_its_own(
    place: Place, tmp_path: Path
) -> None:
    for folder in (tmp_path, *tmp_path.parents[:2]):
        folder.chmod(folder.stat().st_mode | 0o011)
    place.cache.volume(place.infohash).path.chmod(0o400)
    async with lending(place, tmp_path, user="nobody") as path:
        assert await asyncio.to_thread(as_nobody, path, place.infohash) == "00000000"
        assert await asyncio.to_thread(as_nobody, path, "ab" * 32) == "not-found"
    async with lending(place, tmp_path) as path:
        assert await asyncio.to_thread(as_nobody, path, place.infohash) == "forbidden"


class UnderWay:
    """What lending sees of a pull: the transfer, real, into the cache's own volume."""

    def __init__(self, transfer: Transfer) -> None:
        self.transfer = transfer
        self.pull = self


async def test_pieces_of_a_pull_under_way_are_in_the_file_when_they_are_told(
    place: Place, tmp_path: Path, published: Published, monkeypatch: pytest.MonkeyPatch
) -> None:
    info, image = published.info, place.world.site_image()
    place.cache.desire(
        ImageVersion(
            info.infohash, image.identifier, "2.0", "ab" * 64, info.size_bytes, info.piece_bytes
        )
    )
    place.cache.start_pull(info.infohash)
    monkeypatch.setattr(place.authority, "entry", lambda *_: image)
    pulls: dict[str, Any] = {}
    table = Lending(
        place.cache,
        place.authority,
        torrents=TorrentFiles(tmp_path / "torrents"),
        pulls=pulls,
        user=None,
    ).table
    volume = place.cache.volume(info.infohash)
    server = SocketServer(tmp_path / "agent.sock", table, admin_groups=())
    async with server.running(), session(NODE) as own:
        with place.store.writing(volume) as target:
            transfer = own.add(info, published.torrent, target.directory)
            pulls[info.infohash] = UnderWay(transfer)
            lent = await asyncio.to_thread(lend, tmp_path / "agent.sock", info.infohash)
            assert not any(flags(lent.have, info.pieces))
            updates = lent.updates()
            for index in (7, 3, info.pieces - 1):
                data = published.data[index * info.piece_bytes :][: info.piece_bytes]
                assert await transfer.offer(index, data)
                news = await asyncio.to_thread(next, updates)
                assert list(news) == [(index, 1)]
                assert os.pread(lent.fd, len(data), index * info.piece_bytes) == data
            lent.close()
            os.close(lent.fd)
            await own.remove(transfer)
