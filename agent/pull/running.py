"""A pull under way on this node: volume, transfer, sources and outcome held together.

It runs as one task. Whatever ends it, libtorrent lets go of the volume before the volume is
closed, and what was fetched stays on disk for the next start.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
from collections.abc import Awaitable, Callable, Mapping, Sequence
from dataclasses import dataclass, replace

import structlog

from agent.cache.cache import Cache
from agent.cache.store import WriteTarget
from agent.finishing import to_the_end
from agent.pull.copying import Copying
from agent.pull.delta import Run
from agent.pull.previous import PreviousVersions
from agent.pull.pull import Pull
from agent.pull.pulling import ParentLost, Plan
from agent.pull.resume import Resume, ResumeFiles
from agent.pull.swarm import SwarmSource
from agent.pull.torrents import TorrentFiles
from distrib.bus.messages import Caps, NodeReason, Peer, State
from distrib.errors import (
    DigestMismatch,
    DistribError,
    NoSpace,
    StorageFailed,
    TimedOut,
)
from distrib.swarm.pieces import check_volume
from distrib.swarm.session import Backend, SwarmSession
from distrib.swarm.torrent import TorrentInfo
from distrib.swarm.transfer import Transfer
from distrib.trust.sitelist import SiteImage

log = structlog.get_logger(__name__)

_REASONS: tuple[tuple[type[DistribError], NodeReason], ...] = (
    (DigestMismatch, NodeReason.DIGEST_MISMATCH),
    (NoSpace, NodeReason.NO_SPACE),
    (StorageFailed, NodeReason.STORAGE_FAILED),
    (TimedOut, NodeReason.DEADLINE),
)


@dataclass(frozen=True)
class PullParts:
    """What every pull of a node uses. ``sessions`` by libtorrent backend; ``on_damaged`` hears of
    volumes that turned out bad."""

    cache: Cache
    sessions: Mapping[Backend, SwarmSession]
    torrents: TorrentFiles
    resume: ResumeFiles
    previous: PreviousVersions
    on_parent_lost: Callable[[str, ParentLost], None]
    on_damaged: Callable[[str], Awaitable[None]]


class RunningPull:
    """One image version on its way. ``run`` ends when it is ready, failed or cancelled."""

    def __init__(
        self,
        image: SiteImage,
        info: TorrentInfo,
        raw_info: bytes,
        *,
        parts: PullParts,
        plan: Plan,
        caps: Caps,
        children: Sequence[Peer] = (),
        deadline_s: float | None = None,
    ) -> None:
        """``children`` fetch from this node."""
        self.image = image
        self.transfer: Transfer | None = None
        self.pull: Pull | None = None
        self._info = info
        self._raw_info = raw_info
        self._parts = parts
        self._plan = plan
        self._children = children
        self._caps = caps
        self._deadline_s = deadline_s
        self._source: SwarmSource | None = None
        self._counted = (0, 0, 0)

    @property
    def reason(self) -> NodeReason | None:
        """Why pieces do not come, while they do not."""
        return self._source.reason if self._source else None

    def follow_plan(self, plan: Plan) -> None:
        """Fetch by another plan; caps and deadline stay."""
        self.follow(plan, self._caps, self._deadline_s)

    def follow(self, plan: Plan, caps: Caps, deadline_s: float | None) -> None:
        """Fetch by another plan, within other caps, until another deadline from now on."""
        self._plan, self._deadline_s = plan, deadline_s
        if self._source is not None:
            self._source.follow(plan, deadline_s=deadline_s)
        if caps != self._caps:
            self._caps = caps
            self._limit()

    async def run(self) -> Transfer | None:
        """Pull to ``ready`` and return the transfer, which seeds on; None when it failed."""
        try:
            ready = await self._run()
        except BaseException:
            await to_the_end(self._close())
            raise
        if not ready:
            await to_the_end(self._close())
        return self.transfer

    async def _run(self) -> bool:
        infohash = self.image.infohash
        cache, resume = self._parts.cache, self._parts.resume
        before = await asyncio.to_thread(cache.record, infohash)
        await asyncio.to_thread(cache.start_pull, infohash)
        try:
            await self._pull(fresh=before is None or before.state is State.RESERVED)
        except DistribError as error:
            if isinstance(error, DigestMismatch):
                # What is on disk is not what was verified: the bits are worth nothing.
                await asyncio.to_thread(resume.discard, infohash)
            reason = next((r for kind, r in _REASONS if isinstance(error, kind)), None)
            await asyncio.to_thread(
                cache.fail, infohash, reason or NodeReason.INTERNAL, error.message
            )
            return False
        record = await asyncio.to_thread(cache.ready, infohash)
        if record.state is not State.READY:
            return False
        await asyncio.to_thread(resume.discard, infohash)
        return True

    async def _pull(self, *, fresh: bool) -> None:
        infohash = self.image.infohash
        cache = self._parts.cache
        volume = await asyncio.to_thread(cache.volume, infohash)
        store = await asyncio.to_thread(cache.store_of, infohash)
        writing = store.writing(volume)
        target = await asyncio.to_thread(writing.__enter__)
        try:
            resumed = await asyncio.to_thread(self._resumed, target, fresh)
            log.info(
                "pull-begins",
                image=self.image.ref,
                infohash=infohash,
                resumed_pieces=sum(resumed.have) if resumed else 0,
            )
            resumed, copied = await self._copy(target, resumed)
            await self._fetch(target, resumed)
            await self._conclude(target, copied)
        except BaseException as error:
            await self._close()
            with contextlib.suppress(StorageFailed):
                await asyncio.to_thread(writing.__exit__, type(error), error, None)
            raise
        await asyncio.to_thread(writing.__exit__, None, None, None)

    async def _copy(
        self, target: WriteTarget, resumed: Resume | None
    ) -> tuple[Resume | None, tuple[Run, ...]]:
        """Take what older versions have, and fetch the rest beside it, where that is faster."""
        head_start = await self._parts.previous.head_start(
            self.image,
            self._info,
            self._raw_info,
            target,
            have=resumed.have if resumed else (),
            plan=lambda: self._plan,
            download_bps=self._caps.download_bps,
        )
        if head_start is None:
            return resumed, ()
        with head_start.hold:
            pull, source = await self._open(target, resumed, unwanted=head_start.pieces)
            copying = Copying(
                self._info,
                head_start.runs,
                head_start.paths,
                target.fd,
                on_copied=pull.on_copied,
                disk=self._parts.previous.disk,
            )
            await pull.fetch([source, copying])
            await pull.checkpoint()
            resumed = pull.noted()
            await self._close()
        return resumed, head_start.runs

    async def _fetch(self, target: WriteTarget, resumed: Resume | None) -> None:
        """Fetch all that is missing."""
        pull, source = await self._open(target, resumed)
        await pull.fetch([source])
        self._source = None
        counts = (pull.fetched_bytes, pull.wasted_bytes, pull.copied_bytes)
        fetched, wasted, copied = (
            now - before for now, before in zip(counts, self._counted, strict=True)
        )
        self._counted = counts
        await asyncio.to_thread(
            self._parts.cache.to_verifying,
            self.image.infohash,
            fetched_bytes=fetched,
            wasted_bytes=wasted,
            copied_bytes=copied,
        )

    async def _open(
        self, target: WriteTarget, resumed: Resume | None, *, unwanted: Sequence[int] = ()
    ) -> tuple[Pull, SwarmSource]:
        infohash = self.image.infohash
        session = self._parts.sessions[target.backend]
        known = await asyncio.to_thread(self._parts.torrents.with_layers, self.image)
        self.transfer = session.add(
            self._info,
            known[1] if known else self._raw_info,
            target.directory,
            have=resumed.have if resumed else None,
            unwanted=unwanted,
            peers=self._first_peers,
        )
        self._limit()
        self.pull = Pull(
            self.transfer,
            target,
            sha512=self.image.sha512,
            raw_info=self._raw_info,
            resume_files=self._parts.resume,
            resumed=resumed,
        )
        self._source = SwarmSource(
            self.transfer,
            self._plan,
            deadline_s=self._deadline_s,
            on_parent_lost=lambda lost: self._parts.on_parent_lost(infohash, lost),
        )
        return self.pull, self._source

    async def _conclude(self, target: WriteTarget, copied: tuple[Run, ...]) -> None:
        """Have SHA-512 checked. Copies that are bad are found by their hashes and fetched."""
        assert self.pull is not None  # noqa: S101 - it was fetched
        try:
            torrent = await self.pull.conclude()
        except DigestMismatch as error:
            mended = await self._without_bad_pieces(target, copied)
            if mended is None:
                raise
            log.warning("bad-pieces-fetched", image=self.image.ref, why=error.message)
            await self._close()
            await asyncio.to_thread(self._parts.cache.start_pull, self.image.infohash)
            await self._fetch(target, mended)
            torrent = await self.pull.conclude()
        await asyncio.to_thread(self._parts.torrents.keep_layers, self.image, torrent)

    async def _without_bad_pieces(
        self, target: WriteTarget, copied: tuple[Run, ...]
    ) -> Resume | None:
        """What is there without the pieces that are bad; None when all are good."""
        assert self.pull is not None  # noqa: S101 - it was fetched
        before = self.pull.noted()
        known = await asyncio.to_thread(self._parts.torrents.with_layers, self.image)
        if known is None:
            return None
        torrent = known[1]
        have = await asyncio.to_thread(lambda: tuple(check_volume(target.fd, torrent, self._info)))
        bad = {index for index, good in enumerate(have) if not good}
        if not bad:
            return None
        find = self._parts.previous.bad_bases
        for base in await asyncio.to_thread(find, copied, bad, self._info, torrent):
            await self._parts.on_damaged(base)
        mended = replace(before, have=have)
        await asyncio.to_thread(self._parts.resume.save, self.image.infohash, mended)
        return mended

    def _resumed(self, target: WriteTarget, fresh: bool) -> Resume | None:
        """What is known to be on disk: from the resume file, else by hashing the volume."""
        if fresh:
            self._parts.resume.discard(self.image.infohash)
            return None
        resumed = self._parts.resume.load(self.image.infohash, self._info.pieces)
        if resumed is not None:
            return resumed
        layers = self._parts.torrents.with_layers(self.image)
        if layers is None:
            return None
        # A volume that is repaired: the page cache may hold good bytes over the disk's bad ones.
        os.posix_fadvise(target.fd, 0, 0, os.POSIX_FADV_DONTNEED)
        have = tuple(check_volume(target.fd, layers[1], self._info))
        log.info("volume-checked", infohash=self.image.infohash, good=sum(have), of=len(have))
        return Resume(have)

    @property
    def _first_peers(self) -> list[tuple[str, int]]:
        """Whom to connect to in the same moment: a child that was ready before us was refused, and
        would come again only after a second."""
        peers = (*self._plan.parents, *self._children)
        return [(peer.address, peer.port) for peer in peers]

    def _limit(self) -> None:
        if self.transfer is not None:
            self.transfer.limit(
                download_bps=self._caps.download_bps, upload_bps=self._caps.upload_bps
            )

    async def _close(self) -> None:
        self._source = None
        transfer, self.transfer = self.transfer, None
        if transfer is not None:
            for session in self._parts.sessions.values():
                await session.remove(transfer)
