"""How full the jobs' instances are."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Protocol, runtime_checkable


@dataclass(frozen=True)
class Fill:
    """An instance: ``used_bytes`` of its own are written, ``cow_bytes`` were reserved."""

    lease: str
    cow_bytes: int
    used_bytes: int

    @property
    def overrun(self) -> bool:
        return self.used_bytes > self.cow_bytes


@runtime_checkable
class Filling(Protocol):
    """A store that knows how full its instances are."""

    def fills(self) -> tuple[Fill, ...]:
        """Of every instance that is there. May take seconds: not under the cache's lock."""
        ...
