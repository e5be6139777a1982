"""Gives back what nobody needs: above the high watermark by itself, all of it when asked (`gc`).

Beside volumes these are the files of images that are not here any more (``torrents/``,
``resume/``) and what stores left in the kernel (loop devices).
"""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import Callable, Collection

import structlog

from agent.cache.cache import Cache
from agent.pull.resume import ResumeFiles
from agent.pull.torrents import TorrentFiles
from distrib.errors import DistribError

log = structlog.get_logger(__name__)

RELIEF_INTERVAL_S = 30.0

SPACING_S = 2.0
"""Changes that follow each other closely are looked at once."""


class Collector:
    """``wanted``: the info-hashes that the site wants here, None while that is not known.
    ``forget_torrent`` hears of each whose torrent is not here any more."""

    def __init__(
        self,
        cache: Cache,
        torrents: TorrentFiles,
        resume: ResumeFiles,
        *,
        wanted: Callable[[], Collection[str] | None],
        forget_torrent: Callable[[str], None],
    ) -> None:
        self._cache = cache
        self._torrents = torrents
        self._resume = resume
        self._wanted = wanted
        self._forget_torrent = forget_torrent
        self._look = asyncio.Event()

    def look(self) -> None:
        """Use may have grown. From the loop's thread only."""
        self._look.set()

    async def run(self) -> None:
        """Keep use below the high watermark, until cancelled."""
        while True:
            try:
                await asyncio.to_thread(self._cache.relieve)
            except DistribError as error:
                log.warning("not-relieved", code=error.code, why=error.message)
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(RELIEF_INTERVAL_S):
                    await self._look.wait()
            self._look.clear()
            await asyncio.sleep(SPACING_S)

    async def collect(self, *, dry_run: bool) -> dict[str, object]:
        """Give back all that nobody needs, and say what (docs/formats/socket.md, `gc`)."""
        if not dry_run:
            await asyncio.to_thread(self._cache.reap_dead_leases)
        gone = await asyncio.to_thread(self._cache.collect, dry_run=dry_run)
        left = await asyncio.to_thread(self._cache.sweep, dry_run=dry_run)
        files = await self._collect_files({one.infohash for one in gone}, dry_run=dry_run)
        return {
            "dry_run": dry_run,
            "evicted": [
                {"image": one.image, "infohash": one.infohash, "size_bytes": one.room_bytes}
                for one in gone
            ],
            "freed_bytes": sum(one.room_bytes for one in gone),
            "files": files,
            "leftovers": list(left),
        }

    async def _collect_files(self, gone: set[str], *, dry_run: bool) -> list[str]:
        wanted = self._wanted()
        if wanted is None:
            return []
        snapshot = await asyncio.to_thread(self._cache.snapshot)
        held = {one.record.infohash for one in snapshot.holdings} | set(snapshot.unknown)
        kept = (held - gone) | set(wanted)
        names = []
        for store, forget in (
            (self._torrents, self._forget_torrent),
            (self._resume, lambda _: None),
        ):
            for infohash in sorted(store.known() - kept):
                files = await asyncio.to_thread(store.files, infohash)
                names += [str(file) for file in files]
                if not dry_run:
                    await asyncio.to_thread(store.discard, infohash)
                    forget(infohash)
        return names
