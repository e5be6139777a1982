"""Sources beside the swarm: which of them run for a pull, and when (docs/formats/protocols.md).

A *maker* makes one kind of source (tsunami, HTTP ranges, a mounted path) for a pull, or says that
it cannot. A *policy* says which kinds shall run now; ``Further`` starts and stops them, lends each
a sink that counts what it brings, and tries one that failed again later. All of them offer pieces
to the same verified store as the swarm: they may bring the same piece, never a wrong one.
"""

from __future__ import annotations

import asyncio
from collections import Counter
from collections.abc import Awaitable, Callable, Collection, Sequence
from dataclasses import dataclass, field, replace
from typing import Final, Protocol

import structlog

from agent.pull.pace import Pace
from agent.pull.pulling import ParentLost, Plan
from agent.pull.source import PieceSink, Source
from distrib.bus.messages import DesiredImage, GrantTokens, NodeReason, Peer, Transport
from distrib.errors import DistribError, TimedOut
from distrib.swarm.torrent import TorrentInfo
from distrib.trust.sitelist import SiteImage

log = structlog.get_logger(__name__)

LOOK_S: Final = 0.5
TRY_AGAIN_S: Final = 10.0

STALLED_S: Final = 5.0
"""A swarm that has brought nothing for so long is helped, and further leave is asked for as often,
where the settings say nothing else (``sources.stalled_s``)."""

FREE: Final = frozenset({"path"})
"""What brings nothing upon the seeder needs no leave."""

HELPED: Final = 2
"""Who helps is kept for so many times as long at least: what it opened has cost something."""


@dataclass(frozen=True)
class Means:
    """What the site says of a pull's transport; ``tokens`` the newest leave, by its transport.

    ``children`` fetch from this node, by stripe: they are connected to like its parents, for the
    first time ``opens_after_ms`` after the order."""

    plan: Plan = field(default_factory=Plan)
    transport: Transport = Transport.SWARM
    web_seeds: tuple[str, ...] = ()
    tokens: tuple[GrantTokens, ...] = ()
    children: tuple[tuple[Peer, ...], ...] = ((), ())
    opens_after_ms: int = 0

    @property
    def swarm(self) -> bool:
        """Whether pieces may come from BitTorrent peers."""
        return self.transport is not Transport.TSUNAMI


def plan_of(wanted: DesiredImage) -> Plan:
    """The peers of an order."""
    return Plan(wanted.parents, wanted.fallbacks, wanted.neighbours, wanted.stripes)


def means_of(wanted: DesiredImage) -> Means:
    """All that an order says of how pieces may come."""
    return Means(
        plan_of(wanted),
        wanted.transport,
        wanted.web_seeds,
        children=(wanted.children, wanted.second_children),
        opens_after_ms=wanted.opens_after_ms,
    )


async def _nothing_to_learn(_: bytes) -> None:
    return


@dataclass(frozen=True)
class Pulled:
    """The pull that a source is made for: what holds now of its ``means``, its swarm's
    ``standing``, its deadline and its cap. ``learn`` takes a torrent with the piece hashes, where
    these are not known; the pull is opened anew then. ``ask`` asks the controller for leave."""

    image: SiteImage
    info: TorrentInfo
    raw_info: bytes
    means: Callable[[], Means]
    standing: Callable[[], tuple[NodeReason | None, str]] = lambda: (None, "")
    knows_hashes: Callable[[], bool] = lambda: True
    learn: Callable[[bytes], Awaitable[None]] = _nothing_to_learn
    bad_peers: Counter[str] = field(default_factory=Counter)
    lost: Callable[[ParentLost], None] = lambda _: None
    ask: Callable[[int, NodeReason], None] = lambda _missing, _why: None
    deadline_s: Callable[[], float | None] = lambda: None
    download_bps: Callable[[], int] = lambda: 0


class SourceMaker(Protocol):
    """Makes one kind of source. ``name`` is that of its sources."""

    @property
    def name(self) -> str: ...

    def make(self, pulled: Pulled) -> Source | None:
        """A source for this pull by what its means say now; None: this kind has nothing to offer.

        Called in the loop each time that the kind is to run; must not block."""
        ...

    async def close(self) -> None:
        """No source will be made any more: end what they shared."""
        ...


@dataclass(frozen=True)
class Standing:
    """How a pull stands: seconds since the swarm brought something, and since which the kinds
    that run have run; after how many of silence it is stalled."""

    means: Means
    kinds: tuple[str, ...]
    swarm_silent_s: float
    running_s: dict[str, float] = field(default_factory=dict)
    stalled_s: float = STALLED_S


Policy = Callable[[Standing], Collection[str]]


def by_transport(standing: Standing) -> Collection[str]:
    """The policy in force: what is ordered, and whatever there is leave for (``tokens``); with
    ``auto`` that, and what needs no leave, while the swarm brings nothing."""
    means, kinds = standing.means, set(standing.kinds)
    allowed: set[str] = set()
    for grant in means.tokens:
        allowed |= kinds if grant.transport is Transport.AUTO else {str(grant.transport)}
    if means.transport is Transport.TSUNAMI:
        return ({str(Transport.TSUNAMI)} | allowed | FREE) & kinds
    if means.transport is Transport.SWARM:
        return allowed & kinds
    kept_s = HELPED * standing.stalled_s
    helping = {kind for kind, since_s in standing.running_s.items() if since_s < kept_s}
    if standing.swarm_silent_s >= standing.stalled_s:
        helping |= kinds
    return helping & (allowed | FREE) & kinds


class Counted:
    """A sink that counts the bytes that were kept, under the name of who brought them first:
    ``counted`` are the pieces so far, of all names. ``pace`` holds back who would be faster."""

    def __init__(
        self,
        sink: PieceSink,
        name: str,
        brought: Counter[str],
        *,
        counted: set[int],
        on_kept: Callable[[], None],
        pace: Pace,
    ) -> None:
        self._pace = pace
        self._counted = counted
        self._sink = sink
        self._name = name
        self._brought = brought
        self._on_kept = on_kept

    @property
    def infohash(self) -> str:
        return self._sink.infohash

    @property
    def piece_bytes(self) -> int:
        return self._sink.piece_bytes

    @property
    def size_bytes(self) -> int:
        return self._sink.size_bytes

    def missing(self) -> Sequence[int]:
        return self._sink.missing()

    async def offer(self, index: int, data: bytes) -> bool:
        await self._pace.take(len(data))
        kept = await self._sink.offer(index, data)
        if kept:
            # A piece that comes again has cost as much, and has brought nothing.
            self._on_kept()
            if index not in self._counted:
                self._counted.add(index)
                self._brought[self._name] += len(data)
        return kept

    async def complete(self) -> None:
        await self._sink.complete()


class Further:
    """A source made of sources: runs those that ``policy`` wants, until nothing is missing.

    ``swarm_bytes`` is what the swarm has brought so far; ``brought`` counts what the others do."""

    name = "further"

    def __init__(
        self,
        makers: Sequence[SourceMaker],
        pulled: Pulled,
        *,
        swarm_bytes: Callable[[], int],
        brought: Counter[str],
        policy: Policy = by_transport,
        stalled_s: float = STALLED_S,
    ) -> None:
        self._stalled_s = stalled_s
        self._makers = {maker.name: maker for maker in makers}
        self._pulled = pulled
        self._swarm_bytes = swarm_bytes
        self._brought = brought
        self._counted: set[int] = set()
        self._pace = Pace(pulled.download_bps)
        self._policy = policy
        self._running: dict[str, tuple[asyncio.Task[None], Source, float]] = {}
        self._not_before_s: dict[str, float] = {}
        self._leave: GrantTokens | None = None
        self._left = 0
        self._asked_s = float("-inf")
        self._went_over: tuple[NodeReason | None, str] = (None, "")

    @property
    def standing(self) -> tuple[NodeReason | None, str]:
        """Why pieces come otherwise than by the swarm, or do not come; in words."""
        if not self._running:
            return None, ""
        if self._pulled.means().transport is Transport.AUTO:
            names = ", ".join(sorted(self._running))
            reason, text = self._went_over
            reason = reason or NodeReason.STALLED
            return reason, f"the swarm brings nothing ({text or 'no peers'}): over {names} instead"
        for _, source, _ in self._running.values():
            if (reason := getattr(source, "reason", None)) is not None:
                return reason, str(getattr(source, "text", ""))
        return None, ""

    async def bring(self, sink: PieceSink) -> None:
        """See ``Source.bring``. No failure of a source ends it. Raises TimedOut at the deadline."""
        complete = asyncio.create_task(sink.complete(), name="further: complete")
        try:
            await self._until(complete, sink)
        finally:
            tasks = [complete, *(task for task, _, _ in self._running.values())]
            for task in tasks:
                task.cancel()
            await asyncio.gather(*tasks, return_exceptions=True)
            self._running.clear()

    async def _until(self, complete: asyncio.Task[None], sink: PieceSink) -> None:
        clock = asyncio.get_running_loop().time
        seen_bytes, heard_s = self._swarm_bytes(), clock()
        brought_bytes, brought_s = self._brought.total(), clock()
        while not complete.done():
            now_s = clock()
            deadline_s = self._pulled.deadline_s()
            if deadline_s is not None and now_s >= deadline_s:
                raise TimedOut("the deadline has passed", hint="start it again with more time")
            if self._swarm_bytes() != seen_bytes:
                seen_bytes, heard_s = self._swarm_bytes(), now_s
            if self._brought.total() != brought_bytes:
                brought_bytes, brought_s = self._brought.total(), now_s
            await self._reap(now_s)
            self._take_leave()
            means = self._pulled.means()
            means = replace(means, tokens=(self._leave,) if self._leave and self._left > 0 else ())
            silent_s = now_s - heard_s
            self._ask(means, min(silent_s, now_s - brought_s), len(sink.missing()), now_s)
            running_s = {kind: now_s - since_s for kind, (_, _, since_s) in self._running.items()}
            standing = Standing(means, tuple(self._makers), silent_s, running_s, self._stalled_s)
            wanted = self._policy(standing)
            if wanted and not self._running:
                self._went_over = self._pulled.standing()
            for kind in set(self._running) - set(wanted):
                await self._stop(kind)
            for kind in wanted:
                if kind not in self._running and now_s >= self._not_before_s.get(kind, now_s):
                    self._start(kind, sink, now_s)
            await asyncio.wait({complete}, timeout=LOOK_S)

    def _take_leave(self) -> None:
        """The newest leave counts, and is tried at once. What runs goes on, and follows it: else a
        log-in that takes longer than the time between two leaves would never be done."""
        newest = self._pulled.means().tokens[-1:]
        if newest and newest[0] is not self._leave:
            self._leave, self._left = newest[0], newest[0].pieces
            later = self._not_before_s.items()
            self._not_before_s = {kind: when_s for kind, when_s in later if kind in FREE}

    def _ask(self, means: Means, nothing_s: float, missing: int, now_s: float) -> None:
        """Ask for leave where nothing comes; by what there is leave for, it had its time."""
        used_up = self._leave is not None and self._left <= 0
        silent = used_up or nothing_s >= self._stalled_s
        due = silent and now_s - self._asked_s >= self._stalled_s
        if means.transport is Transport.AUTO and due and missing and set(self._makers) - FREE:
            self._asked_s = now_s
            self._pulled.ask(missing, self._pulled.standing()[0] or NodeReason.STALLED)

    def _kept(self) -> None:
        self._left -= 1

    def _start(self, kind: str, sink: PieceSink, now_s: float) -> None:
        source = self._makers[kind].make(self._pulled)
        if source is None:
            self._not_before_s[kind] = now_s + TRY_AGAIN_S
            return
        log.info("source-begins", source=kind, infohash=sink.infohash)
        counted = Counted(
            sink,
            kind,
            self._brought,
            counted=self._counted,
            on_kept=self._kept,
            pace=self._pace,
        )
        bringing = source.bring(counted)
        task = asyncio.create_task(bringing, name=f"source {kind}")
        self._running[kind] = (task, source, now_s)

    async def _stop(self, kind: str) -> None:
        task, _, _ = self._running.pop(kind)
        task.cancel()
        await asyncio.gather(task, return_exceptions=True)

    async def _reap(self, now_s: float) -> None:
        for kind, (task, _, _) in list(self._running.items()):
            if not task.done():
                continue
            del self._running[kind]
            self._not_before_s[kind] = now_s + TRY_AGAIN_S
            try:
                await task
            except DistribError as error:
                log.warning("source-failed", source=kind, code=error.code, why=error.message)
