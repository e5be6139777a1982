"""Giving and taking leases, for the cache and under its lock.

The slow part, making an instance, is done without the lock: the lease is on disk before, so that
eviction sees it, and the volume is looked at again after. A removal that fails keeps what it could
not remove for the next round of ``reap``.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import replace
from datetime import datetime, timedelta
from threading import RLock
from typing import Final

import structlog

from agent.cache.holders import Holder
from agent.cache.instances import give_to
from agent.cache.leases import Lease, new_lease_id
from agent.cache.ledger import Ledger
from agent.cache.records import TEXT_MAX, VolumeRecord
from agent.cache.room import Room
from agent.cache.store import BlockInstances, Store, Volume
from distrib.bus.messages import NodeReason, State
from distrib.errors import Conflict, DistribError, NotFound, NotReady, Revoked

log = structlog.get_logger(__name__)

_LEASED_GRAIN: Final = timedelta(minutes=1)
"""How exactly it is known when an image was leased last: a write to the disk for each lease of a
burst would tell eviction nothing."""


class Leasing:
    """Used by the cache only. ``lease``, ``release`` and ``reap`` take its lock by themselves;
    the others are called under it."""

    def __init__(
        self,
        ledger: Ledger,
        stores: Mapping[str, Store],
        room: Room,
        lock: RLock,
        is_alive: Callable[[Holder, datetime], bool],
    ) -> None:
        self._ledger = ledger
        self._stores = stores
        self._room = room
        self._lock = lock
        self._is_alive = is_alive
        self._making: set[str] = set()
        self._stuck: set[str] = set()

    def lease(
        self,
        infohash: str,
        *,
        holder: Holder,
        user: str,
        cow_bytes: int,
        scratch_bytes: int,
        owner_uid: int | None,
        block: bool,
    ) -> Lease:
        """See ``Cache.lease``."""
        with self._lock:
            record, volume = self._leasable(infohash)
            store = self._stores[record.store]
            if not store.volume_per_device:
                need_bytes = cow_bytes + scratch_bytes
                whose = f"a lease of {record.image} by {user}"
                self._room.make(store, need_bytes, beneficiary=whose, keep=infohash)
            lease = Lease(
                lease=new_lease_id(),
                infohash=infohash,
                image=record.image,
                store=record.store,
                user=user,
                holder=holder,
                since=self._ledger.now(),
            )
            if record.last_leased is None or lease.since - record.last_leased > _LEASED_GRAIN:
                self._ledger.save(replace(record, last_leased=lease.since))
            self._ledger.save_lease(lease)
            self._making.add(lease.lease)
        try:
            make = store.make_instance
            if block and isinstance(store, BlockInstances):
                make = store.make_block_instance
            instance = make(volume, lease.lease, cow_bytes=cow_bytes, scratch_bytes=scratch_bytes)
            if owner_uid is not None:
                give_to(instance, owner_uid)
            with self._lock:
                self._leasable(infohash)  # it may have been revoked meanwhile
                return self._ledger.save_lease(lease.with_instance(instance))
        except BaseException:
            with self._lock:
                self._drop(lease)
            raise
        finally:
            with self._lock:
                self._making.discard(lease.lease)

    def release(self, lease: str) -> Lease:
        """See ``Cache.release``."""
        with self._lock:
            found = self._ledger.leases.get(lease)
            if found is None:
                raise NotFound(f"there is no lease {lease}", hint="see `distrib-agent leases`")
            if lease in self._making:
                raise Conflict(
                    f"lease {lease} is being made", hint="release it when it is there", lease=lease
                )
            self._ledger.forget_lease(found)
            self._drop_instance(self._stores[found.store], lease)
            self._mend(found.infohash)
            return found

    def reap(self) -> tuple[Lease, ...]:
        """See ``Cache.reap_dead_leases``."""
        with self._lock:
            now, held = self._ledger.now(), tuple(self._ledger.leases.values())
        # A lease that was not made, and that nobody makes, could not be taken back at once.
        suspects = [one for one in held if not one.made or not self._lives(one, now)]
        with self._lock:
            dead = tuple(
                one
                for one in suspects
                if self._ledger.leases.get(one.lease) == one and one.lease not in self._making
                if self._forget(one)
            )
            # Also instances whose removal failed when their leases ended.
            for store in self._stores.values():
                self._drop_strays(store)
            for record in tuple(self._ledger.records.values()):
                self._mend(record.infohash)
            return dead

    def repair(self, record: VolumeRecord) -> VolumeRecord:
        """A ``ready`` volume without leases becomes ``pulling``, writable."""
        volume = self._room.volume(record)
        if volume is None:
            raise NotFound(f"volume {record.infohash} is not there", hint="see the agent's log")
        record = self._ledger.move(record, State.PULLING, NodeReason.HASH_FAILED)
        self._stores[record.store].unseal(volume)
        return record

    def mark_damaged(self, record: VolumeRecord, text: str) -> VolumeRecord:
        """See ``Cache.mark_damaged``."""
        marked = replace(record, damaged=True, reason=NodeReason.HASH_FAILED, text=text[:TEXT_MAX])
        self._ledger.save(marked)
        self._mend(record.infohash)
        return self._ledger.known(record.infohash)

    def _leasable(self, infohash: str) -> tuple[VolumeRecord, Volume]:
        record = self._ledger.known(infohash)
        if record.state is State.BLOCKED or record.reason is NodeReason.REVOKED:
            raise Revoked(
                f"image {record.image} was revoked: {record.text or 'no reason given'}",
                hint="use another image or version",
                image=record.image,
            )
        volume = self._room.volume(record)
        if record.state is not State.READY or volume is None or not volume.sealed:
            what = f"is {record.state}, not ready"
            if record.state is State.READY:
                lost = "is not there" if volume is None else "was written to"
                what = f"cannot be leased: its volume {lost}, and is made good"
            raise NotReady(
                f"image {record.image} {what}",
                hint="wait, or see `distrib-agent status` for the reason",
                image=record.image,
                state=str(record.state),
            )
        if record.damaged:
            raise NotReady(
                f"image {record.image} is damaged on this node: {record.text or 'bad pieces'}",
                hint="it is repaired once its leases end; use another node or version",
                image=record.image,
                state=str(record.state),
            )
        return record, volume

    def _mend(self, infohash: str) -> None:
        """Repair what is marked as damaged, when nothing stands on it any more."""
        record = self._ledger.records.get(infohash)
        if record is None or not record.damaged or record.state is not State.READY:
            return
        if self._ledger.leases_of(infohash):
            return
        try:
            if not any(i.infohash == infohash for i in self._stores[record.store].instances()):
                self.repair(record)
        except (DistribError, OSError) as error:
            self._put_off("repair-put-off", infohash, error)

    def _drop(self, lease: Lease) -> None:
        """Take back a lease that was not given; what cannot be removed now is reaped later."""
        if self._forget(lease):
            self._drop_instance(self._stores[lease.store], lease.lease)
            self._mend(lease.infohash)

    def _lives(self, lease: Lease, now: datetime) -> bool:
        try:
            return self._is_alive(lease.holder, now)
        except (DistribError, OSError) as error:
            self._put_off("holder-not-probed", lease.lease, error)
            return True

    def _forget(self, lease: Lease) -> bool:
        try:
            self._ledger.forget_lease(lease)
        except (DistribError, OSError) as error:
            self._put_off("lease-not-removed", lease.lease, error)
            return False
        self._stuck.discard(lease.lease)
        return True

    def _drop_strays(self, store: Store) -> None:
        try:
            strays = [i.lease for i in store.instances() if i.lease not in self._ledger.leases]
        except OSError as error:
            self._put_off("instances-not-read", store.name, error)
            return
        for lease in strays:
            self._drop_instance(store, lease)

    def _drop_instance(self, store: Store, lease: str) -> None:
        try:
            store.drop_instance(lease)
        except (DistribError, OSError) as error:
            self._put_off("instance-not-removed", lease, error)
        else:
            self._stuck.discard(lease)

    def _put_off(self, event: str, what: str, error: Exception) -> None:
        """Say it once; the next round tries again."""
        if what not in self._stuck:
            self._stuck.add(what)
            log.warning(event, what=what, why=str(error))
