"""Where a rollout stands: one row per target, and the state that follows from the rows.

Invariants:

- A row changes only by presence or by a report that *counts*: of this image version and info-hash,
  with a generation not below the one that the node was first sent for this rollout.
- A target that is offline has the bucket ``offline`` whatever it last said; it blocks nothing, and
  goes on from where it is when it returns.
- ``running`` ends once, as ``done``, ``failed`` or ``aborted``, and is never left again. Rows go on
  changing after ``done`` and ``failed``: offline nodes catch up; after ``done`` late joiners are
  warmed. After ``aborted`` a row that was not ready nor failed is ``cancelled``.
- ``done``: every online target is ready, and there is at least one.
- ``failed``: every online target is ready or failed, and at least one failed; or no target is
  online, and none was for ``silent_s``; or nobody pulls, somebody waits, and no row has moved for
  ``silent_s``; or the deadline has passed, with some grace for last words.
- An online target that has been sent its order, or says that it pulls, and then says nothing that
  counts for ``silent_s``, is ``failed`` with the reason ``no-report`` until it speaks.

Pure: times are given. Every function returns the rollout after the change; the same object where
nothing changed. Rows may change many times before ``advanced`` looks at all and moves the phase.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field, replace
from datetime import datetime, timedelta
from enum import StrEnum

DEFAULT_SILENT_S = 120.0
DEADLINE_GRACE = timedelta(seconds=15)
NO_REPORT = "no-report"


class Bucket(StrEnum):
    """Where a target is counted."""

    WAITING = "waiting"
    PULLING = "pulling"
    VERIFYING = "verifying"
    READY = "ready"
    FAILED = "failed"
    CANCELLED = "cancelled"
    OFFLINE = "offline"


class Phase(StrEnum):
    """The state of a rollout."""

    RUNNING = "running"
    DONE = "done"
    FAILED = "failed"
    ABORTED = "aborted"


_BUCKET_OF_STATE = {
    "absent": Bucket.WAITING,
    "reserved": Bucket.WAITING,
    "evicting": Bucket.WAITING,
    "pulling": Bucket.PULLING,
    "verifying": Bucket.VERIFYING,
    "ready": Bucket.READY,
    "leased": Bucket.READY,
    "failed": Bucket.FAILED,
    "blocked": Bucket.FAILED,
}


_MOVING = frozenset({"pulling", "verifying"})


@dataclass(frozen=True)
class ImageKey:
    """The image version that a rollout brings."""

    identifier: str
    version: str
    infohash: str

    def __str__(self) -> str:
        return f"{self.identifier}@{self.version}"


@dataclass(frozen=True)
class Claim:
    """What a node's report says of the image. ``state`` as in docs/formats/state.md."""

    state: str
    since: datetime
    bytes_done: int = 0
    bytes_total: int = 0
    rate_bps: int = 0
    reason: str | None = None
    text: str = ""
    fetched_bytes: int = 0
    wasted_bytes: int = 0
    copied_bytes: int = 0


@dataclass(frozen=True)
class Target:
    """One node of a rollout.

    ``generation`` is the first that named the image to it; None: it was not sent yet.
    """

    node: str
    online: bool
    since: datetime
    generation: int | None = None
    issued_at: datetime | None = None
    heard_at: datetime | None = None
    claim: Claim | None = None
    ready_at: datetime | None = None
    silent: bool = False
    cancelled: bool = False

    @property
    def bucket(self) -> Bucket:
        """Where it is counted."""
        if not self.online:
            return Bucket.OFFLINE
        if self.cancelled:
            return Bucket.CANCELLED
        if self.silent:
            return Bucket.FAILED
        if self.claim is None:
            return Bucket.WAITING
        return _BUCKET_OF_STATE.get(self.claim.state, Bucket.WAITING)

    @property
    def reason(self) -> str | None:
        """Why it is there, as a code."""
        if self.silent:
            return NO_REPORT
        if self.cancelled:
            return None
        return None if self.claim is None else self.claim.reason

    def quiet_since(self, begun: datetime) -> datetime | None:
        """Since when it should have spoken; None for one that may be silent."""
        if not self.online or self.silent:
            return None
        if self.claim is None:
            return self.issued_at or begun
        # Nodes report at intervals while they pull (docs/formats/messages.md, Report).
        return self.heard_at if self.claim.state in _MOVING else None


@dataclass(frozen=True)
class Summary:
    """Targets by bucket. ``ready`` to ``offline`` add up to ``targets``."""

    targets: int = 0
    ready: int = 0
    pulling: int = 0
    verifying: int = 0
    waiting: int = 0
    failed: int = 0
    cancelled: int = 0
    offline: int = 0
    bytes_done: int = 0
    bytes_total: int = 0
    rate_bps: int = 0


@dataclass(frozen=True)
class Rollout:
    """A rollout and its targets by node."""

    id: str
    image: ImageKey
    size_bytes: int
    accepted_at: datetime
    alone_since: datetime
    """When the last online target went; meaningless while one is online."""
    stirred_at: datetime
    """When a row last came, went, or said something else; or when we last began to listen."""
    deadline: datetime | None = None
    phase: Phase = Phase.RUNNING
    ended_at: datetime | None = None
    silent_s: float = DEFAULT_SILENT_S
    targets: Mapping[str, Target] = field(default_factory=dict)

    @property
    def is_running(self) -> bool:
        return self.phase is Phase.RUNNING

    def summary(self) -> Summary:
        """Counts over all targets; bytes of the image that are verified on them."""
        counts = dict.fromkeys(Bucket, 0)
        done = rate = 0
        for target in self.targets.values():
            counts[target.bucket] += 1
            done += self.bytes_done(target)
            if target.bucket is Bucket.PULLING and target.claim is not None:
                rate += target.claim.rate_bps
        return Summary(
            targets=len(self.targets),
            ready=counts[Bucket.READY],
            pulling=counts[Bucket.PULLING],
            verifying=counts[Bucket.VERIFYING],
            waiting=counts[Bucket.WAITING],
            failed=counts[Bucket.FAILED],
            cancelled=counts[Bucket.CANCELLED],
            offline=counts[Bucket.OFFLINE],
            bytes_done=done,
            bytes_total=self.size_bytes * len(self.targets),
            rate_bps=rate,
        )

    def bytes_done(self, target: Target) -> int:
        """Verified bytes of a target: a claim above the image's size is cut to it."""
        if target.claim is None:
            return 0
        return min(target.claim.bytes_done, self.size_bytes)


def begin(
    *,
    rollout: str,
    image: ImageKey,
    size_bytes: int,
    online: Iterable[str],
    offline: Iterable[str],
    now: datetime,
    deadline: datetime | None = None,
    silent_s: float = DEFAULT_SILENT_S,
) -> Rollout:
    """A new rollout, nobody told yet."""
    targets = {node: Target(node, online=True, since=now) for node in online}
    targets |= {node: Target(node, online=False, since=now) for node in offline}
    return Rollout(
        rollout,
        image,
        size_bytes,
        now,
        now,
        now,
        deadline=deadline,
        silent_s=silent_s,
        targets=targets,
    )


def joined(rollout: Rollout, node: str, *, online: bool, now: datetime) -> Rollout:
    """A node that matches was added, or came back under this name; not to what did not go well."""
    if node in rollout.targets or rollout.phase in {Phase.FAILED, Phase.ABORTED}:
        return rollout
    return _with(rollout, Target(node, online=online, since=now), now)


def left(rollout: Rollout, node: str) -> Rollout:
    """A node was forgotten: it is no target any more."""
    if node not in rollout.targets:
        return rollout
    others = {name: target for name, target in rollout.targets.items() if name != node}
    return replace(rollout, targets=others)


def issued(rollout: Rollout, node: str, generation: int, now: datetime) -> Rollout:
    """The node was sent a desired state that names the image. Only the first one counts."""
    target = rollout.targets.get(node)
    if target is None or target.generation is not None:
        return rollout
    return _with(rollout, replace(target, generation=generation, issued_at=now), now)


def seen(rollout: Rollout, node: str, *, online: bool, now: datetime) -> Rollout:
    """The node came or went."""
    target = rollout.targets.get(node)
    if target is None or target.online == online:
        return rollout
    # Its time to speak begins anew with its return.
    moved = replace(_with_clocks(target, now), online=online, since=now, silent=False)
    return _with(rollout, moved, now)


def reported(
    rollout: Rollout, node: str, *, generation: int, claim: Claim | None, now: datetime
) -> Rollout:
    """The node's newest report; ``claim`` None: the image, in this version, is not in it."""
    target = rollout.targets.get(node)
    if target is None or target.generation is None or generation < target.generation:
        return rollout
    if rollout.phase is Phase.ABORTED:
        return rollout
    heard = claim or Claim("absent", now if target.claim is None else target.claim.since)
    ready = _BUCKET_OF_STATE.get(heard.state) is Bucket.READY
    moved = replace(
        target,
        claim=heard,
        heard_at=now,
        silent=False,
        since=heard.since,
        ready_at=target.ready_at or now if ready else None,
    )
    return _with(rollout, moved, now)


def aborted(rollout: Rollout, now: datetime) -> Rollout:
    """The operator ends it. Without effect once it has ended."""
    if not rollout.is_running:
        return rollout
    targets = {node: _cancelled(target, now) for node, target in rollout.targets.items()}
    return replace(rollout, phase=Phase.ABORTED, ended_at=now, targets=targets)


def listening(rollout: Rollout, now: datetime) -> Rollout:
    """We hear the nodes (again): their silence while we could not listen is not held to them."""
    targets = {node: _with_clocks(target, now) for node, target in rollout.targets.items()}
    return replace(rollout, targets=targets, alone_since=now, stirred_at=now)


def advanced(rollout: Rollout, now: datetime) -> Rollout:
    """The rollout at ``now``: silent targets counted as failed, and the phase that follows."""
    if not rollout.is_running:
        return rollout
    rollout = _without_silent(rollout, now)
    phase = _phase(rollout, now)
    return rollout if phase is Phase.RUNNING else replace(rollout, phase=phase, ended_at=now)


def _without_silent(rollout: Rollout, now: datetime) -> Rollout:
    limit = timedelta(seconds=rollout.silent_s)
    silent = {}
    for node, target in rollout.targets.items():
        quiet_since = target.quiet_since(rollout.accepted_at)
        if quiet_since is not None and now - quiet_since >= limit:
            silent[node] = replace(target, silent=True, since=now)
    return replace(rollout, targets={**rollout.targets, **silent}) if silent else rollout


def _cancelled(target: Target, now: datetime) -> Target:
    """The row after an abort: nothing is fetched for it any more."""
    bucket = replace(target, online=True).bucket
    if bucket in {Bucket.READY, Bucket.FAILED}:
        return target
    claim = target.claim and replace(target.claim, rate_bps=0, text="")
    return replace(target, claim=claim, since=now, cancelled=True)


def _with_clocks(target: Target, now: datetime) -> Target:
    return replace(
        target,
        issued_at=now if target.issued_at is not None else None,
        heard_at=now if target.heard_at is not None else None,
    )


def _phase(rollout: Rollout, now: datetime) -> Phase:
    late = rollout.deadline is not None and now >= rollout.deadline + DEADLINE_GRACE
    buckets = {target.bucket for target in rollout.targets.values()} - {Bucket.OFFLINE}
    if not buckets:
        late = late or now - rollout.alone_since >= timedelta(seconds=rollout.silent_s)
        return Phase.FAILED if late else Phase.RUNNING
    if buckets == {Bucket.READY}:
        return Phase.DONE
    stalled = now - rollout.stirred_at >= timedelta(seconds=rollout.silent_s)
    resting = {Bucket.READY, Bucket.FAILED, *([Bucket.WAITING] if stalled else [])}
    ended = late or buckets <= resting
    return Phase.FAILED if ended else Phase.RUNNING


def _with(rollout: Rollout, target: Target, now: datetime) -> Rollout:
    before = rollout.targets.get(target.node)
    others_online = any(other.online for other in rollout.targets.values())
    return replace(
        rollout,
        targets={**rollout.targets, target.node: target},
        # The clock of the silence starts when the last one goes.
        alone_since=now if others_online else rollout.alone_since,
        stirred_at=now if _speech(before) != _speech(target) else rollout.stirred_at,
    )


def _speech(target: Target | None) -> tuple[object, ...]:
    """What of a row differs where something goes on."""
    claim = None if target is None else target.claim
    said = None if claim is None else (claim.state, claim.reason, claim.bytes_done)
    return (target and target.online, target and target.generation, said)
