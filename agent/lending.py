"""Lends volumes, open for reading, to the process that serves their pieces (see socket.md).

A ready volume is held while it is lent, so that it is not evicted under a reader. Of a pull under
way only those pieces are told that passed their hash and were handed to the kernel: what libtorrent
still holds back cannot be read from the file.
"""

from __future__ import annotations

import asyncio
import base64
import contextlib
import os
from collections.abc import Collection, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated, Final
from weakref import WeakKeyDictionary

from pydantic import BaseModel, ConfigDict, Field

from agent.authority import Authority
from agent.cache.cache import Cache
from agent.cache.records import VolumeRecord
from agent.pull.pull import Pull
from agent.pull.running import RunningPull
from agent.pull.torrents import TorrentFiles
from agent.socket.caller import Caller
from agent.socket.request import parse
from agent.socket.server import Args, Operation, Send
from distrib.bus.messages import State
from distrib.bus.schema import Infohash
from distrib.errors import Conflict, NotFound, NotReady, Revoked, StorageFailed
from distrib.swarm.pieces import piece_hashes
from distrib.tsunami.protocol import HASHES_MAX, bitmap, ranges

LOOK_AGAIN_S: Final = 0.5
"""How soon a reader hears that an image may not be read any more."""

FLUSH_REST_S: Final = 0.05
"""Between two flushes of a pull, whoever asks; a chain waits so long at each hop at most."""

RANGES_PER_LINE: Final = 10_000


class _Pieces(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True)

    infohash: Infohash


class _Hashes(_Pieces):
    first: Annotated[int, Field(ge=0)]
    count: Annotated[int, Field(ge=1, le=HASHES_MAX)]


@dataclass
class _Flushed:
    """What was last handed to the kernel of a pull, and when; shared by all its readers."""

    have: bytes = b""
    at_s: float = 0.0
    turn: asyncio.Lock = field(default_factory=asyncio.Lock)


class Lending:
    """The operation ``pieces``. ``user`` may use it besides administrators."""

    def __init__(
        self,
        cache: Cache,
        authority: Authority,
        *,
        torrents: TorrentFiles,
        pulls: Mapping[str, RunningPull],
        user: str | None,
    ) -> None:
        self._cache = cache
        self._authority = authority
        self._torrents = torrents
        self._pulls = pulls
        self._user = user
        self._flushes: WeakKeyDictionary[Pull, _Flushed] = WeakKeyDictionary()
        self.table: dict[str, Operation] = {"pieces": self._pieces, "hashes": self._hashes}

    def _check(self, caller: Caller, what: str) -> None:
        if self._user is None or caller.user != self._user:
            caller.require_admin(what)

    async def _hashes(self, caller: Caller, args: Args, send: Send) -> dict[str, object]:
        """The hashes of some pieces, as the torrent's piece layer has them."""
        self._check(caller, "hashes")
        asked = parse(_Hashes, args)
        record = await self._readable(asked.infohash)
        known = await asyncio.to_thread(self._torrents.with_layers, record)
        if known is None:
            raise NotReady("the piece hashes are not known yet", hint="ask again later")
        info, torrent = known
        found = piece_hashes(torrent, info)[asked.first : asked.first + asked.count]
        return {"hashes": base64.b64encode(b"".join(found)).decode()}

    async def _pieces(self, caller: Caller, args: Args, send: Send) -> dict[str, object]:
        """Lend one volume, and tell of its pieces until the caller hangs up."""
        self._check(caller, "pieces")
        infohash = parse(_Pieces, args).infohash
        record = await self._readable(infohash)
        with contextlib.ExitStack() as stack:
            ready = record.state is State.READY
            if ready:
                await asyncio.to_thread(self._hold, stack, infohash)
            volume = await asyncio.to_thread(self._cache.volume, infohash)
            fd = await asyncio.to_thread(_open, volume.path)
            stack.callback(os.close, fd)
            told = await self._have(record)
            await send.lend(
                {
                    "image": record.image,
                    "size_bytes": record.size_bytes,
                    "piece_bytes": record.piece_bytes,
                    "have": base64.b64encode(bitmap(told)).decode(),
                },
                fd,
            )
            while True:
                await self._await_news(infohash)
                record = await self._readable(infohash)
                if record.state is State.READY and not ready:
                    ready = True
                    await asyncio.to_thread(self._hold, stack, infohash)
                    await asyncio.to_thread(_check_same, fd, volume.path)
                have = await self._have(record)
                for line in _lines(told, have):
                    await send({"have": line})
                told = have

    def _hold(self, stack: contextlib.ExitStack, infohash: str) -> None:
        try:
            stack.enter_context(self._cache.holding(infohash))
        except Conflict as error:
            raise NotReady(error.message, hint="ask again later") from None

    async def _readable(self, infohash: str) -> VolumeRecord:
        """The record, if its verified pieces may be read now."""
        record = await asyncio.to_thread(self._cache.record, infohash)
        if record is None:
            raise NotFound("no such image on this node", hint="another peer may have it")
        entry = self._authority.entry(record.identifier, record.version, infohash)
        if entry is None or record.state is State.BLOCKED:
            raise Revoked(
                f"image {record.image} is not on the site list", hint="do not use it any more"
            )
        under_way = record.state in (State.PULLING, State.VERIFYING)
        if record.state is State.READY and not record.damaged:
            return record
        if not under_way or (record.state is State.PULLING and infohash not in self._pulls):
            raise NotReady(f"image {record.image} is {record.state}", hint="ask again later")
        return record

    async def _have(self, record: VolumeRecord) -> bytes:
        """A byte a piece: 1 where it is verified and in the file."""
        pieces = -(-record.size_bytes // record.piece_bytes)
        running = self._pulls.get(record.infohash)
        if record.state is not State.PULLING or running is None:
            # What is being verified has passed the hash of every piece.
            return b"\x01" * pieces
        pull = running.pull
        if pull is None or running.transfer is None or pull.transfer is not running.transfer:
            return bytes(pieces)
        return await self._flushed(pull)

    async def _flushed(self, pull: Pull) -> bytes:
        shared = self._flushes.setdefault(pull, _Flushed())
        loop = asyncio.get_running_loop()
        async with shared.turn:
            stale = bytes(pull.transfer.have) != shared.have
            if not shared.have or (stale and loop.time() - shared.at_s > FLUSH_REST_S):
                have = bytes(pull.transfer.have)
                await pull.transfer.flush()
                shared.have, shared.at_s = have, loop.time()
            return shared.have

    async def _await_news(self, infohash: str) -> None:
        running = self._pulls.get(infohash)
        transfer = running.transfer if running else None
        if transfer is None:
            await asyncio.sleep(LOOK_AGAIN_S)
            return
        await asyncio.sleep(FLUSH_REST_S)
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(LOOK_AGAIN_S):
                await transfer.moved()


def _open(path: Path) -> int:
    try:
        return os.open(path, os.O_RDONLY | os.O_CLOEXEC)
    except OSError as error:
        raise StorageFailed(
            f"{path}: {error.strerror}", hint="see the agent's log and the kernel's"
        ) from None


def _check_same(fd: int, path: Path) -> None:
    """Raise NotReady when the name means another file or device by now."""
    own, now = os.fstat(fd), path.stat()
    if (own.st_dev, own.st_ino, own.st_rdev) != (now.st_dev, now.st_ino, now.st_rdev):
        raise NotReady(f"{path} was replaced", hint="ask again")


def _lines(told: Collection[int], have: bytes) -> Iterator[list[tuple[int, int]]]:
    """What is new, in lines of bounded length."""
    fresh = [i for i, (was, now) in enumerate(zip(told, have, strict=True)) if now and not was]
    found = list(ranges(fresh))
    for at in range(0, len(found), RANGES_PER_LINE):
        yield found[at : at + RANGES_PER_LINE]
