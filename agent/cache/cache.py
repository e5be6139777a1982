"""The block cache of a node: the one place that changes a volume's state.

Invariants, held under one lock that leases and eviction share:
- every change is on disk before it is acted on;
- a leased, pinned, desired, active volume or one being pulled is never evicted to make room;
- at most one version of an identifier is active;
- room is reserved before the first byte.

Calls block (the daemon makes them from worker threads). Slow work on a single volume (flushing,
probing holders, making instances) is done without the lock, and the state is looked at again after.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace
from datetime import UTC, datetime
from pathlib import Path
from threading import RLock
from typing import Final

from agent.cache import holders
from agent.cache.eviction import Candidate, Eviction
from agent.cache.findings import Sweeping
from agent.cache.holders import Holder
from agent.cache.leases import Lease
from agent.cache.leasing import Leasing
from agent.cache.ledger import Ledger
from agent.cache.overruns import Overrun, overruns
from agent.cache.records import ImageVersion, VolumeRecord, absent
from agent.cache.recovery import Recovery, Start
from agent.cache.room import Room
from agent.cache.snapshot import Holding, Snapshot, reported_state
from agent.cache.snapshots import fills
from agent.cache.store import Store, Volume
from distrib.bus.messages import NodeReason, State
from distrib.errors import Conflict, NotFound, StorageFailed

_LONG_AGO: Final = datetime.min.replace(tzinfo=UTC)


class Cache:
    """Owns stores, records and leases. ``recover`` comes first."""

    def __init__(
        self,
        *,
        state_dir: Path,
        stores: Sequence[Store],
        clock: Callable[[], datetime],
        low_watermark: float = 0.8,
        high_watermark: float = 1.0,
        is_alive: Callable[[Holder, datetime], bool] = holders.alive,
        on_change: Callable[[VolumeRecord], None] | None = None,
        before_evict: Callable[[str], None] | None = None,
        on_evict: Callable[[Eviction], None] | None = None,
    ) -> None:
        """``stores``: the first is where images go by default. ``clock`` gives aware times.

        ``on_change`` hears of each record that was saved, and of each that went (``absent``), in
        the calling thread and under the lock: it may not block or call back. Nor may ``on_evict``,
        which hears of each volume that was evicted, and why. ``before_evict`` gets the info-hash
        of one that is about to be, to close it: under the lock too, it may not call back."""
        self._stores: dict[str, Store] = {store.name: store for store in stores}
        self._default_store = stores[0].name
        self._ledger = Ledger(state_dir, clock, on_change)
        self._is_alive = is_alive
        self._lock = RLock()
        marks = (low_watermark, max(low_watermark, high_watermark))
        self._room = Room(self._ledger, self._stores, marks, before_evict, on_evict)
        self._leasing = Leasing(self._ledger, self._stores, self._room, self._lock, is_alive)
        self._next_active: dict[str, str] = {}

    def recover(self) -> Recovery:
        """Read what is on disk and finish what was interrupted (docs/formats/state.md).

        Every volume counts as desired until ``set_desired`` says otherwise."""
        with self._lock:
            found = Start(self._ledger, self._stores, self._is_alive).run()
            self._room.unknown = dict(found.unknown)
            self._room.desired = None
            self._next_active = {}
            return found

    # What there is ------------------------------------------------------------------------------

    def snapshot(self) -> Snapshot:
        with self._lock:
            held = [
                Holding(record, reported_state(record, leases), leases)
                for record in sorted(self._ledger.records.values(), key=lambda r: r.image)
                for leases in [self._ledger.leases_of(record.infohash)]
            ]
            spaces = {name: store.space() for name, store in self._stores.items()}
            return Snapshot(spaces, tuple(held), tuple(self._room.unknown))

    def record(self, infohash: str) -> VolumeRecord | None:
        with self._lock:
            return self._ledger.records.get(infohash)

    def volume(self, infohash: str) -> Volume:
        """The volume of a record. Raises NotFound when there is no record or no volume."""
        with self._lock:
            found = self._room.volume(self._ledger.known(infohash))
            if found is None:
                raise NotFound(f"volume {infohash} is not there", hint="see the agent's log")
            return found

    @contextmanager
    def holding(self, infohash: str) -> Iterator[Volume]:
        """A ``ready`` volume that is not removed meanwhile. Raises NotFound, Conflict."""
        with self._lock:
            self._ledger.in_state(infohash, State.READY)
            volume = self.volume(infohash)
            self._room.held[infohash] += 1
        try:
            yield volume
        finally:
            with self._lock:
                self._room.held[infohash] -= 1

    def store_of(self, infohash: str) -> Store:
        with self._lock:
            return self._stores[self._ledger.known(infohash).store]

    def damaged(self) -> frozenset[str]:
        """The info-hashes of volumes in which bad pieces were found, and that are not repaired."""
        with self._lock:
            return frozenset(r.infohash for r in self._ledger.records.values() if r.damaged)

    def leases(self, infohash: str | None = None) -> tuple[Lease, ...]:
        """All leases, or those of one volume."""
        with self._lock:
            return self._ledger.leases_of(infohash)

    def resolve(self, identifier: str, version: str | None = None) -> VolumeRecord:
        """The record of ``identifier@version``; without a version of the active one."""
        with self._lock:
            mine = [r for r in self._ledger.records.values() if r.identifier == identifier]
            found = [r for r in mine if (r.active if version is None else r.version == version)]
            if not found:
                raise NotFound(
                    f"image {identifier} {version or '(active version)'} is not on this node",
                    hint="ask for it with `distrib rollout start`",
                    image=identifier,
                )
            return max(found, key=lambda r: r.active_since or _LONG_AGO)

    # The life of a volume -----------------------------------------------------------------------

    def desire(
        self,
        image: ImageVersion,
        *,
        active: bool = False,
        pinned: bool | None = None,
        store: str | None = None,
        retry: bool = False,
    ) -> VolumeRecord:
        """Want a version here: takes the room, evicting others where it must. Idempotent.

        Returns the record: ``reserved`` (fresh: no byte is there), ``pulling`` (bytes may be there
        and are to be verified), a later state when it was here already, or ``failed`` with the
        reason. A failed one is only tried again with ``retry``, or once the instances are gone
        that were in the way. ``active``: it becomes the active version now, or once it is ready
        when another that is active can be used until then."""
        with self._lock:
            if self._room.desired is not None:
                self._room.desired.add(image.infohash)
            record = self._ledger.records.get(image.infohash)
            if record is not None and self._room.is_over(record):
                self._room.evict(image.infohash, "asked")
                record = None
            if record is None:
                record = self._room.take(
                    absent(image, store or self._default_store, self._ledger.now())
                )
            elif self._room.is_free_again(record) or (record.state is State.FAILED and retry):
                record = self._room.take(record)
            elif self._room.is_open(record):
                record = self._leasing.mark_damaged(record, "somebody wrote to it")
            if pinned is not None and pinned != record.pinned:
                record = self._ledger.save(replace(record, pinned=pinned))
            return self._want_active(record) if active else self._want_inactive(record)

    def set_desired(self, infohashes: Iterable[str]) -> None:
        """All that the site wants here: the rest may be evicted when room is needed."""
        with self._lock:
            self._room.desired = set(infohashes)

    def start_pull(self, infohash: str) -> VolumeRecord:
        """``reserved`` becomes ``pulling``; ``pulling`` stays so."""
        with self._lock:
            record = self._ledger.known(infohash)
            return (
                record
                if record.state is State.PULLING
                else self._ledger.move(record, State.PULLING)
            )

    def to_verifying(
        self, infohash: str, *, fetched_bytes: int = 0, wasted_bytes: int = 0, copied_bytes: int = 0
    ) -> VolumeRecord:
        """All pieces are there. The counts are added to those of earlier pulls."""
        with self._lock:
            record = self._ledger.known(infohash)
            counted = replace(
                record,
                fetched_bytes=record.fetched_bytes + fetched_bytes,
                wasted_bytes=record.wasted_bytes + wasted_bytes,
                copied_bytes=record.copied_bytes + copied_bytes,
            )
            return self._ledger.move(counted, State.VERIFYING)

    def ready(self, infohash: str) -> VolumeRecord:
        """All is verified, and libtorrent has let go: seal the volume.

        Returns the record, ``ready`` or ``failed(storage-failed)``. Raises Conflict when it is not
        ``verifying``, or was moved on meanwhile."""
        with self._lock:
            record = self._ledger.in_state(infohash, State.VERIFYING)
            store, volume = self._stores[record.store], self.volume(infohash)
        fault: StorageFailed | None = None
        try:
            store.seal(replace(volume, size_bytes=record.size_bytes))
        except StorageFailed as error:
            fault = error
        with self._lock:
            record = self._ledger.in_state(infohash, State.VERIFYING)
            if fault is not None:
                return self._ledger.fail_by(record, fault)
            record = self._ledger.move(record, State.READY)
            if self._next_active.get(record.identifier) == infohash:
                return self._ledger.activate(record)
            return record

    def fail(self, infohash: str, reason: NodeReason, text: str = "") -> VolumeRecord:
        """Give a volume up for now; what is on disk stays until it is retried or evicted."""
        with self._lock:
            return self._ledger.fail(self._ledger.known(infohash), reason, text)

    def repair(self, infohash: str) -> VolumeRecord:
        """``ready`` becomes ``pulling`` again, writable: a piece went bad. Raises Conflict while
        it is leased."""
        with self._lock:
            record = self._ledger.in_state(infohash, State.READY)
            if self._ledger.leases_of(infohash):
                raise _kept(record, "leased")
            return self._leasing.repair(record)

    def mark_damaged(self, infohash: str, text: str = "") -> VolumeRecord:
        """A ``ready`` volume has bad pieces: no new leases, and repair as soon as nothing stands
        on it, at once when nothing does. Raises Conflict when it is not ``ready``."""
        with self._lock:
            return self._leasing.mark_damaged(self._ledger.in_state(infohash, State.READY), text)

    def block(self, infohash: str, text: str = "") -> VolumeRecord:
        """Revoked: no new leases; what runs is the caller's matter, as is a pull under way."""
        with self._lock:
            record = self._ledger.known(infohash)
            if record.state is State.READY:
                return self._ledger.move(record, State.BLOCKED, NodeReason.REVOKED, text)
            if record.state is State.BLOCKED:
                return record
            return self.fail(infohash, NodeReason.REVOKED, text)

    def unblock(self, infohash: str) -> VolumeRecord:
        """A revocation was taken back: ``ready``, or ``pulling`` when the seal is broken."""
        with self._lock:
            record = self._ledger.in_state(infohash, State.BLOCKED)
            volume = self._room.volume(record)  # none: `desire` takes its room anew
            sealed = volume is None or volume.sealed
            record = self._ledger.move(record, State.READY if sealed else State.PULLING)
            return self._leasing.mark_damaged(record, "bad pieces") if record.damaged else record

    def evict(self, infohash: str, *, force: bool = False) -> None:
        """Remove a volume. Raises Conflict while it is leased or held; and, without ``force``,
        while it is pinned, desired, active or being pulled."""
        with self._lock:
            record = self._ledger.known(infohash)
            why = self._room.candidate(record).kept_because
            if why in ("leased", "held") or (why is not None and not force):
                raise _kept(record, why)
            self._room.evict(infohash, "asked")

    def relieve(self) -> None:
        """Evict above the high watermark down to the low one, before anybody asks."""
        with self._lock:
            self._room.relieve()

    def collect(self, *, dry_run: bool = False) -> tuple[Candidate, ...]:
        """Evict all that nobody needs: not leased, pinned, desired, active or being pulled.

        Returns what went, or would go. What cannot be removed stays and is logged."""
        with self._lock:
            return self._room.collect(dry_run=dry_run)

    def sweep(self, *, dry_run: bool = False) -> tuple[str, ...]:
        """Remove what stores left in the kernel and no instance owns. Returns its names."""
        with self._lock:
            sweeping = [one for one in self._stores.values() if isinstance(one, Sweeping)]
            return tuple(
                name for one in sweeping for name in (one.leftovers() if dry_run else one.sweep())
            )

    # Flags --------------------------------------------------------------------------------------

    def pin(self, infohash: str) -> VolumeRecord:
        with self._lock:
            return self._ledger.save(replace(self._ledger.known(infohash), pinned=True))

    def unpin(self, infohash: str) -> VolumeRecord:
        with self._lock:
            return self._ledger.save(replace(self._ledger.known(infohash), pinned=False))

    def activate(self, infohash: str) -> VolumeRecord:
        """Make a version the active one of its identifier, now."""
        with self._lock:
            return self._ledger.activate(self._ledger.known(infohash))

    def deactivate(self, infohash: str) -> VolumeRecord:
        """Make a version inactive; its identifier then has no active one."""
        with self._lock:
            record = self._want_inactive(self._ledger.known(infohash))
            return self._ledger.deactivate(record)

    # Leases -------------------------------------------------------------------------------------

    def lease(
        self,
        infohash: str,
        *,
        holder: Holder,
        user: str,
        cow_bytes: int,
        scratch_bytes: int = 0,
        owner_uid: int | None = None,
        block: bool = False,
    ) -> Lease:
        """A writable instance for a job, which lives as long as ``holder``; its files belong to
        ``owner_uid``, if given. ``block``: as a block device, also where the store has files.

        Raises NotFound, NotReady, Revoked, NoSpace, StorageFailed or ToolMissing."""
        return self._leasing.lease(
            infohash,
            holder=holder,
            user=user,
            cow_bytes=cow_bytes,
            scratch_bytes=scratch_bytes,
            owner_uid=owner_uid,
            block=block,
        )

    def overruns(self) -> tuple[Overrun, ...]:
        """The instances that have outgrown their room."""
        return overruns(self._stores.values())

    def fills(self) -> dict[str, float]:
        """How full bounded instances are, in percent, by lease. Raises StorageFailed."""
        return fills(self._stores.values())

    def release(self, lease: str) -> Lease:
        """End a lease and remove its instance (in a later round of ``reap_dead_leases`` where
        that fails now). Raises NotFound when there is none, Conflict while it is being made."""
        return self._leasing.release(lease)

    def reap_dead_leases(self) -> tuple[Lease, ...]:
        """End the leases whose holders are dead; every minute. Returns them. What cannot be
        removed is logged once and tried again in the next round."""
        return self._leasing.reap()

    # Inside the lock ----------------------------------------------------------------------------

    def _want_active(self, record: VolumeRecord) -> VolumeRecord:
        usable = any(
            one.active and one.state is State.READY and one.identifier == record.identifier
            for one in self._ledger.records.values()
        )
        if record.state is not State.READY and usable:
            self._next_active[record.identifier] = record.infohash
            return record
        self._next_active.pop(record.identifier, None)
        return self._ledger.activate(record)

    def _want_inactive(self, record: VolumeRecord) -> VolumeRecord:
        """Only another version's turn, or ``deactivate``, ends that of the active one."""
        if self._next_active.get(record.identifier) == record.infohash:
            del self._next_active[record.identifier]
        return record


def _kept(record: VolumeRecord, why: str) -> Conflict:
    return Conflict(
        f"image {record.image} is {why}",
        hint="release, unpin or roll it back first",
        image=record.image,
        infohash=record.infohash,
    )
