"""What every pull of a node uses."""

from __future__ import annotations

import os
from collections.abc import Awaitable, Callable, Mapping, Sequence
from dataclasses import dataclass

import structlog

from agent.cache.cache import Cache
from agent.cache.store import WriteTarget
from agent.pull.further import STALLED_S, SourceMaker
from agent.pull.previous import PreviousVersions
from agent.pull.pulling import ParentLost
from agent.pull.resume import Resume, ResumeFiles
from agent.pull.torrents import TorrentFiles
from distrib.bus.messages import TokensWanted
from distrib.swarm.pieces import check_volume
from distrib.swarm.session import SwarmSession
from distrib.swarm.torrent import TorrentInfo
from distrib.trust.sitelist import SiteImage

log = structlog.get_logger(__name__)


@dataclass(frozen=True)
class PullParts:
    """What every pull of a node uses. ``sessions`` by libtorrent backend, those for the second
    stripe by backend and ``-2``; ``on_damaged`` hears of volumes that turned out bad, ``changed``
    when a pull stalls or goes on; ``makers`` make the sources beside the swarm, which help with
    ``auto`` when it was silent for ``stalled_s``."""

    cache: Cache
    sessions: Mapping[str, SwarmSession]
    torrents: TorrentFiles
    resume: ResumeFiles
    previous: PreviousVersions
    on_parent_lost: Callable[[str, ParentLost], None]
    on_damaged: Callable[[str], Awaitable[None]]
    changed: Callable[[], None] = lambda: None
    makers: Sequence[SourceMaker] = ()
    stalled_s: float = STALLED_S
    on_tokens_wanted: Callable[[TokensWanted], None] = lambda _: None

    def known_of(
        self, image: SiteImage, info: TorrentInfo, target: WriteTarget, *, fresh: bool
    ) -> Resume | None:
        """What is known to be on disk: from the resume file, else by hashing the volume."""
        if fresh:
            self.resume.discard(image.infohash)
            return None
        resumed = self.resume.load(image.infohash, info.pieces)
        if resumed is not None:
            return resumed
        layers = self.torrents.with_layers(image)
        if layers is None:
            return None
        # A volume that is repaired: the page cache may hold good bytes over the disk's bad ones.
        os.posix_fadvise(target.fd, 0, 0, os.POSIX_FADV_DONTNEED)
        have = tuple(check_volume(target.fd, layers[1], info))
        log.info("volume-checked", infohash=image.infohash, good=sum(have), of=len(have))
        return Resume(have)
