"""What a start makes of the records, volumes, leases and instances that it finds.

| record     | volume there, sealed | there, not sealed | not there |
| ---        | ---                  | ---               | ---       |
| reserved   | reserve again        | reserve again     | reserve again |
| pulling, verifying | resume       | resume            | forget    |
| ready      | keep                 | resume            | forget    |
| blocked    | keep                 | keep              | forget    |
| failed     | keep                 | keep              | forget    |
| evicting   | evict                | evict             | forget    |
| none       | remove               | remove            |           |
| set aside  | keep, unknown        | keep, unknown     |           |

*Resume*: pull on; what is there is verified. *Unknown*: the record could not be read; the volume
waits for somebody to desire it again, and goes first when room is needed.

A lease goes when its holder is dead or its instance was not made; an instance without a lease
goes, unless the lease could not be read: then its job may still run, and it gets a lease that
ends by itself.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from datetime import datetime, timedelta
from enum import Enum, auto
from typing import Final

import structlog

from agent.cache.holders import Holder, TimeHolder
from agent.cache.leases import Lease
from agent.cache.ledger import Ledger
from agent.cache.records import VolumeRecord
from agent.cache.store import Store, Volume
from distrib.bus.messages import NodeReason, State
from distrib.errors import Conflict, DistribError, NoSpace, StateCorrupt, StorageFailed

log = structlog.get_logger(__name__)

LOST_LEASE_GRACE: Final = timedelta(days=1)
"""How long an instance stays whose lease cannot be read."""


class Verdict(Enum):
    """What to do with a record (see the module)."""

    KEEP = auto()
    RESUME = auto()
    RESERVE = auto()
    EVICT = auto()
    FORGET = auto()


@dataclass(frozen=True)
class Recovery:
    """What a start found. ``resume`` are the pulls to go on with: ``reserved`` ones are fresh,
    ``pulling`` ones may hold data, to be verified unless resume data says what is there."""

    resume: tuple[VolumeRecord, ...] = ()
    ready: tuple[VolumeRecord, ...] = ()
    removed: tuple[str, ...] = ()
    unknown: tuple[tuple[str, Store], ...] = ()
    dropped_leases: tuple[Lease, ...] = ()
    corrupt: tuple[StateCorrupt, ...] = ()


def settle(record: VolumeRecord, volume: Volume | None) -> Verdict:
    """What to do with a record, given the volume that its store holds."""
    if record.state is State.RESERVED:
        return Verdict.RESERVE
    if volume is None:
        return Verdict.FORGET
    if record.state is State.EVICTING:
        return Verdict.EVICT
    if record.state in (State.PULLING, State.VERIFYING):
        return Verdict.RESUME
    if record.state is State.READY and not volume.sealed:
        return Verdict.RESUME
    return Verdict.KEEP


def losing_actives(records: tuple[VolumeRecord, ...]) -> tuple[VolumeRecord, ...]:
    """Active records that a newer choice of the same image replaced: a crash between the two
    writes of a switch leaves both active."""
    newest: dict[str, VolumeRecord] = {}
    losers: list[VolumeRecord] = []
    for record in records:
        if not record.active:
            continue
        rival = newest.get(record.identifier)
        if rival is None:
            newest[record.identifier] = record
            continue
        older, newer = sorted((rival, record), key=lambda one: one.active_since or one.since)
        newest[record.identifier] = newer
        losers.append(older)
    return tuple(losers)


class Start:
    """One start of a cache: ``run`` once, under the cache's lock."""

    def __init__(
        self,
        ledger: Ledger,
        stores: Mapping[str, Store],
        is_alive: Callable[[Holder, datetime], bool],
    ) -> None:
        self._ledger = ledger
        self._stores = stores
        self._is_alive = is_alive
        self._removed: list[str] = []
        self._dropped: list[Lease] = []

    def run(self) -> Recovery:
        """Bring memory, records and stores to agree. Raises StorageFailed only when the state
        directory itself cannot be written."""
        records, leases = self._ledger.load()
        self._settle_leases({lease for lease, _ in leases.corrupt})
        for record in tuple(self._ledger.records.values()):
            self._settle(record)
        self._mend()
        for record in losing_actives(tuple(self._ledger.records.values())):
            self._ledger.deactivate(record)
        unknown = self._settle_volumes({infohash for infohash, _ in records.corrupt})
        there = tuple(self._ledger.records.values())
        return Recovery(
            resume=tuple(r for r in there if r.state in (State.RESERVED, State.PULLING)),
            ready=tuple(r for r in there if r.state is State.READY),
            removed=tuple(self._removed),
            unknown=unknown,
            dropped_leases=tuple(self._dropped),
            corrupt=tuple(error for _, error in (*records.corrupt, *leases.corrupt)),
        )

    def _settle_leases(self, unreadable: set[str]) -> None:
        now = self._ledger.now()
        instances = {
            (name, one.lease): one
            for name, store in self._stores.items()
            for one in store.instances()
        }
        for lease in tuple(self._ledger.leases.values()):
            there = (lease.store, lease.lease) in instances
            if not (there and lease.made and self._is_alive(lease.holder, now)):
                self._ledger.forget_lease(lease)
                self._dropped.append(lease)
        for (name, lease_id), instance in instances.items():
            if lease_id in self._ledger.leases:
                continue
            if lease_id not in unreadable:
                self._drop(name, lease_id)
                continue
            record = self._ledger.records.get(instance.infohash)
            lease = Lease(
                lease=lease_id,
                infohash=instance.infohash,
                image=record.image if record else "",
                store=name,
                user="",
                holder=TimeHolder(now + LOST_LEASE_GRACE),
                since=now,
            )
            self._ledger.save_lease(lease.with_instance(instance))

    def _drop(self, store: str, lease: str) -> None:
        try:
            self._stores[store].drop_instance(lease)
        except (DistribError, OSError) as error:
            # Somebody has it open: the reaper tries again.
            log.warning("instance-not-removed", what=lease, why=str(error))

    def _settle(self, record: VolumeRecord) -> None:
        store = self._stores.get(record.store)
        volume = None if store is None else _find(store, record.infohash)
        verdict = settle(record, volume)
        if store is None or verdict is Verdict.FORGET:
            self._ledger.forget(record.infohash)
            self._removed.append(record.infohash)
        elif verdict is Verdict.RESERVE:
            try:
                store.reserve(record.infohash, record.size_bytes)
            except (NoSpace, Conflict, StorageFailed) as error:
                self._ledger.fail_by(record, error)
        elif volume is None or verdict is Verdict.KEEP:
            pass
        elif verdict is Verdict.EVICT:
            if _remove(store, volume):
                self._ledger.forget(record.infohash)
                self._removed.append(record.infohash)
        else:
            if record.state is not State.PULLING:
                record = self._ledger.move(record, State.PULLING, NodeReason.RESUMED)
            if volume.sealed:
                try:
                    store.unseal(volume)
                except (Conflict, StorageFailed) as error:
                    self._ledger.fail_by(record, error)

    def _mend(self) -> None:
        """Damaged volumes whose leases have all ended are pulled again."""
        for record in tuple(self._ledger.records.values()):
            volume = _find(self._stores[record.store], record.infohash)
            unused = not self._ledger.leases_of(record.infohash)
            if volume and unused and record.damaged and record.state is State.READY:
                moved = self._ledger.move(record, State.PULLING, NodeReason.HASH_FAILED)
                try:
                    self._stores[record.store].unseal(volume)
                except (Conflict, StorageFailed) as error:
                    self._ledger.fail_by(moved, error)

    def _settle_volumes(self, unreadable: set[str]) -> tuple[tuple[str, Store], ...]:
        unknown: list[tuple[str, Store]] = []
        for name, store in self._stores.items():
            for volume in store.volumes():
                record = self._ledger.records.get(volume.infohash)
                if record is not None and record.store == name:
                    continue
                if volume.infohash in unreadable or not _remove(store, volume):
                    unknown.append((volume.infohash, store))
                else:
                    self._removed.append(volume.infohash)
        return tuple(unknown)


def _find(store: Store, infohash: str) -> Volume | None:
    return next((one for one in store.volumes() if one.infohash == infohash), None)


def _remove(store: Store, volume: Volume) -> bool:
    """Remove a volume; False when it must stay for now."""
    try:
        store.remove(volume)
    except (Conflict, StorageFailed):
        return False
    return True
