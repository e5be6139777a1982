"""What the cache holds at one moment, for reports and for whoever asks."""

from __future__ import annotations

from dataclasses import dataclass

from agent.cache.leases import Lease
from agent.cache.records import VolumeRecord
from agent.cache.store import Space
from distrib.bus.messages import State


@dataclass(frozen=True)
class Holding:
    """A record with its state as reported (``leased`` derived) and its leases."""

    record: VolumeRecord
    state: State
    leases: tuple[Lease, ...]


@dataclass(frozen=True)
class Snapshot:
    """The whole cache. ``spaces`` by the stores' names; ``unknown`` are the info-hashes of
    volumes whose records could not be read."""

    spaces: dict[str, Space]
    holdings: tuple[Holding, ...]
    unknown: tuple[str, ...]

    @property
    def used_bytes(self) -> int:
        return sum(space.used_bytes for space in self.spaces.values())

    @property
    def capacity_bytes(self) -> int:
        return sum(space.capacity_bytes for space in self.spaces.values())


def reported_state(record: VolumeRecord, leases: tuple[Lease, ...]) -> State:
    """``leased`` for what is ready and in use, else the record's own state."""
    return State.LEASED if record.state is State.READY and leases else record.state
