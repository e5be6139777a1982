"""The protocol between the agent and a batch system (docs/formats/protocols.md)."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Protocol, runtime_checkable

from distrib.errors import DistribError


@dataclass(frozen=True)
class Job:
    """A batch job as its node sees it. ``image`` is what it names; None when it names none."""

    scheduler: str
    job: str
    user: str
    image: str | None
    memory_mib: int | None


@runtime_checkable
class Hook(Protocol):
    """Tells a batch system's jobs apart and speaks its exit statuses."""

    @property
    def scheduler(self) -> str:
        """The batch system's name in holders and logs."""
        ...

    def job(self, environ: Mapping[str, str]) -> Job:
        """The job that this environment belongs to. Raises OperatorError when it is none."""
        ...

    def holder(self, job: Job) -> dict[str, object]:
        """The lease holder for a job (docs/formats/socket.md)."""
        ...

    def alive(self, holder: Mapping[str, object]) -> bool:
        """Whether the holder still lives; True when that cannot be told."""
        ...

    def exit_status(self, error: DistribError | None) -> int:
        """What to end with so that the batch system does the right thing: never drain a queue."""
        ...
