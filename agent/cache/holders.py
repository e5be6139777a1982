"""With whom a lease dies: a process, a batch job, or a moment (docs/formats/socket.md).

A pid alone says little, since pids are used again; a process is its pid, its start time in clock
ticks (proc(5), ``/proc/<pid>/stat`` field 22) and the boot that both belong to. Where it cannot be
told whether a holder lives, it lives: a lease that stays costs room, one that goes costs a job.
"""

from __future__ import annotations

import os
import signal
import subprocess
from collections.abc import Mapping
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path
from typing import Annotated, Final, Literal

from pydantic import AfterValidator, Field, TypeAdapter, ValidationError

from distrib.bus.schema import Text, Time, Token, describe
from distrib.errors import NotFound, OperatorError

PROC: Final = Path("/proc")
PROBE_TIMEOUT_S: Final = 10.0
_DEAD_STATES: Final = frozenset({"Z", "X", "x"})


def _absolute(probe: tuple[str, ...]) -> tuple[str, ...]:
    if not Path(probe[0]).is_absolute():
        raise ValueError("a probe is named by its absolute path")
    if any("\0" in argument for argument in probe):
        raise ValueError("a probe's arguments hold no NUL")
    return probe


Probe = Annotated[
    tuple[Annotated[str, Field(max_length=4096)], ...],
    Field(min_length=1, max_length=64),
    AfterValidator(_absolute),
]


@dataclass(frozen=True)
class ProcessHolder:
    """Alive while this very process runs; a zombie does not."""

    pid: Annotated[int, Field(gt=0, le=1 << 22)]
    start_time: Annotated[int, Field(ge=0)]
    boot_id: Annotated[str, Field(min_length=1, max_length=64)]
    kind: Literal["process"] = "process"


@dataclass(frozen=True)
class JobHolder:
    """Alive while ``probe`` exits 0; a probe that cannot tell must exit 0.

    ``memory_mib``, ``vcpus``: what the scheduler gave the job, where it is known; no guest in the
    lease has more."""

    scheduler: Token
    job: Text
    probe: Probe
    kind: Literal["job"] = "job"
    memory_mib: Annotated[int, Field(gt=0)] | None = None
    vcpus: Annotated[int, Field(gt=0)] | None = None

    @property
    def name(self) -> str:
        """``SCHEDULER:JOB``."""
        return f"{self.scheduler}:{self.job}"


@dataclass(frozen=True)
class TimeHolder:
    """Alive until a moment."""

    until: Time
    kind: Literal["time"] = "time"


Holder = ProcessHolder | JobHolder | TimeHolder

_ADAPTER: Final[TypeAdapter[Holder]] = TypeAdapter(Annotated[Holder, Field(discriminator="kind")])


def parse_holder(data: Mapping[str, object]) -> Holder:
    """A holder as the socket carries it. Raises OperatorError that names what is wrong."""
    try:
        return _ADAPTER.validate_python(dict(data))
    except ValidationError as error:
        raise OperatorError(
            f"holder: {describe(error)}", hint="see docs/formats/socket.md"
        ) from None


def holder_as_dict(holder: Holder) -> dict[str, object]:
    """The holder as the socket carries it."""
    dumped: dict[str, object] = _ADAPTER.dump_python(holder, mode="json")
    return dumped


def current_boot_id(proc: Path = PROC) -> str:
    """The kernel's name for this boot."""
    return (proc / "sys/kernel/random/boot_id").read_text().strip()


def holder_of_pid(pid: int, *, proc: Path = PROC) -> ProcessHolder:
    """The process that has this pid now. Raises NotFound when there is none (any more)."""
    found = _stat_of(pid, proc)
    if found is None or found[0] in _DEAD_STATES:
        raise NotFound(f"there is no process {pid}", hint="it has ended", pid=pid)
    return ProcessHolder(pid=pid, start_time=found[1], boot_id=current_boot_id(proc))


def alive(
    holder: Holder, now: datetime, *, proc: Path = PROC, probe_timeout_s: float = PROBE_TIMEOUT_S
) -> bool:
    """Whether the holder lives; True when that cannot be told."""
    if isinstance(holder, TimeHolder):
        return now < holder.until
    if isinstance(holder, JobHolder):
        return _probe(holder.probe, probe_timeout_s)
    try:
        if holder.boot_id != current_boot_id(proc):
            return False
        found = _stat_of(holder.pid, proc)
    except (OSError, ValueError, IndexError):
        return True
    return found is not None and found[0] not in _DEAD_STATES and found[1] == holder.start_time


def _stat_of(pid: int, proc: Path) -> tuple[str, int] | None:
    """State and start time of a process; None when there is none."""
    try:
        line = (proc / str(pid) / "stat").read_text(errors="replace")
    except (FileNotFoundError, ProcessLookupError):
        return None
    # The name (field 2) stands in brackets and may itself hold brackets and blanks.
    fields = line.rpartition(")")[2].split()
    return fields[0], int(fields[19])


def _probe(command: tuple[str, ...], timeout_s: float) -> bool:
    try:
        child = subprocess.Popen(
            command,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
            cwd="/",
            env={"PATH": os.defpath, "LC_ALL": "C"},
            start_new_session=True,
        )
    except OSError:
        return True
    with child:
        try:
            status = child.wait(timeout_s)
        except subprocess.TimeoutExpired:
            # Its children too: a probe is often a script that waits for a client.
            os.killpg(child.pid, signal.SIGKILL)
            return True
    return status <= 0  # killed by a signal: it said nothing
