"""What happens to a job on its node: prolog, starter, epilog."""

from __future__ import annotations

import os
import re
from collections.abc import Mapping
from datetime import UTC, datetime
from pathlib import Path
from typing import Final

from agent.cache.holders import PROC
from agent.hooks.gridengine.hook import GridEngineHook
from agent.hooks.gridengine.names import (
    REFUSE,
    REQUEUE,
    SCHEDULER,
)
from agent.hooks.gridengine.usage import add_guests
from agent.hooks.guest_environment import guest_context
from agent.hooks.hook import Job
from agent.hooks.staging import lease_when_here
from agent.socket.client import ask
from distrib.errors import DistribError, NotFound, OperatorError, StorageFailed

STAGE_S: Final = 80.0
"""How long a prolog waits for an image on its way; sge_shepherd ends it after two minutes."""

_VARIABLE = re.compile(r"[A-Za-z_][A-Za-z0-9_]{0,100}")
_OF_HOST = re.compile(
    r"PATH|HOME|SHELL|PWD|OLDPWD|TMP|TMPDIR|TEMP|TERM|SHLVL|_|ENV|IFS|HOSTNAME|MAIL|LD_.*|PYTHON.*"
    r"|PERL.*|BASH.*|DISPLAY|XAUTHORITY|SGE_ROOT|SGE_BINARY_PATH|SGE_ARCH|ARC|SGE_O_.*"
    r"|SGE_JOB_SPOOL_DIR|SGE_STARTER_.*|SGE_STD.*_PATH|SGE_CWD_PATH|JOB_SCRIPT|PE_HOSTFILE"
    r"|DISTRIB_.*"
)
"""What is true on the host only, and would be wrong in the guest."""


def prolog(socket: Path, job: Job, hook: GridEngineHook) -> str | None:
    """Lease the job's image for it; the lease, or None for a job that names none.

    Raises OnItsWay when the image did not come in time, and what the agent answers."""
    name = f"{SCHEDULER}:{job.job}"
    # Of an earlier run of this job here, whose epilog did not come to its end.
    _release(socket, name)
    if job.image is None:
        return None
    return lease_when_here(
        socket,
        job.image,
        user=job.user,
        job=name,
        holder=hook.holder(job),
        wait_s=STAGE_S,
    )


def epilog(socket: Path, job: str) -> None:
    """Give the job's lease back; what cannot be given back dies with the job's shepherd."""
    _release(socket, f"{SCHEDULER}:{job}")


def account(socket: Path, job: str, spool: Path) -> bool:
    """Hand on what the guests of this run of the job took; False where Grid Engine has no usage of
    it. Raises StorageFailed, and what the agent answers."""
    try:
        # Written when the job came to this host; an earlier run of it here is accounted already.
        began = datetime.fromtimestamp(int((spool / "config").stat().st_mtime), UTC)
    except OSError as error:
        raise StorageFailed(f"{spool}/config: {error.strerror}", path=str(spool)) from None
    answer = ask(socket, "runs", job=f"{SCHEDULER}:{job}", since=began.isoformat())
    return add_guests(spool, answer["runs"])


def launch_arguments(
    environ: Mapping[str, str], command: list[str], *, socket: Path
) -> list[str] | None:
    """What ``distrib-agent`` is called with to run a job; None for a job that names no image.

    ``command``: the job as the shepherd gives it to a starter method. Raises OperatorError."""
    job = GridEngineHook().job(environ)
    if job.image is None:
        return None
    if environ.get("NHOSTS", "1") != "1":
        raise OperatorError(
            "a guest has the CPUs of one host", hint="ask for a parallel environment on one host"
        )
    arguments = ["--socket", str(socket), "launch", "--lease", f"{SCHEDULER}:{job.job}"]
    arguments += ["--name", f"{SCHEDULER}:{job.job}"]
    arguments += ["--node-fault", str(REQUEUE), "--refused", str(REFUSE)]
    if job.memory_mib is not None:
        arguments += ["--memory", str(job.memory_mib)]
    arguments += ["--vcpus", environ.get("NSLOTS", "1")]
    for name, value in environ.items():
        if _VARIABLE.fullmatch(name) and not _OF_HOST.fullmatch(name):
            arguments += ["--env", f"{name}={value}"]
    arguments += guest_context(environ)
    # A script is sge_execd's copy of it; anything else is a command (qsub -b y).
    if "/job_scripts/" not in command[0]:
        arguments.append("--command")
    return [*arguments, "--", *command]


def _release(socket: Path, name: str) -> None:
    try:
        ask(socket, "release", lease=name)
    except DistribError as error:
        if error.code != "not-found":
            raise


def shepherd_of(spool: Path, *, proc: Path = PROC) -> int:
    """The pid of the shepherd above this process whose working directory is ``spool``.

    Raises NotFound: then Grid Engine has not called this."""
    pid = os.getpid()
    wanted = spool.stat()
    while pid > 1:
        stat = (proc / str(pid) / "stat").read_text(errors="replace")
        pid = int(stat.rpartition(")")[2].split()[1])
        try:
            here = (proc / str(pid) / "cwd").stat()
        except OSError:
            break
        name = (proc / str(pid) / "comm").read_text(errors="replace").strip()
        if name.startswith("sge_shepherd") and os.path.samestat(here, wanted):
            return pid
    raise NotFound(f"no shepherd of {spool} above this process", hint="Grid Engine calls this")
