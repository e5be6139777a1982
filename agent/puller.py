"""Makes what the cache holds what the site desires: starts, steers, ends and resumes pulls.

One task looks at the whole whenever something may have changed (a site list, a desired state, a
torrent, the end of a pull) and does what is missing; doing it twice is harmless. Nothing is ever
evicted because of a message.
"""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import Callable, Coroutine, Iterable
from dataclasses import dataclass
from datetime import datetime

import structlog

from agent.authority import Authority
from agent.cache.records import UNDER_WAY, ImageVersion, VolumeRecord
from agent.memory import give_back
from agent.pull.further import means_of, plan_of
from agent.pull.parts import PullParts
from agent.pull.pulling import Plan
from agent.pull.running import RunningPull
from agent.seeding import Seeding, is_told_in_stripes
from distrib.bus.messages import Caps, DesiredImage, NodeReason, Orders, State
from distrib.errors import Conflict, DistribError, NoSpace, NotReady, TorrentMismatch
from distrib.trust.sitelist import SiteImage

log = structlog.get_logger(__name__)

LOOK_AGAIN_S = 30.0
"""Faults that nobody announces the end of (a disk, a peer's torrent) are looked at this often."""


@dataclass(frozen=True)
class Waiting:
    """An image that is desired and cannot be begun, or not be gone on with."""

    image: DesiredImage
    reason: NodeReason
    text: str
    since: datetime


class Puller:
    """Owns the pulls and the seeding transfers of a node.

    ``want_torrent`` subscribes to a torrent's topic; ``changed`` hears of every change.
    """

    def __init__(
        self,
        parts: PullParts,
        authority: Authority,
        *,
        own_caps: Caps,
        want_torrent: Callable[[str], None],
        changed: Callable[[], None],
        clock: Callable[[], datetime],
    ) -> None:
        self.pulls: dict[str, RunningPull] = {}
        self.seeding = Seeding(parts.sessions)
        self.waiting: dict[str, Waiting] = {}
        self._parts = parts
        self._authority = authority
        self._own_caps = own_caps
        self._want_torrent = want_torrent
        self._changed = changed
        self._clock = clock
        self._tasks: dict[str, asyncio.Task[None]] = {}
        self._tried: dict[str, str | None] = {}
        self._wake = asyncio.Event()

    def wake(self) -> None:
        """Something may have changed: look again soon."""
        self._wake.set()

    async def run(self) -> None:
        """Look again at every wake-up, until cancelled; then all pulls are ended and kept."""
        try:
            while True:
                with contextlib.suppress(TimeoutError):
                    async with asyncio.timeout(LOOK_AGAIN_S):
                        await self._wake.wait()
                self._wake.clear()
                await self._guarded("site list", self._reconcile())
                self._changed()
        finally:
            await self._end_all()

    def offer_torrent(self, infohash: str, info: bytes) -> None:
        """An info dictionary arrived. Raises TorrentMismatch; what is in force then stays."""
        image = self._authority.image(infohash)
        if image is None:
            return
        try:
            self._parts.torrents.accept(info, image)
        except TorrentMismatch as error:
            self._authority.refused[error.code] += 1
            if self._parts.torrents.info(image) is None:
                self._hold_back(infohash, NodeReason.TORRENT_MISMATCH, error.message)
            self._changed()
            raise
        self.waiting.pop(infohash, None)
        self.wake()

    async def obey(self, orders: Orders) -> None:
        """Carry out orders that were accepted."""
        for order in orders.orders:
            pull = self.pulls.get(order.infohash)
            if order.kind == "cancel":
                await self.cancel(order.infohash, NodeReason.CANCELLED, "ordered")
            elif order.kind == "reparent" and pull is not None:
                pull.follow_plan(Plan(parents=order.parents))
            elif order.kind == "tokens" and pull is not None:
                pull.grant(order)

    async def cancel(self, infohash: str, reason: NodeReason, text: str) -> None:
        """End a pull; what is on disk stays."""
        record = await asyncio.to_thread(self._parts.cache.record, infohash)
        try:
            # First of all: the next look would begin again what is under way and has no task.
            if record is not None and record.state in UNDER_WAY:
                await asyncio.to_thread(self._parts.cache.fail, infohash, reason, text)
        finally:
            task = self._tasks.pop(infohash, None)
            if task is not None:
                task.cancel()
                await asyncio.gather(task, return_exceptions=True)
        self._changed()

    def node_at(self, infohash: str, address: str) -> str | None:
        """The name of a peer of ours, as the relay plan calls the one at this address."""
        image = self._desired_image(infohash)
        if image is None:
            return None
        fed = (*image.children, *image.second_children)
        peers = (*image.parents, *image.fallbacks, *image.neighbours, *fed)
        return next((peer.node for peer in peers if peer.address == address), None)

    async def let_go(self, infohash: str) -> None:
        """Stop serving a volume, so that it can be repaired or evicted."""
        await self.seeding.close(infohash)

    # -- one look -------------------------------------------------------------------------------

    async def _reconcile(self) -> None:
        await self._follow_site_list()
        desired = self._authority.desired
        if desired is None or self._authority.site_list is None:
            await self._seed_all()
            return
        wanted = {image.infohash for image in desired.images}
        await asyncio.to_thread(self._parts.cache.set_desired, wanted)
        for infohash in list(self._tasks):
            if infohash not in wanted:
                await self.cancel(infohash, NodeReason.CANCELLED, "no longer desired")
        for infohash in set(self.waiting) - wanted:
            del self.waiting[infohash]
        for image in sorted(desired.images, key=lambda image: -image.priority):
            await self._guarded(image.infohash, self._fulfil(image))
        await self._give_up_strays(wanted)
        await self._seed_all()

    async def _guarded(self, what: str, step: Coroutine[object, object, None]) -> None:
        """One image's fault must not keep the others; it is looked at again later."""
        try:
            await step
        except DistribError as error:
            log.warning("reconcile-failed", about=what, code=error.code, why=error.message)

    async def _give_up_strays(self, wanted: set[str]) -> None:
        """Fail what nobody wants and nobody pulls: else it would never be evicted."""
        for holding in (await asyncio.to_thread(self._parts.cache.snapshot)).holdings:
            record = holding.record
            stray = record.infohash not in wanted and record.infohash not in self._tasks
            if stray and record.state in UNDER_WAY:
                reason = record.reason
                if reason is None or reason is NodeReason.RESUMED:
                    reason = NodeReason.CANCELLED
                fail = self._parts.cache.fail
                await asyncio.to_thread(fail, record.infohash, reason, "no longer desired")

    async def _follow_site_list(self) -> None:
        """Block what was revoked, give back what was blocked in error."""
        if self._authority.site_list is None:
            return
        cache = self._parts.cache
        for holding in (await asyncio.to_thread(cache.snapshot)).holdings:
            record = holding.record
            entry = self._authority.entry(record.identifier, record.version, record.infohash)
            listed = entry is not None
            blocked = record.state is State.BLOCKED or record.reason is NodeReason.REVOKED
            if not listed and not blocked:
                await self._guarded(record.infohash, self._block(record.infohash))
            elif listed and record.state is State.BLOCKED:
                await self._guarded(record.infohash, self._unblock(record.infohash))

    async def _block(self, infohash: str) -> None:
        await self.cancel(infohash, NodeReason.REVOKED, "not on the site list")
        await self.let_go(infohash)
        await asyncio.to_thread(self._parts.cache.block, infohash, "not on the site list")

    async def _unblock(self, infohash: str) -> None:
        await asyncio.to_thread(self._parts.cache.unblock, infohash)

    async def _fulfil(self, wanted: DesiredImage) -> None:
        image = self._authority.entry(wanted.identifier, wanted.version, wanted.infohash)
        if image is None:
            self._hold_back(
                wanted.infohash,
                NodeReason.NOT_ON_SITE_LIST,
                f"the site list does not approve {wanted.identifier}@{wanted.version}",
                wanted,
            )
            return
        pull = self.pulls.get(wanted.infohash)
        if pull is not None:
            pull.use(means_of(wanted))
            pull.follow(plan_of(wanted), self._caps(wanted), self._deadline_s(wanted))
            return
        record = await self._desire(wanted, image)
        await self._let_evicted_go()
        if record.image != image.ref:
            await self._rename(record)
            return
        if record.state not in (State.RESERVED, State.PULLING):
            self.waiting.pop(wanted.infohash, None)
            return
        known = self._parts.torrents.info(image)
        if known is None:
            self._want_torrent(wanted.infohash)
            held = self.waiting.get(wanted.infohash)
            if held is None or held.reason is not NodeReason.TORRENT_MISMATCH:
                self._hold_back(
                    wanted.infohash, NodeReason.WAITING_FOR_TORRENT, "no torrent yet", wanted
                )
            return
        self.waiting.pop(wanted.infohash, None)
        await self.let_go(wanted.infohash)
        info, raw = known
        pull = RunningPull(
            image,
            info,
            raw,
            parts=self._parts,
            plan=plan_of(wanted),
            caps=self._caps(wanted),
            deadline_s=self._deadline_s(wanted),
            means=means_of(wanted),
        )
        self.pulls[wanted.infohash] = pull
        self._tasks[wanted.infohash] = asyncio.create_task(
            self._pull(pull), name=f"pull {image.ref}"
        )

    async def _let_evicted_go(self) -> None:
        """Making room may have evicted what is still served: close it, so that the disk has it."""
        for infohash in self.seeding:
            if await asyncio.to_thread(self._parts.cache.record, infohash) is None:
                await self.let_go(infohash)

    async def _rename(self, record: VolumeRecord) -> None:
        """The same bytes under another name: the old name's volume makes way, then it is pulled."""
        await self.let_go(record.infohash)
        await asyncio.to_thread(self._parts.cache.evict, record.infohash, force=True)
        self.wake()

    async def _desire(self, wanted: DesiredImage, image: SiteImage) -> VolumeRecord:
        cache = self._parts.cache
        # A failed volume is tried again once for every rollout that asks for it.
        tried = self._tried.get(wanted.infohash, "")
        retry = tried != (wanted.rollout or "")
        self._tried[wanted.infohash] = wanted.rollout or ""
        return await asyncio.to_thread(
            cache.desire,
            ImageVersion(
                infohash=image.infohash,
                identifier=image.identifier,
                version=image.version,
                sha512=image.sha512,
                size_bytes=image.size_bytes,
                piece_bytes=image.piece_bytes,
            ),
            active=wanted.active,
            pinned=wanted.pinned,
            retry=retry,
        )

    async def _pull(self, pull: RunningPull) -> None:
        infohash = pull.image.infohash
        self._changed()
        try:
            transfer = await pull.run()
            if transfer is not None:
                self.seeding.take(infohash, transfer, pull.by_transport, pull.bad_peers)
        except (Conflict, NotReady) as error:
            # Evicted or revoked under its feet: the record says which.
            log.info("pull-overtaken", image=pull.image.ref, why=error.message)
        except DistribError as error:
            log.warning("pull-failed", image=pull.image.ref, code=error.code, why=error.message)
            full = isinstance(error, NoSpace)
            reason = NodeReason.NO_SPACE if full else NodeReason.STORAGE_FAILED
            await self._fail(infohash, reason, error.message)
        except Exception as error:
            log.exception("bug", image=pull.image.ref)
            await self._fail(infohash, NodeReason.INTERNAL, f"{type(error).__name__}: {error}")
        finally:
            self.pulls.pop(infohash, None)
            self._tasks.pop(infohash, None)
            self._changed()
            # A rollout that asked meanwhile has its own say now.
            self.wake()
            await asyncio.to_thread(give_back)

    async def _fail(self, infohash: str, reason: NodeReason, text: str) -> None:
        try:
            await asyncio.to_thread(self._parts.cache.fail, infohash, reason, text)
        except DistribError as error:
            log.warning("not-recorded", infohash=infohash, code=error.code, why=error.message)

    async def _seed_all(self) -> None:
        await self.seeding.look()
        for holding in (await asyncio.to_thread(self._parts.cache.snapshot)).holdings:
            record = holding.record
            image = self._authority.entry(record.identifier, record.version, record.infohash)
            serving = self.seeding.get(record.infohash)
            if serving is not None and serving.fault is not None:
                log.warning("not-served", image=record.image, why=serving.fault.message)
                await self.let_go(record.infohash)
                serving = None
            idle = serving is None and record.infohash not in self.pulls
            good = record.state is State.READY and not record.damaged
            if good and image is not None and idle:
                await self._guarded(record.infohash, self._seed(record, image))

    async def _seed(self, record: VolumeRecord, image: SiteImage) -> None:
        known = self._parts.torrents.with_layers(image) or self._parts.torrents.info(image)
        if known is None:
            self._want_torrent(record.infohash)
            return
        volume = await asyncio.to_thread(self._parts.cache.volume, record.infohash)
        wanted = self._desired_image(record.infohash)
        self.seeding.open(
            *known,
            volume.path.parent,
            "posix" if volume.block else "pread",
            upload_bps=self._own_caps.upload_bps,
            striped=is_told_in_stripes(wanted, record.since, self._clock()),
        )

    # -- details --------------------------------------------------------------------------------

    def _hold_back(
        self, infohash: str, reason: NodeReason, text: str, image: DesiredImage | None = None
    ) -> None:
        known = self.waiting.get(infohash)
        image = image or (known.image if known else self._desired_image(infohash))
        if image is None or (known and (known.reason, known.text) == (reason, text)):
            return
        self.waiting[infohash] = Waiting(image, reason, text, self._clock())

    def _desired_image(self, infohash: str) -> DesiredImage | None:
        desired = self._authority.desired
        images: Iterable[DesiredImage] = desired.images if desired else ()
        return next((image for image in images if image.infohash == infohash), None)

    def _caps(self, wanted: DesiredImage) -> Caps:
        return Caps(
            download_bps=_stricter(wanted.caps.download_bps, self._own_caps.download_bps),
            upload_bps=_stricter(wanted.caps.upload_bps, self._own_caps.upload_bps),
        )

    def _deadline_s(self, wanted: DesiredImage) -> float | None:
        if wanted.deadline is None:
            return None
        left_s = (wanted.deadline - self._clock()).total_seconds()
        return asyncio.get_running_loop().time() + left_s

    async def _end_all(self) -> None:
        tasks = list(self._tasks.values())
        for task in tasks:
            task.cancel()
        with contextlib.suppress(asyncio.CancelledError):
            await asyncio.gather(*tasks, return_exceptions=True)
        await self.seeding.close_all()


def _stricter(one_bps: int, other_bps: int) -> int:
    """The lower of two caps, where 0 is none."""
    return min(filter(None, (one_bps, other_bps)), default=0)
