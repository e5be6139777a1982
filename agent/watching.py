"""Watches instances whose room can run out under a job.

Every ``watch_interval_s``: a snapshot that is nearly full is extended while its limit and the
store's room allow; where they do not, the site is told once, with the lease. One that has
overflowed gives its job errors only: that is told as a failure of the lease, and the lease ended.
Besides, volumes are labelled with what they hold, and what could not be wiped or removed at once
is removed.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Mapping, Sequence
from enum import Enum, auto
from typing import Protocol, runtime_checkable

import structlog

from agent.cache.cache import Cache
from agent.cache.findings import Sweeping
from agent.cache.leases import Lease
from agent.cache.snapshots import Growing, SnapshotFill
from agent.cache.store import Store
from agent.settings import LvmSettings
from distrib.bus.messages import EventKind, NodeReason
from distrib.errors import DistribError, NotFound

log = structlog.get_logger(__name__)


@runtime_checkable
class Labelled(Protocol):
    """A store that can say beside a volume what it holds, for operators."""

    def label(self, infohash: str, labels: Mapping[str, str]) -> None: ...


class Care(Enum):
    """What a snapshot needs."""

    NONE = auto()
    EXTEND = auto()
    END = auto()


def care_for(fill: SnapshotFill, extend_at_percent: float) -> Care:
    """What to do about an instance."""
    if fill.overflowed:
        return Care.END
    if fill.safe or fill.percent < extend_at_percent:
        return Care.NONE
    return Care.EXTEND


Tell = Callable[[EventKind, Lease, NodeReason, str], None]
"""Tells the site of a lease; called in a worker thread."""


class Watching:
    """``run`` until cancelled; ``look_after`` is one round, in a worker thread."""

    def __init__(
        self, stores: Sequence[Store], cache: Cache, settings: LvmSettings, *, tell: Tell
    ) -> None:
        self._growing = [store for store in stores if isinstance(store, Growing)]
        self._sweeping = [store for store in stores if isinstance(store, Sweeping)]
        self._labelled = {s.name: s for s in stores if isinstance(s, Labelled)}
        self._cache = cache
        self._settings = settings
        self._tell = tell
        self._told: set[tuple[str, EventKind]] = set()

    async def run(self) -> None:
        while self._growing:
            await asyncio.to_thread(self.look_after)
            await asyncio.sleep(self._settings.watch_interval_s)

    def look_after(self) -> None:
        """Raises nothing: what fails now is tried again in the next round."""
        for store in self._growing:
            try:
                fills = store.snapshots()
            except DistribError as error:
                log.warning("snapshots-not-watched", why=error.message, hint=error.hint)
                continue
            for fill in fills:
                self._care(store, fill)
            self._told = {one for one in self._told if one[0] in {fill.lease for fill in fills}}
        self._label()
        for sweeping in self._sweeping:
            try:
                if sweeping.leftovers():
                    sweeping.sweep()
            except (DistribError, OSError) as error:
                log.warning("leftovers-not-removed", why=str(error))

    def _care(self, store: Growing, fill: SnapshotFill) -> None:
        care = care_for(fill, self._settings.extend_at_percent)
        if care is Care.END:
            self._end(fill)
        elif care is Care.EXTEND:
            try:
                grown = store.extend(fill.lease, limit_bytes=self._settings.extend_limit_bytes)
                log.info("snapshot-extended", lease=fill.lease, cow_bytes=grown.cow_bytes)
            except DistribError as error:
                text = f"{fill.percent:.0f} % of {fill.cow_bytes} bytes are full: {error.message}"
                self._say(EventKind.FILLING, fill, text)

    def _end(self, fill: SnapshotFill) -> None:
        text = f"the instance has overflowed: its {fill.cow_bytes} bytes were not enough"
        self._say(EventKind.FAILED, fill, text)
        try:
            self._cache.release(fill.lease)
        except NotFound:
            pass  # released already: the cache removes it once nobody has it open
        except DistribError as error:
            log.warning("lease-not-ended", lease=fill.lease, why=error.message)

    def _say(self, kind: EventKind, fill: SnapshotFill, text: str) -> None:
        """Once for each lease."""
        if (fill.lease, kind) in self._told:
            return
        self._told.add((fill.lease, kind))
        log.warning("snapshot-full", lease=fill.lease, why=text)
        lease = next((one for one in self._cache.leases() if one.lease == fill.lease), None)
        if lease is not None:
            self._tell(kind, lease, NodeReason.NO_SPACE, text)

    def _label(self) -> None:
        for holding in self._cache.snapshot().holdings if self._labelled else ():
            record = holding.record
            store = self._labelled.get(record.store)
            if store is None:
                continue
            try:
                store.label(
                    record.infohash,
                    {
                        "image": record.identifier,
                        "version": record.version,
                        "state": str(record.state),
                    },
                )
            except DistribError as error:
                log.warning("volume-not-labelled", infohash=record.infohash, why=error.message)
