"""Records and leases, in memory as they are on disk: each change is written first.

No lock and no policy of its own: only the cache, which owns it, and the cache's start use it.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Final

from agent.cache.leases import Lease, Leases, LoadedLeases
from agent.cache.records import TEXT_MAX, LoadedRecords, Records, VolumeRecord
from distrib.bus.messages import NodeReason, State
from distrib.errors import Conflict, DistribError, NoSpace, NotFound, StorageFailed, TargetTooSmall

_TICK: Final = timedelta(milliseconds=1)
"""What times on disk can tell apart."""

_LONG_AGO: Final = datetime.min.replace(tzinfo=UTC)


class Ledger:
    """What the node knows. ``records`` and ``leases`` are read by others, changed only here."""

    def __init__(
        self,
        state_dir: Path,
        clock: Callable[[], datetime],
        on_change: Callable[[VolumeRecord], None] | None,
    ) -> None:
        self._record_files = Records(state_dir / "volumes")
        self._lease_files = Leases(state_dir / "leases")
        self._clock = clock
        self._on_change = on_change
        self.records: dict[str, VolumeRecord] = {}
        self.leases: dict[str, Lease] = {}

    def load(self) -> tuple[LoadedRecords, LoadedLeases]:
        """Read what is on disk in the place of what is remembered."""
        records, leases = self._record_files.load(), self._lease_files.load()
        self.records = {one.infohash: one for one in records.records}
        self.leases = {one.lease: one for one in leases.leases}
        return records, leases

    def now(self) -> datetime:
        """The clock, as exact as the files are."""
        now = self._clock().astimezone(UTC)
        return now.replace(microsecond=now.microsecond // 1000 * 1000)

    def known(self, infohash: str) -> VolumeRecord:
        """The record. Raises NotFound when there is none."""
        record = self.records.get(infohash)
        if record is None:
            raise NotFound(
                f"image {infohash} is not on this node",
                hint="see `distrib-agent status`",
                infohash=infohash,
            )
        return record

    def in_state(self, infohash: str, state: State) -> VolumeRecord:
        """The record, which must be in this state. Raises NotFound or Conflict."""
        record = self.known(infohash)
        if record.state is not state:
            raise Conflict(
                f"image {record.image} is {record.state}, not {state}",
                hint="see `distrib-agent status`",
                image=record.image,
                infohash=infohash,
                state=str(record.state),
            )
        return record

    def leases_of(self, infohash: str | None) -> tuple[Lease, ...]:
        """The leases of a volume; all with None."""
        return tuple(one for one in self.leases.values() if infohash in (None, one.infohash))

    def save(self, record: VolumeRecord) -> VolumeRecord:
        """Write a record, then remember and announce it."""
        self._record_files.save(record)
        self.records[record.infohash] = record
        self._announce(record)
        return record

    def move(
        self, record: VolumeRecord, to: State, reason: NodeReason | None = None, text: str = ""
    ) -> VolumeRecord:
        """Take a record to another state. Raises Conflict where there is no such step."""
        return self.save(record.moved(to, self.now(), reason=reason, text=text))

    def fail(self, record: VolumeRecord, reason: NodeReason, text: str = "") -> VolumeRecord:
        """Take a record to ``failed``, or give a failed one another reason."""
        if record.state is State.FAILED:
            return self.save(replace(record, reason=reason, text=text[:TEXT_MAX]))
        return self.move(record, State.FAILED, reason, text)

    def fail_by(self, record: VolumeRecord, error: DistribError) -> VolumeRecord:
        """Take a record to ``failed`` for what an error says."""
        return self.fail(record, _reason(error), error.message)

    def forget(self, infohash: str, text: str = "") -> None:
        """Delete a record, or what is left of one that could not be read; ``text``: why."""
        self._record_files.delete(infohash)
        record = self.records.pop(infohash, None)
        if record is not None:
            gone = replace(
                record,
                state=State.ABSENT,
                since=self.now(),
                reason=NodeReason.EVICTED,
                text=text[:TEXT_MAX],
            )
            self._announce(gone)

    def activate(self, record: VolumeRecord) -> VolumeRecord:
        """Make a version the active one of its identifier.

        The new one is written first: a crash between the two leaves both active, and the later
        ``active_since`` wins, whatever the clock has done."""
        rivals = [
            one
            for one in self.records.values()
            if one.active and one.identifier == record.identifier and one != record
        ]
        if record.active and not rivals:
            return record
        latest = max((one.active_since or _LONG_AGO for one in rivals), default=_LONG_AGO)
        since = max(self.now(), latest + _TICK)
        record = self.save(replace(record, active=True, active_since=since))
        for rival in rivals:
            self.deactivate(rival)
        return record

    def deactivate(self, record: VolumeRecord) -> VolumeRecord:
        if not record.active:
            return record
        return self.save(replace(record, active=False, active_since=None))

    def save_lease(self, lease: Lease) -> Lease:
        """Write a lease, then remember it."""
        self._lease_files.save(lease)
        self.leases[lease.lease] = lease
        return lease

    def forget_lease(self, lease: Lease) -> None:
        """Delete a lease, then forget it."""
        self._lease_files.delete(lease)
        self.leases.pop(lease.lease, None)

    def _announce(self, record: VolumeRecord) -> None:
        if self._on_change is not None:
            self._on_change(record)


def _reason(error: DistribError) -> NodeReason:
    if isinstance(error, TargetTooSmall):
        return NodeReason.TARGET_TOO_SMALL
    if isinstance(error, NoSpace):
        return NodeReason.NO_SPACE
    if isinstance(error, StorageFailed):
        return NodeReason.STORAGE_FAILED
    return NodeReason.INTERNAL
