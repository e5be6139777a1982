"""An agent's socket with one image, whose pieces arrive and whose approval ends when a test says.

A real server of the socket, and the operation as it is documented; the cache behind it is a list.
"""

from __future__ import annotations

import asyncio
import base64
import os
import secrets
import threading
from collections.abc import Iterable
from pathlib import Path

from agent.socket.caller import Caller
from agent.socket.request import parse
from agent.socket.server import Args, Send, SocketServer
from distrib.bus.schema import Model
from distrib.errors import NotFound, Revoked
from distrib.tsunami.protocol import bitmap

PIECE = 16 << 10
PIECES = 40
LAST = 100


class _Asked(Model):
    infohash: str


class Held:
    """An image on the shelf."""

    def __init__(self, shelf: SocketShelf, have: Iterable[int]) -> None:
        self.infohash = secrets.token_hex(32)
        self.size_bytes = (PIECES - 1) * PIECE + LAST
        self._shelf = shelf
        self._data = shelf.file.read_bytes()
        self._have = set(have)
        self._queues: list[asyncio.Queue[tuple[int, int] | None]] = []
        self._revoked = False

    def piece(self, index: int) -> bytes:
        return self._data[index * PIECE : (index + 1) * PIECE]

    def arrive(self, first: int, count: int) -> None:
        """Pieces are verified now."""
        self._say((first, count))

    def withdraw(self) -> None:
        """The site takes its approval back."""
        self._revoked = True
        self._say(None)

    def _say(self, news: tuple[int, int] | None) -> None:
        def tell() -> None:
            for one in self._queues:
                one.put_nowait(news)

        self._shelf.loop.call_soon_threadsafe(tell)

    async def lend(self, send: Send) -> dict[str, object]:
        revoked = Revoked("the image is not on the site list", hint="")
        if self._revoked:
            raise revoked
        news: asyncio.Queue[tuple[int, int] | None] = asyncio.Queue()
        self._queues.append(news)
        fd = os.open(self._shelf.file, os.O_RDONLY)
        try:
            have = base64.b64encode(bitmap(index in self._have for index in range(PIECES)))
            said = {"image": "x", "size_bytes": self.size_bytes, "piece_bytes": PIECE}
            await send.lend(said | {"have": have.decode()}, fd)
            while (came := await news.get()) is not None:
                await send({"have": [came]})
            raise revoked
        finally:
            os.close(fd)
            self._queues.remove(news)


class SocketShelf:
    """The socket, served from a thread of its own."""

    def __init__(self, path: Path, file: Path) -> None:
        self.path = path
        self.file = file
        file.write_bytes(os.urandom((PIECES - 1) * PIECE + LAST))
        self.loop = asyncio.new_event_loop()
        self._images: dict[str, Held] = {}
        self._ready, self._over = threading.Event(), asyncio.Event()
        self._thread = threading.Thread(target=lambda: self.loop.run_until_complete(self._run()))

    def hold(self, have: Iterable[int]) -> Held:
        """Put the image on the shelf under a new info-hash."""
        held = Held(self, have)
        self._images[held.infohash] = held
        return held

    def __enter__(self) -> SocketShelf:
        self._thread.start()
        assert self._ready.wait(10)
        return self

    def __exit__(self, *_: object) -> None:
        self.loop.call_soon_threadsafe(self._over.set)
        self._thread.join()
        self.loop.close()

    async def _run(self) -> None:
        server = SocketServer(
            self.path, {"pieces": self._pieces, "hashes": self._hashes}, admin_groups=()
        )
        async with server.running():
            self._ready.set()
            await self._over.wait()

    async def _hashes(self, caller: Caller, args: Args, send: Send) -> dict[str, object]:
        first, count = args["first"], args["count"]
        digests = b"".join(index.to_bytes(32) for index in range(first, first + count))
        return {"hashes": base64.b64encode(digests).decode()}

    async def _pieces(self, caller: Caller, args: Args, send: Send) -> dict[str, object]:
        held = self._images.get(parse(_Asked, args).infohash)
        if held is None:
            raise NotFound("no such image on this node", hint="")
        return await held.lend(send)
