"""What follows when a volume turns out to hold bad pieces, whoever found them."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import Callable

import structlog

from agent.cache.cache import Cache
from agent.cache.records import VolumeRecord
from agent.news import CacheNews
from agent.puller import Puller
from distrib.bus.messages import EventKind, NodeReason
from distrib.errors import Conflict, NotFound

log = structlog.get_logger(__name__)


class Damage:
    """Found by `verify`, by the scrub, or by a pull that copied from the volume: it gives no new
    leases, the site hears of it and of each lease on it, and it is pulled again once nothing
    stands on it."""

    def __init__(self, cache: Cache, news: CacheNews, *, puller: Callable[[], Puller]) -> None:
        self._cache = cache
        self._news = news
        self._puller = puller

    async def found(self, record: VolumeRecord, text: str) -> bool:
        """Mark the volume. Whether its repair waits for leases; raises Conflict or NotFound when
        it is not ``ready`` any more."""
        log.warning("volume-damaged", image=record.image, text=text)
        await self._puller().let_go(record.infohash)
        # Those that are given from now on are refused: what is marked here is told to all.
        marked = await asyncio.to_thread(self._cache.mark_damaged, record.infohash, text)
        leases = await asyncio.to_thread(self._cache.leases, record.infohash)
        for lease in leases if marked.damaged else ():
            self._news.on_trouble(EventKind.DAMAGED, lease, NodeReason.HASH_FAILED, text)
        self._puller().wake()
        return marked.damaged

    async def found_in(self, infohash: str) -> None:
        """The same for a volume that may have gone meanwhile."""
        record = await asyncio.to_thread(self._cache.record, infohash)
        if record is not None:
            with contextlib.suppress(Conflict, NotFound):
                await self.found(record, "bad pieces")
