"""What happens to a job on its host: pre-execution, starter, post-execution."""

from __future__ import annotations

import os
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from agent.hooks.clients import answered
from agent.hooks.guest_environment import guest_context, guest_environment
from agent.hooks.lsf.formats import IMAGE_VARIABLE, MEMORY_VARIABLE, memory_mib
from agent.hooks.lsf.wrappers import STATE
from agent.hooks.staging import lease_when_here
from agent.socket.client import ask
from distrib.errors import DistribError, NodeError, OperatorError

SCHEDULER: Final = "lsf"

REQUEUE, REFUSED = 99, 100
"""Of a job starter: 99 is to be in REQUEUE_EXIT_VALUES."""

_FIELDS: Final = "user nalloc_slot effective_resreq delimiter='|'"


@dataclass(frozen=True)
class Grant:
    """Whose a job is, and what LSF gave it; None where LSF does not count it."""

    user: str
    memory_mib: int | None
    vcpus: int | None


def job_of(environ: Mapping[str, str]) -> str:
    """``JOB`` or ``JOB.INDEX``. Raises OperatorError when it is none."""
    number, index = environ.get("LSB_JOBID", ""), environ.get("LSB_JOBINDEX", "") or "0"
    for text in (number, index):
        if not (text.isascii() and text.isdecimal()):
            raise OperatorError("LSB_JOBID, LSB_JOBINDEX are no job", hint="LSF calls this")
    return number if int(index) == 0 else f"{number}.{index}"


def grant_in(told: str) -> Grant:
    """What ``bjobs -noheader -o`` of ``user nalloc_slot effective_resreq`` says.

    Raises NodeError for another answer."""
    user, _, rest = told.strip().partition("|")
    slots, bar, requirement = rest.partition("|")
    if not user or not bar or "\n" in requirement:
        raise NodeError(f"bjobs: no job in the answer {told[:80]!r}", hint="see bjobs(1)")
    vcpus = int(slots) if slots.isascii() and slots.isdecimal() else None
    return Grant(user, memory_mib(requirement, slots=vcpus or 1), vcpus or None)


def grant(job: str) -> Grant:
    """What LSF gave a job: its own environment is its user's. Raises ToolMissing, TimedOut,
    NodeError."""
    number, _, index = job.partition(".")
    command = ["bjobs", "-noheader", "-o", _FIELDS, f"{number}[{index}]" if index else number]
    missing = "hooks lsf install --bindir"
    done = answered(command, missing=missing, silent="is mbatchd up?")
    if done.returncode != 0:
        raise NodeError(f"bjobs {job}: {' '.join(done.stderr.split())[:200]}", hint="see bjobs(1)")
    return grant_in(done.stdout)


def take(socket: Path, job: str, image: str, *, alive: Path, wait_s: float) -> str:
    """A lease for a job and its owner; it dies with the job. By root only.

    Raises OnItsWay when the image did not come in time, and what the agent and LSF answer."""
    # Of an earlier run of this job here, whose POST_EXEC did not come to its end.
    release(socket, job)
    given = grant(job)
    try:
        STATE.mkdir(mode=0o755, parents=True, exist_ok=True)
        (STATE / job).touch()
    except OSError as error:
        raise NodeError(f"{STATE}: {error.strerror}", hint="the node's disk") from None
    holder: dict[str, object] = {
        "kind": "job",
        "scheduler": SCHEDULER,
        "job": job,
        "probe": [str(alive), job],
        "memory_mib": given.memory_mib,
        "vcpus": given.vcpus,
    }
    return lease_when_here(
        socket, image, user=given.user, job=f"{SCHEDULER}:{job}", holder=holder, wait_s=wait_s
    )


def release(socket: Path, job: str) -> None:
    """Give the job's lease back, if it has one. Raises what the agent answers."""
    if os.geteuid() == 0:
        (STATE / job).unlink(missing_ok=True)
    try:
        ask(socket, "release", lease=f"{SCHEDULER}:{job}")
    except DistribError as error:
        if error.code != "not-found":
            raise


def has_lease(socket: Path, job: str) -> bool:
    """Whether a PRE_EXEC took a lease for the job. Raises what the agent answers."""
    leases = ask(socket, "leases", timeout_s=10.0)["leases"]
    holders = [lease["holder"] for lease in leases]
    return any(one.get("scheduler") == SCHEDULER and one.get("job") == job for one in holders)


def launch_arguments(
    environ: Mapping[str, str], command: tuple[str, ...], *, leased: bool
) -> list[str]:
    """What ``distrib-agent`` is called with. A script of the host is taken along; any other command
    is a program of the guest.

    ``leased``: in the job's lease, which says itself how much a guest has; else memory and CPUs are
    what the job asked for, as its environment has it. Raises OperatorError."""
    job = f"{SCHEDULER}:{job_of(environ)}"
    arguments = ["launch", "--node-fault", str(REQUEUE), "--refused", str(REFUSED)]
    words = list(command)
    if leased:
        arguments += ["--lease", job]
    else:
        arguments += ["--name", job]
        vcpus = _number(environ, "LSB_DJOB_NUMPROC")
        # LSF's own word on the running job (bmod changes it) before the esub's on the submission.
        memory = memory_mib(environ.get("LSB_EFFECTIVE_RSRCREQ", ""), slots=vcpus or 1) or _number(
            environ, MEMORY_VARIABLE
        )
        for option, amount in (("--memory", memory), ("--vcpus", vcpus)):
            if amount:
                arguments += [option, str(amount)]
        words.insert(0, environ[IMAGE_VARIABLE])
    arguments += [*guest_context(environ), *guest_environment(environ)]
    if not _is_script(Path(command[0])):
        arguments.append("--command")
    return [*arguments, "--", *words]


def _number(environ: Mapping[str, str], name: str) -> int | None:
    text = environ.get(name, "")
    return int(text) if text.isascii() and text.isdecimal() and len(text) < 10 else None


def _is_script(file: Path) -> bool:
    try:
        with file.open("rb") as opened:
            return opened.read(2) == b"#!"
    except OSError:
        return False
