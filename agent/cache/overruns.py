"""Instances that have outgrown the room that was reserved for them.

Nothing below an overlay or a reflink copy stops it at the bytes that its job asked for. What is
more counts against the quota, and is told.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Protocol, runtime_checkable


@dataclass(frozen=True)
class Overrun:
    """An instance: ``used_bytes`` of its own are written, ``cow_bytes`` were reserved."""

    lease: str
    cow_bytes: int
    used_bytes: int


@runtime_checkable
class Unbounded(Protocol):
    """A store whose instances can outgrow their room."""

    def overruns(self) -> tuple[Overrun, ...]:
        """Those that have. May take seconds: not under the cache's lock."""
        ...


def overruns(stores: Iterable[object]) -> tuple[Overrun, ...]:
    """The instances of all stores that have outgrown their room."""
    unbounded = [store for store in stores if isinstance(store, Unbounded)]
    return tuple(overrun for store in unbounded for overrun in store.overruns())
