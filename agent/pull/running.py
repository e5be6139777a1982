"""A pull under way on this node: volume, transfer, sources and outcome held together.

It runs as one task. Whatever ends it, libtorrent lets go of the volume before the volume is
closed, and what was fetched stays on disk for the next start.
"""

from __future__ import annotations

import asyncio
import contextlib
from collections import Counter
from collections.abc import Sequence
from dataclasses import replace

import structlog

from agent.cache.store import WriteTarget
from agent.finishing import done_before, to_the_end
from agent.pull.copying import Copying
from agent.pull.delta import Run
from agent.pull.further import Further, Means, Pulled
from agent.pull.parts import PullParts
from agent.pull.pull import Pull
from agent.pull.pulling import Plan
from agent.pull.resume import Resume
from agent.pull.source import Source
from agent.pull.stripes import STRIPES, Store, Striped, close, second_of, unwanted_of
from agent.pull.swarm import SwarmSource
from distrib.bus.messages import Caps, GrantTokens, NodeReason, State, TokensWanted
from distrib.errors import DigestMismatch, DistribError, NoSpace, StorageFailed, TimedOut
from distrib.swarm.pieces import check_volume
from distrib.swarm.session import SwarmSession
from distrib.swarm.torrent import TorrentInfo
from distrib.trust.sitelist import SiteImage

log = structlog.get_logger(__name__)

_REASONS: tuple[tuple[type[DistribError], NodeReason], ...] = (
    (DigestMismatch, NodeReason.DIGEST_MISMATCH),
    (NoSpace, NodeReason.NO_SPACE),
    (StorageFailed, NodeReason.STORAGE_FAILED),
    (TimedOut, NodeReason.DEADLINE),
)


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
        deadline_s: float | None = None,
        means: Means | None = None,
    ) -> None:
        self.image = image
        self.transfer: Store | None = None
        self.pull: Pull | None = None
        self._info = info
        self._raw_info = raw_info
        self._parts = parts
        self._plan = plan
        self._means = means or Means(plan)
        self.brought, self.bad_peers = Counter[str](), Counter[str]()
        self._opens_after_ms = self._means.opens_after_ms
        self._caps = caps
        self._deadline_s = deadline_s
        self._swarm: tuple[SwarmSource, ...] = ()
        self._striped = False
        self._second: SwarmSession | None = None
        self._reshape = asyncio.Event()
        self._reopen = asyncio.Event()
        self._further: Further | None = None
        self._counted = (0, 0, 0)

    @property
    def reason(self) -> NodeReason | None:
        """Why pieces do not come, or not by the swarm: of the stripe that stands."""
        return self._standing[0]

    @property
    def text(self) -> str:
        return self._standing[1]

    @property
    def _standing(self) -> tuple[NodeReason | None, str]:
        further = self._further.standing if self._further else (None, "")
        return further if any(further) else self._swarm_standing()

    def _swarm_standing(self) -> tuple[NodeReason | None, str]:
        return next(((one.reason, one.text) for one in self._swarm if one.reason), (None, ""))

    @property
    def by_transport(self) -> dict[str, int]:
        """Bytes that each transport has brought since the pull began."""
        if self.pull is None:
            return {}
        own = {"swarm": self.pull.fetched_bytes, "previous-version": self.pull.copied_bytes}
        return {name: count for name, count in (own | self.brought).items() if count}

    def use(self, means: Means) -> None:
        """Let pieces come by these means; leave that was given stays."""
        before = self._swarming
        self._means = replace(means, tokens=self._means.tokens)
        if self._swarming is not before:
            self._reopen.set()

    def grant(self, tokens: GrantTokens) -> None:
        """Leave to fetch by another transport; the newest of each counts."""
        others = (one for one in self._means.tokens if one.transport is not tokens.transport)
        self._means = replace(self._means, tokens=(*others, tokens))

    def follow_plan(self, plan: Plan) -> None:
        """The same with another plan only."""
        self.follow(plan, self._caps, self._deadline_s)

    def follow(self, plan: Plan, caps: Caps, deadline_s: float | None) -> None:
        """Fetch by another plan, within other caps, until another deadline from now on."""
        self._plan, self._deadline_s = plan, deadline_s
        if plan.stripes == STRIPES and not self._striped and self._second is not None:
            self._reshape.set()
        for stripe, source in enumerate(self._swarm if self._swarming else ()):
            source.follow(plan.of_stripe(stripe) if self._striped else plan, deadline_s=deadline_s)
        if caps != self._caps:
            self._caps = caps
            self._limit()

    async def run(self) -> Store | None:
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
            resumed = await asyncio.to_thread(
                self._parts.known_of, self.image, self._info, target, fresh=fresh
            )
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
            pull, sources = await self._open(target, resumed, unwanted=head_start.pieces)
            copying = Copying(
                self._info,
                head_start.runs,
                head_start.paths,
                target.fd,
                on_copied=pull.on_copied,
                disk=self._parts.previous.disk,
            )
            await self._fetched(pull, [*sources, copying], self._reopen)
            await pull.checkpoint()
            resumed = pull.noted()
            await self._close()
        return resumed, head_start.runs

    async def _fetch(self, target: WriteTarget, resumed: Resume | None) -> None:
        pull, sources = await self._open(target, resumed)
        while not await self._fetched(pull, sources, self._reopen, self._reshape):
            log.info("pull-opened-anew", image=self.image.ref)
            await pull.checkpoint()
            await pull.transfer.count()
            resumed = pull.noted()
            await self._close()
            pull, sources = await self._open(target, resumed)
        self._swarm = ()
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

    async def _fetched(self, pull: Pull, sources: Sequence[Source], *news: asyncio.Event) -> bool:
        """Whether nothing is missing; False when one of ``news`` came before."""
        return await done_before(pull.fetch(sources), news, name=f"fetch {self.image.ref}")

    async def _open(
        self, target: WriteTarget, resumed: Resume | None, *, unwanted: Sequence[int] = ()
    ) -> tuple[Pull, tuple[Source, ...]]:
        infohash = self.image.infohash
        sessions = [self._parts.sessions[target.backend]]
        self._second = self._parts.sessions.get(second_of(target.backend))
        if self._plan.stripes == STRIPES and self._second is not None:
            sessions.append(self._second)
        self._striped = len(sessions) == STRIPES
        self._reshape.clear()
        self._reopen.clear()
        known = await asyncio.to_thread(self._parts.torrents.with_layers, self.image)
        after_ms, self._opens_after_ms = self._opens_after_ms, 0
        await asyncio.sleep(after_ms / 1000)
        have = resumed.have if resumed else None
        plans = [self._plan.of_stripe(i) for i in range(STRIPES)] if self._striped else [self._plan]
        transfers = []
        for stripe, session in enumerate(sessions):
            missing = unwanted
            if self._striped:
                missing = unwanted_of(stripe, self._info.pieces, have, unwanted)
            transfers.append(
                session.add(
                    self._info,
                    known[1] if known else self._raw_info,
                    target.directory,
                    have=have,
                    unwanted=missing,
                    peers=self._first_peers(plans[stripe], stripe),
                )
            )
        self.transfer = store = Striped(transfers) if self._striped else transfers[0]
        self._limit()
        self.pull = Pull(
            store,
            target,
            sha512=self.image.sha512,
            raw_info=self._raw_info,
            resume_files=self._parts.resume,
            resumed=resumed,
        )
        # One that is made and does not run would leave its transfer's events to pile up unread.
        asked = zip(transfers, plans, strict=True) if self._swarming else ()
        self._swarm = tuple(
            SwarmSource(
                transfer,
                plan,
                deadline_s=self._deadline_s,
                on_parent_lost=lambda lost: self._parts.on_parent_lost(infohash, lost),
                changed=self._parts.changed,
            )
            for transfer, plan in asked
        )
        return self.pull, self._sources(self.pull)

    def _sources(self, pull: Pull) -> tuple[Source, ...]:
        """The swarm, unless another transport is ordered, and what else there is."""
        if not self._parts.makers:
            return self._swarm
        sources: tuple[Source, ...] = self._swarm if self._swarming else ()
        pulled = Pulled(
            self.image,
            self._info,
            self._raw_info,
            means=lambda: replace(self._means, plan=self._plan),
            standing=self._swarm_standing,
            knows_hashes=lambda: self._parts.torrents.with_layers(self.image) is not None,
            learn=self._learn,
            bad_peers=self.bad_peers,
            lost=lambda lost: self._parts.on_parent_lost(self.image.infohash, lost),
            ask=lambda missing, why: self._parts.on_tokens_wanted(
                TokensWanted(infohash=self.image.infohash, missing_pieces=missing, reason=why)
            ),
            deadline_s=lambda: self._deadline_s,
            download_bps=lambda: self._caps.download_bps,
        )
        self._further = Further(
            self._parts.makers,
            pulled,
            swarm_bytes=lambda: pull.transfer.fetched_bytes,
            brought=self.brought,
            stalled_s=self._parts.stalled_s,
        )
        return (*sources, self._further)

    async def _learn(self, torrent: bytes) -> None:
        """Know the piece hashes: what other means bring can be hashed from now on."""
        await asyncio.to_thread(self._parts.torrents.keep_layers, self.image, torrent)
        self._reopen.set()

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

    @property
    def _swarming(self) -> bool:
        """Whether BitTorrent peers are asked: unless another transport is ordered that there is."""
        return self._means.swarm or not self._parts.makers

    def _first_peers(self, plan: Plan, stripe: int) -> list[tuple[str, int]]:
        """Whom to connect to in the same moment: a child that was ready before us was refused, and
        would come again only after a second."""
        peers = (*plan.parents, *self._means.children[stripe]) if self._swarming else ()
        return [(peer.address, peer.port) for peer in peers]

    def _limit(self) -> None:
        if self.transfer is not None:
            self.transfer.limit(
                download_bps=self._caps.download_bps, upload_bps=self._caps.upload_bps
            )

    async def _close(self) -> None:
        self._swarm, self._further = (), None
        store, self.transfer = self.transfer, None
        if store is not None:
            await close(store, self._parts.sessions)
