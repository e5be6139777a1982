"""Instances whose room can run out under a job, and what is done about it in time."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Protocol, runtime_checkable


@dataclass(frozen=True)
class SnapshotFill:
    """How much of its copy-on-write room an instance has used. ``overflowed``: it ran out, and
    the instance gives errors only. ``safe``: it is as large as it can ever need."""

    lease: str
    infohash: str
    cow_bytes: int
    percent: float
    overflowed: bool
    safe: bool


@runtime_checkable
class Growing(Protocol):
    """A store whose instances have bounded room, which can be watched and extended."""

    name: str

    def snapshots(self) -> tuple[SnapshotFill, ...]:
        """Of each instance. Raises StorageFailed."""
        ...

    def extend(self, lease: str, *, limit_bytes: int) -> SnapshotFill:
        """Let one grow by half, to no more than ``limit_bytes``. Raises NoSpace when there is no
        room or the limit is reached, NotFound, StorageFailed."""
        ...


def fills(stores: Iterable[object]) -> dict[str, float]:
    """How full instances are, in percent, by lease; of those that can run full. Raises
    StorageFailed."""
    growing = [store for store in stores if isinstance(store, Growing)]
    return {fill.lease: fill.percent for store in growing for fill in store.snapshots()}
