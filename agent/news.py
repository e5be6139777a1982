"""What the cache does, told to the site and to the agent's other parts.

The cache calls from whatever thread changed something, under its lock; all is handed to the loop.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Container, Coroutine
from typing import Any

import structlog

from agent.cache.eviction import Eviction
from agent.cache.leases import Lease
from agent.cache.overruns import Overrun
from agent.cache.records import TEXT_MAX, VolumeRecord
from agent.reporter import Reporter
from distrib.bus.messages import EventKind, NodeReason, State

log = structlog.get_logger(__name__)

CLOSE_LIMIT_S = 10.0

_EVENTS = {
    State.READY: EventKind.READY,
    State.FAILED: EventKind.FAILED,
    State.BLOCKED: EventKind.BLOCKED,
}


class CacheNews:
    """Silent until ``begin``."""

    def __init__(self) -> None:
        self._loop: asyncio.AbstractEventLoop | None = None
        self._states: dict[str, State] = {}
        self._damaged: set[str] = set()

    def begin(
        self,
        reporter: Reporter,
        *,
        changed: Callable[[], None],
        repair: Callable[[], None],
        served: Container[str],
        let_go: Callable[[str], Coroutine[Any, Any, None]],
    ) -> None:
        """From now on in the running loop. ``changed`` hears of every change, ``repair`` of
        volumes that are to be pulled again; ``let_go`` closes a volume that is ``served``."""
        self._reporter = reporter
        self._changed = changed
        self._repair = repair
        self._served = served
        self._let_go = let_go
        self._loop = asyncio.get_running_loop()

    def on_change(self, record: VolumeRecord) -> None:
        if self._loop is not None:
            self._loop.call_soon_threadsafe(self._tell, record)

    def before_evict(self, infohash: str) -> None:
        """libtorrent lets go before the files do: else the disk keeps what it has open."""
        if self._loop is None or infohash not in self._served:
            return
        closing = asyncio.run_coroutine_threadsafe(self._let_go(infohash), self._loop)
        try:
            closing.result(CLOSE_LIMIT_S)
        except TimeoutError:
            log.warning("evicted-while-open", infohash=infohash)

    def on_evict(self, eviction: Eviction) -> None:
        if self._loop is not None:
            self._loop.call_soon_threadsafe(self._tell_eviction, eviction)

    def tell_overrun(self, lease: Lease, overrun: Overrun) -> None:
        """An instance has outgrown its room. From the loop's thread."""
        identifier, _, version = lease.image.partition("@")
        text = f"{overrun.used_bytes} bytes written, {overrun.cow_bytes} were asked for"
        log.warning("lease-overrun", lease=lease.lease, user=lease.user, text=text)
        self._reporter.event(
            EventKind.OVERRUN,
            identifier=identifier or None,
            version=version or None,
            lease=lease.lease,
            user=lease.user,
            text=text,
        )

    def on_trouble(self, kind: EventKind, lease: Lease, reason: NodeReason, text: str) -> None:
        """A lease's instance is nearly full, has failed, or stands on bad pieces. From any
        thread."""
        if self._loop is not None:
            self._loop.call_soon_threadsafe(self._tell_trouble, kind, lease, reason, text)

    def _tell_trouble(self, kind: EventKind, lease: Lease, reason: NodeReason, text: str) -> None:
        identifier, _, version = lease.image.partition("@")
        self._reporter.event(
            kind,
            identifier=identifier or None,
            version=version or None,
            reason=reason,
            lease=lease.lease,
            user=lease.user,
            text=text[:TEXT_MAX],
        )

    def _tell(self, record: VolumeRecord) -> None:
        kind = _EVENTS.get(record.state)
        if kind is not None and self._states.get(record.infohash) != record.state:
            self._reporter.event(
                kind,
                identifier=record.identifier,
                version=record.version,
                reason=record.reason,
                text=record.text,
            )
        if record.damaged and record.infohash not in self._damaged:
            self._reporter.event(
                EventKind.DAMAGED,
                identifier=record.identifier,
                version=record.version,
                reason=NodeReason.HASH_FAILED,
                text=record.text,
            )
        (self._damaged.add if record.damaged else self._damaged.discard)(record.infohash)
        self._states[record.infohash] = record.state
        self._reporter.changed()
        self._changed()
        if record.state is State.PULLING and record.reason is NodeReason.HASH_FAILED:
            self._repair()

    def _tell_eviction(self, eviction: Eviction) -> None:
        log.info("evicted", **vars(eviction))
        identifier, _, version = eviction.image.partition("@")
        self._reporter.event(
            EventKind.EVICTED,
            identifier=identifier or None,
            version=version or None,
            reason=NodeReason.EVICTED,
            beneficiary=eviction.beneficiary,
            text=f"{eviction.why}: {eviction.size_bytes} bytes",
        )
