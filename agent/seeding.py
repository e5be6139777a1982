"""What the node serves: one torrent an image, and for a while two where it came in stripes.

A pull in stripes ends with two torrents, each with the pieces of one stripe, and children that
still fetch from them. Once these take no more, or after FULL_AFTER_S, both are opened anew with the
whole image, so that whoever comes to either port finds all; the second one is closed when nobody
has wanted anything there for SECOND_LINGERS_S. An agent that is started anew meanwhile opens both
again: others were told the second port.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path
from types import MappingProxyType
from typing import Final

from agent.pull.stripes import STRIPES, Store, Striped, close, second_of
from distrib.bus.messages import DesiredImage
from distrib.swarm.session import Backend, SwarmSession
from distrib.swarm.torrent import TorrentInfo
from distrib.swarm.transfer import Transfer

IDLE_S: Final = 10.0
FULL_AFTER_S: Final = 120.0
SECOND_LINGERS_S: Final = 600.0


@dataclass
class _Served:
    store: Store
    second: Transfer | None
    since_s: float
    sent_bytes: int = 0
    sent_s: float = 0.0


class Seeding:
    """The stores that are served, by info-hash."""

    def __init__(
        self,
        sessions: Mapping[str, SwarmSession],
        *,
        monotonic: Callable[[], float] = time.monotonic,
    ) -> None:
        self._sessions = sessions
        self._monotonic = monotonic
        self._served: dict[str, _Served] = {}
        self._striped: set[str] = set()
        self.brought: dict[str, Mapping[str, int]] = {}
        self.bad_peers: dict[str, Mapping[str, int]] = {}

    def __contains__(self, infohash: object) -> bool:
        return infohash in self._served

    def __iter__(self) -> Iterator[str]:
        return iter(list(self._served))

    def get(self, infohash: str) -> Store | None:
        """What serves an image; None: nothing."""
        served = self._served.get(infohash)
        return None if served is None else served.store

    def take(
        self,
        infohash: str,
        store: Store,
        brought: Mapping[str, int],
        bad_peers: Mapping[str, int] = MappingProxyType({}),
    ) -> None:
        """Serve on what a pull has ended with; ``brought``, and who sent bad pieces otherwise
        than by the swarm (``bad_peers``, by address), are told until it is served no more."""
        self.brought[infohash], self.bad_peers[infohash] = brought, bad_peers
        if isinstance(store, Striped):
            self._striped.add(infohash)
        now_s = self._monotonic()
        self._served[infohash] = _Served(store, None, now_s, sent_s=now_s)

    def open(
        self,
        info: TorrentInfo,
        torrent: bytes,
        directory: Path,
        backend: Backend,
        *,
        upload_bps: int,
        striped: bool = False,
    ) -> None:
        """Serve the whole image that stands in ``directory``: on the port where it was served while
        it came, or on both (also if ``striped``: it came so before this process began)."""
        opened = []
        keys: list[str] = [backend]
        if (striped or info.infohash in self._striped) and second_of(backend) in self._sessions:
            keys.append(second_of(backend))
        for key in keys:
            transfer = self._sessions[key].add(info, torrent, directory, seed=True)
            transfer.limit(download_bps=0, upload_bps=upload_bps)
            opened.append(transfer)
        now_s = self._monotonic()
        second = opened[1] if len(opened) > 1 else None
        self._served[info.infohash] = _Served(opened[0], second, now_s, sent_s=now_s)
        self._striped.discard(info.infohash)

    async def look(self) -> None:
        """Close what is to be opened anew, and second torrents that nobody needs any more."""
        now_s = self._monotonic()
        for infohash, served in list(self._served.items()):
            watched = served.second or served.store
            if watched.uploaded_bytes != served.sent_bytes:
                served.sent_bytes, served.sent_s = watched.uploaded_bytes, now_s
            idle_s = now_s - served.sent_s
            if isinstance(served.store, Striped):
                if idle_s >= IDLE_S or now_s - served.since_s >= FULL_AFTER_S:
                    self._served.pop(infohash, None)
                    await close(served.store, self._sessions)
            elif served.second is not None and idle_s >= SECOND_LINGERS_S:
                second, served.second = served.second, None
                await close(second, self._sessions)

    async def close(self, infohash: str) -> None:
        """Serve an image no more."""
        self.brought.pop(infohash, None)
        self.bad_peers.pop(infohash, None)
        served = self._served.pop(infohash, None)
        if served is not None:
            await close(served.store, self._sessions)
            if served.second is not None:
                await close(served.second, self._sessions)

    async def close_all(self) -> None:
        """Serve nothing any more."""
        for infohash in self:
            await self.close(infohash)


def is_told_in_stripes(wanted: DesiredImage | None, since: datetime, now: datetime) -> bool:
    """Whether others may still be told the second port for an image that is ready ``since``."""
    if wanted is None or wanted.stripes != STRIPES:
        return False
    return (now - since).total_seconds() < SECOND_LINGERS_S
