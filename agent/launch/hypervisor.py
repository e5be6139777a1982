"""What the launcher asks of a hypervisor."""

from __future__ import annotations

import asyncio
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


@dataclass(frozen=True)
class Usage:
    """What a guest has used so far: CPU time of its virtual machine, memory that it takes on the
    host at most, bytes that it read from and wrote to its disks."""

    cpu_s: float = 0.0
    peak_memory_bytes: int = 0
    read_bytes: int = 0
    written_bytes: int = 0

    def and_then(self, later: Usage) -> Usage:
        """The sum after a later look: peaks stay, counters never fall."""
        return Usage(
            max(self.cpu_s, later.cpu_s),
            max(self.peak_memory_bytes, later.peak_memory_bytes),
            max(self.read_bytes, later.read_bytes),
            max(self.written_bytes, later.written_bytes),
        )


class End(StrEnum):
    """How a guest ended."""

    GONE = "gone"
    CRASHED = "crashed"
    DISK_FAULT = "disk-fault"


@runtime_checkable
class Hypervisor(Protocol):
    """Starts and ends guests. Every call has a time limit of its own (``wait`` apart)."""

    @property
    def holds_files(self) -> bool:
        """Whether the files of a guest's ports are held open as long as it lives."""
        ...

    async def start(self, xml: str, *, suspended: bool = False) -> Domain:
        """Start a transient guest; ``suspended``: it waits for ``resume``.

        Raises LaunchFailed, NetworkError or TimedOut. Whatever it raises,
        cancellation too, leaves no guest behind."""
        ...

    async def wait(self, domain: Domain, *, soon: asyncio.Event | None = None) -> End:
        """Return when the guest runs no more; ``soon`` is set when that is to be expected."""
        ...

    async def destroy(self, domain: Domain) -> None:
        """End a guest at once; nothing when it is gone already."""
        ...

    async def suspend(self, domain: Domain) -> None:
        """Stop the guest's CPUs; nothing when it is gone."""
        ...

    async def resume(self, domain: Domain) -> None:
        """Let a suspended guest run on; nothing when it is gone or runs."""
        ...

    async def usage(self, domain: Domain) -> Usage | None:
        """What it has used so far; None when it is gone."""
        ...

    async def tell(self, domain: Domain, data: bytes) -> None:
        """Write to the guest's control port; nothing when it is gone. The guest may not listen."""
        ...

    async def orphans(self, *, keep: Collection[str]) -> tuple[Domain, ...]:
        """Guests of this agent whose lease is not in ``keep``."""
        ...
