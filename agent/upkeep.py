"""What an administrator may ask about the cache as a whole: `verify` and `gc`."""

from __future__ import annotations

import asyncio
import contextlib
import threading
from collections.abc import Awaitable, Callable, Mapping
from typing import Annotated

from pydantic import BaseModel, ConfigDict, Field

from agent.cache.cache import Cache
from agent.cache.records import VolumeRecord
from agent.collecting import Collector
from agent.damage import Damage
from agent.pull.torrents import TorrentFiles
from agent.rereading import Rereading
from agent.scrubber import Scrubber
from agent.socket.caller import Caller
from agent.socket.request import parse
from agent.socket.server import Args, Operation, Send
from distrib.bus.messages import State
from distrib.errors import NotFound, NotReady, TorrentMismatch
from distrib.swarm.pieces import piece_hashes
from distrib.trust.sitelist import SiteImage

PROGRESS_INTERVAL_S = 0.5

Resolve = Callable[[str], Awaitable[tuple[VolumeRecord, SiteImage]]]


class _Args(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True)


class _Verify(_Args):
    image: Annotated[str, Field(max_length=200)]


class _Collect(_Args):
    dry_run: bool = False


class Upkeep:
    """The operations by name: ``table`` is what the socket serves. ``resolve``: what IMAGE means
    on this node."""

    def __init__(
        self,
        *,
        cache: Cache,
        torrents: TorrentFiles,
        collector: Collector,
        scrubber: Scrubber,
        damage: Damage,
        resolve: Resolve,
    ) -> None:
        self._cache = cache
        self._torrents = torrents
        self._collector = collector
        self._scrubber = scrubber
        self._damage = damage
        self._resolve = resolve
        self.table: Mapping[str, Operation] = {"verify": self._verify, "gc": self._collect}

    async def _collect(self, caller: Caller, args: Args, send: Send) -> dict[str, object]:
        caller.require_admin("gc")
        return await self._collector.collect(dry_run=parse(_Collect, args).dry_run)

    async def _verify(self, caller: Caller, args: Args, send: Send) -> dict[str, object]:
        caller.require_admin("verify")
        record, image = await self._resolve(parse(_Verify, args).image)
        if record.state is not State.READY:
            raise NotReady(f"image {record.image} is {record.state}", hint="wait until it is ready")
        bad = await self._bad_pieces(record, image, send)
        waits = False
        if bad:
            waits = await self._damage.found(record, f"{len(bad)} bad pieces, the first {bad[0]}")
        else:
            self._scrubber.found_good(record.infohash)
        return {
            "image": record.image,
            "good": not bad,
            "bad_pieces": len(bad),
            "waits_for_leases": waits,
        }

    async def _bad_pieces(self, record: VolumeRecord, image: SiteImage, send: Send) -> list[int]:
        """Read all of a volume again, from the disk; say how far it is."""
        volume = await asyncio.to_thread(self._cache.volume, record.infohash)
        try:
            known = await asyncio.to_thread(self._torrents.layers_of, image, volume.path)
        except TorrentMismatch:
            # Without its hashes nobody can say which of them.
            return list(range(-(-image.size_bytes // image.piece_bytes)))
        if known is None:
            raise NotReady(
                f"image {record.image}: its torrent is not here",
                hint="it comes from the broker by itself: see `distrib-agent doctor`",
            )
        info, torrent = known
        done = [0]
        stop = threading.Event()

        def read() -> list[int]:
            bad = []
            rereading = Rereading(volume.path, piece_hashes(torrent, info), info)
            with contextlib.closing(rereading):
                for index in range(info.pieces):
                    if stop.is_set():
                        break
                    try:
                        good = rereading.is_good(index)
                    except FileNotFoundError:
                        raise NotFound(
                            f"image {record.image} was removed meanwhile",
                            hint="see `distrib-agent status`",
                        ) from None
                    if not good:
                        bad.append(index)
                    done[0] = index + 1
            return bad

        reading = asyncio.create_task(asyncio.to_thread(read), name=f"verify {record.image}")
        try:
            while not reading.done():
                await asyncio.wait({reading}, timeout=PROGRESS_INTERVAL_S)
                line = {"image": record.image, "pieces_done": done[0], "pieces": info.pieces}
                await send(line)
            return await reading
        finally:
            stop.set()  # the caller may have gone
            await asyncio.gather(reading, return_exceptions=True)
