"""What other versions of an image on this node can give to a pull (docs/decisions/0021-delta.md).

Only sealed volumes are read, never an instance; each is held, so that it is not removed while it is
copied from. The new version's piece layer comes from a peer, before anything else.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable, Collection, Sequence
from contextlib import ExitStack, suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Final

import structlog

from agent.cache.cache import Cache
from agent.cache.records import VolumeRecord
from agent.cache.store import WriteTarget
from agent.pull.copying import DiskRate, share_range
from agent.pull.delta import Base, Rates, Run, is_worth_it, match
from agent.pull.pulling import Plan, Stage
from agent.pull.torrents import TorrentFiles
from distrib.bus.messages import State
from distrib.errors import Conflict, NetworkError, NotFound, TorrentMismatch
from distrib.swarm.hashes import fetch_torrent
from distrib.swarm.merkle import piece_hash
from distrib.swarm.pieces import coarser, piece_hashes, piece_leaves
from distrib.swarm.torrent import TorrentInfo
from distrib.trust.sitelist import SiteImage

log = structlog.get_logger(__name__)

ASK_LIMIT_S: Final = 15.0
"""Without the layer by then, everything is fetched."""

ASK_AGAIN_S: Final = 0.3
"""A parent may be asking for the layer itself."""

BASES_MAX: Final = 3
"""Versions looked at, newest first."""


@dataclass(frozen=True)
class Older:
    """A version that is held: where its volume is, and its torrent."""

    record: VolumeRecord
    path: Path
    hashes: Sequence[bytes]


@dataclass
class HeadStart:
    """Pieces that need not be fetched. The volumes at ``paths`` are held until ``hold`` is left."""

    runs: tuple[Run, ...]
    paths: dict[str, Path]
    hold: ExitStack = field(repr=False)

    @property
    def pieces(self) -> list[int]:
        return [run.piece + at for run in self.runs for at in range(run.count)]


class PreviousVersions:
    """Finds head starts for pulls. ``address`` is connected from; rates in bytes per second."""

    def __init__(
        self,
        cache: Cache,
        torrents: TorrentFiles,
        *,
        address: str,
        link_bps: int,
        disk: DiskRate,
        monotonic: Callable[[], float] = time.monotonic,
    ) -> None:
        self.disk = disk
        self._cache = cache
        self._torrents = torrents
        self._address = address
        self._link_bps = link_bps
        self._monotonic = monotonic

    async def head_start(
        self,
        image: SiteImage,
        info: TorrentInfo,
        raw_info: bytes,
        target: WriteTarget,
        *,
        have: Sequence[bool],
        plan: Callable[[], Plan],
        download_bps: int,
    ) -> HeadStart | None:
        """What to copy for a pull that has the pieces ``have``; None where fetching is as good.

        The caller leaves its ``hold``."""
        missing = [index for index in range(info.pieces) if not (have and have[index])]
        missing_bytes = sum(map(info.piece_size, missing))
        rates = Rates(min(self._link_bps, download_bps or self._link_bps), self.disk.bps)
        with ExitStack() as stack:
            olders = await asyncio.to_thread(self._olders, image, info, stack)
            if not olders:
                return None
            shares = await asyncio.to_thread(_shares_blocks, olders[0], target, info, missing)

            def worth(copy_bytes: int) -> bool:
                return is_worth_it(
                    info.size_bytes, missing_bytes, copy_bytes, rates, shares_blocks=shares
                )

            if not worth(missing_bytes):
                log.info("no-head-start", image=image.ref, why="fetching is as fast as copying")
                return None
            wanted = await self._layer(image, info, raw_info, plan)
            if wanted is None:
                return None
            bases = [Base(older.record.infohash, older.hashes) for older in olders]
            runs = await asyncio.to_thread(match, wanted, missing, bases)
            copy_bytes = sum(
                info.piece_size(run.piece + at) for run in runs for at in range(run.count)
            )
            good = worth(copy_bytes)
            log.info(
                "head-start",
                image=image.ref,
                copy_bytes=copy_bytes,
                fetch_bytes=missing_bytes - copy_bytes,
                shares_blocks=shares,
                taken=good,
            )
            if not good:
                return None
            used = {run.base for run in runs}
            paths = {o.record.infohash: o.path for o in olders if o.record.infohash in used}
            return HeadStart(runs, paths, stack.pop_all())

    def bad_bases(
        self, runs: Sequence[Run], bad: Collection[int], info: TorrentInfo, torrent: bytes
    ) -> list[str]:
        """The versions in whose volumes the pieces are ``bad`` too that were copied from them."""
        wanted = piece_hashes(torrent, info)
        found = []
        for run in runs:
            mine = [at for at in range(run.count) if run.piece + at in bad]
            if not mine or run.base in found:
                continue
            with suppress(NotFound, Conflict), self._cache.holding(run.base) as volume:
                if _any_bad(volume.path, run, mine, info, wanted):
                    found.append(run.base)
        return found

    def _olders(self, image: SiteImage, info: TorrentInfo, stack: ExitStack) -> list[Older]:
        """Held until ``stack`` is closed, newest first."""
        if info.pieces == 1:
            return []
        records = [holding.record for holding in self._cache.snapshot().holdings]
        mine = [
            record
            for record in records
            if record.identifier == image.identifier
            and record.infohash != image.infohash
            and record.state is State.READY
            and not record.damaged
        ]
        found: list[Older] = []
        for record in sorted(mine, key=lambda record: record.since, reverse=True)[:BASES_MAX]:
            hashes = self._hashes(record, info.piece_bytes)
            if hashes is None:
                continue
            with suppress(Conflict, NotFound):
                volume = stack.enter_context(self._cache.holding(record.infohash))
                found.append(Older(record, volume.path, hashes))
        return found

    def _hashes(self, record: VolumeRecord, piece_bytes: int) -> Sequence[bytes] | None:
        """Of a version, in pieces of ``piece_bytes``; None where its own are larger."""
        known = self._torrents.with_layers(record)
        if known is None or known[0].piece_bytes > piece_bytes or known[0].pieces == 1:
            return None
        info, torrent = known
        hashes = piece_hashes(torrent, info)
        return coarser(hashes, piece_bytes=info.piece_bytes, wanted_bytes=piece_bytes)

    async def _layer(
        self, image: SiteImage, info: TorrentInfo, raw_info: bytes, plan: Callable[[], Plan]
    ) -> list[bytes] | None:
        """The new version's piece hashes: known from an earlier start, or asked from peers."""
        known = await asyncio.to_thread(self._torrents.with_layers, image)
        torrent = known[1] if known else await self._asked(info, raw_info, plan)
        if torrent is None:
            log.info("no-head-start", image=image.ref, why="no peer gave the piece hashes")
            return None
        if known is None:
            await asyncio.to_thread(self._torrents.keep_layers, image, torrent)
        return await asyncio.to_thread(piece_hashes, torrent, info)

    async def _asked(
        self, info: TorrentInfo, raw_info: bytes, plan: Callable[[], Plan]
    ) -> bytes | None:
        until_s = self._monotonic() + ASK_LIMIT_S
        stage = Stage.PARENTS
        liars: set[str] = set()
        while self._monotonic() < until_s:
            for peer in plan().upto(stage):
                if peer.address in liars:
                    continue
                try:
                    async with asyncio.timeout(max(until_s - self._monotonic(), 0.1)):
                        return await fetch_torrent(
                            raw_info, info, peer.address, peer.port, own_address=self._address
                        )
                except TorrentMismatch as error:
                    log.warning("wrong-piece-hashes", peer=peer.node, why=error.message)
                    liars.add(peer.address)
                except (NetworkError, TimeoutError):
                    continue
            stage = Stage(min(stage + 1, Stage.EVERYBODY))
            await asyncio.sleep(ASK_AGAIN_S)
        return None


def _any_bad(
    path: Path, run: Run, places: Sequence[int], info: TorrentInfo, wanted: Sequence[bytes]
) -> bool:
    """Whether one of the pieces at ``places`` of a run is bad, or unreadable, in its source."""
    try:
        with path.open("rb") as file:
            for at in places:
                file.seek((run.base_piece + at) * info.piece_bytes)
                data = file.read(info.piece_size(run.piece + at))
                if piece_hash(data, leaves=piece_leaves(info)) != wanted[run.piece + at]:
                    return True
    except OSError:
        return True
    return False


def _shares_blocks(
    older: Older, target: WriteTarget, info: TorrentInfo, missing: Sequence[int]
) -> bool:
    """Whether the file system shares blocks: tried on a piece that is missing anyway."""
    whole = [index for index in missing if info.piece_size(index) == info.piece_bytes]
    if not whole:
        return False
    try:
        with older.path.open("rb") as file:
            at = whole[0] * info.piece_bytes
            return share_range(file.fileno(), 0, info.piece_bytes, target.fd, at)
    except OSError:
        return False
