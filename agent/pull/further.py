"""Sources beside the swarm: which of them run for a pull, and when (docs/formats/protocols.md).

A *maker* makes one kind of source (tsunami, HTTP ranges, a mounted path) for a pull, or says that
it cannot. A *policy* says which kinds shall run now; ``Further`` starts and stops them, lends each
a sink that counts what it brings, and tries one that failed again later. All of them offer pieces
to the same verified store as the swarm: they may bring the same piece, never a wrong one.
"""

from __future__ import annotations

import asyncio
from collections import Counter
from collections.abc import Callable, Collection, Sequence
from dataclasses import dataclass, field
from typing import Final, Protocol

import structlog

from agent.pull.pulling import Plan
from agent.pull.source import PieceSink, Source
from distrib.bus.messages import GrantTokens, NodeReason, Transport
from distrib.errors import DistribError
from distrib.swarm.torrent import TorrentInfo
from distrib.trust.sitelist import SiteImage

log = structlog.get_logger(__name__)

LOOK_S: Final = 0.5
TRY_AGAIN_S: Final = 10.0

STALLED_S: Final = 5.0
"""A swarm that has brought nothing for so long is helped."""

HELPED_S: Final = 10.0
"""Who helps is kept for so long at least: what it opened has cost something."""


@dataclass(frozen=True)
class Means:
    """What the site says of a pull's transport; ``tokens`` the newest leave, by its transport."""

    plan: Plan = field(default_factory=Plan)
    transport: Transport = Transport.SWARM
    web_seeds: tuple[str, ...] = ()
    tokens: tuple[GrantTokens, ...] = ()

    @property
    def swarm(self) -> bool:
        """Whether pieces may come from BitTorrent peers."""
        return self.transport is not Transport.TSUNAMI


@dataclass(frozen=True)
class Pulled:
    """The pull that a source is made for. ``means`` and ``reason`` give what holds now."""

    image: SiteImage
    info: TorrentInfo
    raw_info: bytes
    means: Callable[[], Means]
    reason: Callable[[], NodeReason | None]


class SourceMaker(Protocol):
    """Makes one kind of source. ``name`` is that of its sources."""

    @property
    def name(self) -> str: ...

    def make(self, pulled: Pulled) -> Source | None:
        """A source for this pull by what its means say now; None: this kind has nothing to offer.

        Called in the loop each time that the kind is to run; must not block."""
        ...


@dataclass(frozen=True)
class Standing:
    """How a pull stands: seconds since the swarm brought something, and since which the kinds
    that run have run."""

    means: Means
    kinds: tuple[str, ...]
    swarm_silent_s: float
    running_s: dict[str, float] = field(default_factory=dict)


Policy = Callable[[Standing], Collection[str]]


def by_transport(standing: Standing) -> Collection[str]:
    """The policy in force: what is ordered; with ``auto`` all there is, while the swarm brings
    nothing; and whatever there is leave for (``tokens``)."""
    means = standing.means
    wanted = {str(grant.transport) for grant in means.tokens}
    if means.transport is Transport.TSUNAMI:
        wanted.add(Transport.TSUNAMI)
    if means.transport is Transport.AUTO:
        if standing.swarm_silent_s >= STALLED_S:
            wanted |= set(standing.kinds)
        wanted |= {kind for kind, since_s in standing.running_s.items() if since_s < HELPED_S}
    return wanted & set(standing.kinds)


class Counted:
    """A sink that counts the bytes that were kept, under the name of who brought them."""

    def __init__(self, sink: PieceSink, name: str, brought: Counter[str]) -> None:
        self._sink = sink
        self._name = name
        self._brought = brought

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
        kept = await self._sink.offer(index, data)
        if kept:
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
    ) -> None:
        self._makers = {maker.name: maker for maker in makers}
        self._pulled = pulled
        self._swarm_bytes = swarm_bytes
        self._brought = brought
        self._policy = policy
        self._running: dict[str, tuple[asyncio.Task[None], float]] = {}
        self._not_before_s: dict[str, float] = {}

    async def bring(self, sink: PieceSink) -> None:
        """See ``Source.bring``. No failure of a source ends it."""
        complete = asyncio.create_task(sink.complete(), name="further: complete")
        try:
            await self._until(complete, sink)
        finally:
            tasks = [complete, *(task for task, _ in self._running.values())]
            for task in tasks:
                task.cancel()
            await asyncio.gather(*tasks, return_exceptions=True)
            self._running.clear()

    async def _until(self, complete: asyncio.Task[None], sink: PieceSink) -> None:
        clock = asyncio.get_running_loop().time
        seen_bytes, heard_s = self._swarm_bytes(), clock()
        while not complete.done():
            now_s = clock()
            if self._swarm_bytes() != seen_bytes:
                seen_bytes, heard_s = self._swarm_bytes(), now_s
            await self._reap(now_s)
            running_s = {kind: now_s - since_s for kind, (_, since_s) in self._running.items()}
            wanted = self._policy(
                Standing(self._pulled.means(), tuple(self._makers), now_s - heard_s, running_s)
            )
            for kind in set(self._running) - set(wanted):
                await self._stop(kind)
            for kind in wanted:
                if kind not in self._running and now_s >= self._not_before_s.get(kind, now_s):
                    self._start(kind, sink, now_s)
            await asyncio.wait({complete}, timeout=LOOK_S)

    def _start(self, kind: str, sink: PieceSink, now_s: float) -> None:
        source = self._makers[kind].make(self._pulled)
        if source is None:
            self._not_before_s[kind] = now_s + TRY_AGAIN_S
            return
        log.info("source-begins", source=kind, infohash=sink.infohash)
        bringing = source.bring(Counted(sink, kind, self._brought))
        self._running[kind] = (asyncio.create_task(bringing, name=f"source {kind}"), now_s)

    async def _stop(self, kind: str) -> None:
        task, _ = self._running.pop(kind)
        task.cancel()
        await asyncio.gather(task, return_exceptions=True)

    async def _reap(self, now_s: float) -> None:
        for kind, (task, _) in list(self._running.items()):
            if not task.done():
                continue
            del self._running[kind]
            self._not_before_s[kind] = now_s + TRY_AGAIN_S
            try:
                await task
            except DistribError as error:
                log.warning("source-failed", source=kind, code=error.code, why=error.message)
