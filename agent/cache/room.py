"""Making room in a store: the store says what would help, the policy who may go.

Nothing is evicted in vain: the store is asked beforehand whether it has the room without the
victims.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from datetime import UTC, datetime
from typing import Final

import structlog

from agent.cache.eviction import (
    Candidate,
    Eviction,
    Why,
    choose_relief,
    choose_victims,
    describe_kept,
    order,
)
from agent.cache.ledger import Ledger
from agent.cache.records import UNDER_WAY, VolumeRecord
from agent.cache.store import Store, Volume
from distrib.bus.messages import NodeReason, State
from distrib.errors import Conflict, NoSpace, StorageFailed, TargetTooSmall

log = structlog.get_logger(__name__)

_LONG_AGO: Final = datetime.min.replace(tzinfo=UTC)


class Room:
    """Who takes room in the stores, and who gives it up. Used under the cache's lock.

    ``desired``: the info-hashes that the site wants; None while that is not known, and then every
    volume counts as desired. ``unknown``: volumes whose records could not be read, and the stores
    that hold them; of use to nobody, they go first. ``held``: how many copy from a volume."""

    def __init__(
        self,
        ledger: Ledger,
        stores: Mapping[str, Store],
        watermarks: tuple[float, float],
        before_evict: Callable[[str], None] | None = None,
        on_evict: Callable[[Eviction], None] | None = None,
    ) -> None:
        """``watermarks``: low and high, shares of a store's capacity. ``before_evict`` gets the
        info-hash while the volume is there still, ``on_evict`` hears of what went."""
        self._ledger = ledger
        self._stores = stores
        self._low_watermark, self._high_watermark = watermarks
        self._before_evict = before_evict
        self._on_evict = on_evict
        self.desired: set[str] | None = None
        self.unknown: dict[str, Store] = {}
        self.held: Counter[str] = Counter()

    def volume(self, record: VolumeRecord) -> Volume | None:
        """The volume of a record; None when there is none."""
        volumes = self._stores[record.store].volumes()
        return next((one for one in volumes if one.infohash == record.infohash), None)

    def is_over(self, record: VolumeRecord) -> bool:
        """Whether nothing is left to keep: its eviction was begun, or somebody removed the volume
        of an image that was ready, and no job may still read what it has open."""
        if record.state is State.EVICTING:
            return True
        lost = record.state is State.READY and self.volume(record) is None
        return lost and not self._ledger.leases_of(record.infohash)

    def is_free_again(self, record: VolumeRecord) -> bool:
        """Whether what kept a failed volume from being verified anew, the instances on it, has
        ended: it is sealed still."""
        if record.state is not State.FAILED or record.reason is not NodeReason.INTERNAL:
            return False
        volume = self.volume(record)
        standing = self._stores[record.store].instances()
        return (
            volume is not None
            and volume.sealed
            and not any(one.infohash == record.infohash for one in standing)
        )

    def is_open(self, record: VolumeRecord) -> bool:
        """Whether a ready volume, not known as damaged, has lost its seal."""
        if record.state is not State.READY or record.damaged:
            return False
        volume = self.volume(record)
        return volume is not None and not volume.sealed

    def make(
        self, store: Store, need_bytes: int, *, beneficiary: str, keep: str | None = None
    ) -> None:
        """Evict until ``need_bytes`` more fit; never ``keep``. Raises NoSpace, TargetTooSmall,
        StorageFailed."""
        candidates = self._candidates(store, keep)
        for infohash in plan_room(store, need_bytes, candidates, self._low_watermark):
            self.evict(infohash, "room", beneficiary)

    def relieve(self) -> None:
        """Evict above the high watermark, before anybody asks. A store of whole devices has none:
        all its devices taken is how it should be. Raises StorageFailed."""
        for store in self._stores.values():
            if store.volume_per_device:
                continue
            space = store.space()
            for one in choose_relief(
                self._candidates(store),
                space.used_bytes,
                space.capacity_bytes,
                self._low_watermark,
                self._high_watermark,
            ):
                self.evict(one.infohash, "watermark")

    def collect(self, *, dry_run: bool) -> tuple[Candidate, ...]:
        """Evict all that nobody needs, in all stores. Returns what went, or would go."""
        gone: list[Candidate] = []
        for one in order(c for store in self._stores.values() for c in self._candidates(store)):
            try:
                if not dry_run:
                    self.evict(one.infohash, "collected")
                gone.append(one)
            except (Conflict, StorageFailed) as error:
                log.warning("not-collected", infohash=one.infohash, why=error.message)
        return tuple(gone)

    def _candidates(self, store: Store, keep: str | None = None) -> list[Candidate]:
        candidates: list[Candidate] = []
        for volume in store.volumes():
            record = self._ledger.records.get(volume.infohash)
            if volume.infohash == keep:
                continue
            if record is None:
                candidates.append(self._stray(store, volume))
            elif record.store == store.name:
                candidates.append(self.candidate(record))
        return candidates

    def take(self, record: VolumeRecord) -> VolumeRecord:
        """From absent or failed: take the room, or go on with the bytes that are there.

        Returns the record: reserved, pulling, or failed with the reason."""
        infohash = record.infohash
        unknown = self.unknown.get(infohash)
        if unknown is not None:
            record = replace(record, store=unknown.name)
        store = self._stores[record.store]
        there = self.volume(record)
        fresh = (
            there is None
            or there.size_bytes != record.size_bytes
            or record.reason is NodeReason.STORAGE_FAILED  # the page cache may belie the disk
        )
        try:
            if there is None:
                self.make(store, record.size_bytes, beneficiary=record.image)
            if record.state is State.ABSENT or fresh:
                record = self._ledger.move(record, State.RESERVED)
                self.unknown.pop(infohash, None)
            if there is not None and fresh:
                store.remove(there)
            volume = store.reserve(infohash, record.size_bytes)
            if not fresh:
                record = self._ledger.move(record, State.PULLING, NodeReason.RESUMED)
                if volume.sealed:
                    store.unseal(volume)
        except (NoSpace, Conflict, StorageFailed) as error:
            return self._ledger.fail_by(record, error)
        return record

    def candidate(self, record: VolumeRecord) -> Candidate:
        """A record as the eviction policy sees it."""
        unusable = record.state in (State.BLOCKED, State.FAILED)
        return Candidate(
            infohash=record.infohash,
            room_bytes=record.size_bytes,
            used_at=record.last_leased or record.since,
            unusable=unusable,
            leased=bool(self._ledger.leases_of(record.infohash)),
            held=self.held[record.infohash] > 0,
            pinned=record.pinned,
            desired=self.desired is None or record.infohash in self.desired,
            active=record.active and not unusable,
            pulling=record.state in UNDER_WAY,
            image=record.image,
        )

    def evict(self, infohash: str, why: Why, beneficiary: str = "") -> None:
        """Remove a volume and its record; again after a crash or a fault in the middle.

        Raises Conflict while an instance stands on it, StorageFailed."""
        record = self._ledger.records.get(infohash)
        store = self.unknown[infohash] if record is None else self._stores[record.store]
        if record is not None and record.state is not State.EVICTING:
            self._ledger.move(record, State.EVICTING)
        size_bytes = 0
        for volume in store.volumes():
            if volume.infohash == infohash:
                size_bytes = volume.size_bytes
                if self._before_evict is not None:
                    self._before_evict(infohash)
                store.remove(volume)
        text = f"{why}: for {beneficiary}" if beneficiary else why
        self._ledger.forget(infohash, text)
        self.unknown.pop(infohash, None)
        if self._on_evict is not None:
            image = record.image if record else ""
            self._on_evict(Eviction(infohash, image, size_bytes, why, beneficiary))

    def _stray(self, store: Store, volume: Volume) -> Candidate:
        leased = any(one.infohash == volume.infohash for one in store.instances())
        return Candidate(
            volume.infohash, volume.size_bytes, _LONG_AGO, unusable=True, leased=leased
        )


def plan_room(
    store: Store, need_bytes: int, candidates: Sequence[Candidate], low_watermark: float
) -> tuple[str, ...]:
    """The info-hashes to evict, in order, so that ``need_bytes`` more fit; none while there is
    room. Raises NoSpace or TargetTooSmall when no eviction would do."""
    shortage = _shortage(store, need_bytes, ())
    if shortage is None:
        return ()
    if isinstance(shortage, TargetTooSmall):
        raise shortage
    if store.volume_per_device:
        for one in order(candidates):
            if _shortage(store, need_bytes, (one.infohash,)) is None:
                return (one.infohash,)
        raise _in_the_way(shortage, describe_kept(candidates))
    used = store.space().used_bytes
    chosen: tuple[Candidate, ...] = ()
    while shortage is not None:
        # What is free is bounded by the quota or by the file system, and which of them binds can
        # change with the victims: ask again until nothing more is asked for.
        left = used - sum(one.room_bytes for one in chosen)
        capacity = left + int(shortage.ids["free_bytes"])
        choice = choose_victims(candidates, need_bytes, used, capacity, low_watermark)
        if len(choice.victims) <= len(chosen):
            raise _in_the_way(shortage, choice.why_not or describe_kept(candidates))
        chosen = choice.victims
        shortage = _shortage(store, need_bytes, tuple(one.infohash for one in chosen))
    return tuple(one.infohash for one in chosen)


def _shortage(store: Store, need_bytes: int, without: tuple[str, ...]) -> NoSpace | None:
    try:
        store.check_room(need_bytes, without=without)
    except NoSpace as error:
        return error
    return None


def _in_the_way(shortage: NoSpace, why: str) -> NoSpace:
    return NoSpace(
        f"{shortage.message}; not to be evicted: {why}", hint=shortage.hint, **shortage.ids
    )
