"""What happens to a job on its node: prolog, starter, epilog."""

from __future__ import annotations

import os
from collections.abc import Mapping
from pathlib import Path
from typing import Final

from agent.hooks.guest_environment import guest_context, guest_environment
from agent.hooks.slurm import control
from agent.hooks.slurm.names import REFUSED, REQUEUE, SCHEDULER, image_of, job_of
from agent.hooks.staging import lease_when_here
from agent.socket.client import ask
from distrib.errors import DistribError, OperatorError

STAGE_S: Final = 50.0
"""How long a prolog waits for an image on its way; slurmctld gives up on it at some time."""


def prolog(socket: Path, environ: Mapping[str, str], *, alive: Path) -> str | None:
    """Lease the image that the job's comment names; the lease, or None when it names none.

    ``alive``: the probe of the lease, called with the job. Raises OnItsWay when the image did not
    come in time, and what the agent and slurmctld answer."""
    job = job_number(environ)
    # Of an earlier run of this job here, whose epilog did not come to its end.
    release(socket, job)
    image = image_of(environ.get("SLURM_JOB_COMMENT", ""))
    if image is None:
        return None
    user = environ.get("SLURM_JOB_USER", "")
    probe = [str(alive), job]
    # From slurmctld: what the job's own environment says of it is its user's.
    given = control.grant(job)
    holder: dict[str, object] = {
        "kind": "job",
        "scheduler": SCHEDULER,
        "job": job,
        "probe": probe,
        "memory_mib": given.memory_mib,
        "vcpus": given.vcpus,
    }
    return lease_when_here(
        socket, image, user=user, job=f"{SCHEDULER}:{job}", holder=holder, wait_s=STAGE_S
    )


def release(socket: Path, job: str) -> None:
    """Give the job's lease back, if it has one."""
    try:
        ask(socket, "release", lease=f"{SCHEDULER}:{job}")
    except DistribError as error:
        if error.code != "not-found":
            raise


def launch_arguments(environ: Mapping[str, str], words: list[str], *, socket: Path) -> list[str]:
    """What ``distrib-agent`` is called with to run a job whose script is its standard input.

    ``words``: arguments of the script. Raises OperatorError where this is no job of one node."""
    job = job_number(environ)
    if environ.get("SLURM_JOB_NUM_NODES", "1") != "1":
        raise OperatorError("a guest has the CPUs of one node", hint="sbatch --nodes=1")
    arguments = ["--socket", str(socket), "launch", "--lease", f"{SCHEDULER}:{job}"]
    arguments += ["--node-fault", str(REQUEUE), "--refused", str(REFUSED)]
    vcpus = _number(environ, "SLURM_CPUS_ON_NODE") or 1
    per_cpu = _number(environ, "SLURM_MEM_PER_CPU")
    memory = _number(environ, "SLURM_MEM_PER_NODE") or (per_cpu * vcpus if per_cpu else None)
    if memory:
        arguments += ["--memory", str(memory)]
    arguments += ["--vcpus", str(vcpus)]
    arguments += guest_context(environ)
    return [*arguments, *guest_environment(environ), "--", "-", *words]


def script_of(path: Path) -> int:
    """A descriptor from which the user's own script of a batch script is read.

    Raises OperatorError."""
    try:
        own = job_of(path.read_bytes())
    except OSError as error:
        raise OperatorError(f"{path}: {error.strerror}", hint="Slurm calls this") from None
    descriptor = os.memfd_create("script")
    view = memoryview(own)
    while view:
        view = view[os.write(descriptor, view) :]
    os.lseek(descriptor, 0, os.SEEK_SET)
    return descriptor


def job_number(environ: Mapping[str, str]) -> str:
    """The job of a hook's environment. Raises OperatorError when it is none."""
    number = environ.get("SLURM_JOB_ID", "")
    if not (number.isascii() and number.isdecimal()):
        raise OperatorError("SLURM_JOB_ID is no job", hint="Slurm calls this")
    return number


def _number(environ: Mapping[str, str], name: str) -> int | None:
    text = environ.get(name, "")
    return int(text) if text.isascii() and text.isdecimal() and len(text) < 10 else None
