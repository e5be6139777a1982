"""What the launcher asks of a hypervisor."""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import dataclass
from enum import StrEnum
from typing import Protocol, runtime_checkable


@dataclass(frozen=True)
class Domain:
    """A guest of ours, as the hypervisor knows it."""

    name: str
    uuid: str
    lease: str


class End(StrEnum):
    """How a guest ended."""

    GONE = "gone"
    CRASHED = "crashed"
    DISK_FAULT = "disk-fault"


@runtime_checkable
class Hypervisor(Protocol):
    """Starts and ends guests. Every call has a time limit of its own (``wait`` apart)."""

    async def start(self, xml: str) -> Domain:
        """Start a transient guest. Raises LaunchFailed, NetworkError or TimedOut.

        Whatever it raises, cancellation too, leaves no guest behind."""
        ...

    async def wait(self, domain: Domain) -> End:
        """Return when the guest runs no more."""
        ...

    async def destroy(self, domain: Domain) -> None:
        """End a guest at once; nothing when it is gone already."""
        ...

    async def orphans(self, *, keep: Collection[str]) -> tuple[Domain, ...]:
        """Guests of this agent whose lease is not in ``keep``."""
        ...
