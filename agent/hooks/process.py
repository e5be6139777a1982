"""No batch system: the job is the process that calls, and lives as long as it does."""

from __future__ import annotations

import os
import pwd
from collections.abc import Mapping
from datetime import UTC, datetime
from typing import Final

from agent.cache.holders import ProcessHolder, alive, holder_as_dict, holder_of_pid, parse_holder
from agent.hooks.hook import Job
from distrib.errors import DistribError, ExitStatus, OperatorError

IMAGE_VARIABLE: Final = "DISTRIB_IMAGE"
MEMORY_VARIABLE: Final = "DISTRIB_MEMORY_MIB"


class ProcessHook:
    """A hook whose jobs are processes; ``job`` is called in the job's own process."""

    scheduler: str = "process"

    def job(self, environ: Mapping[str, str]) -> Job:
        """The calling process; image and memory from ``DISTRIB_IMAGE`` and ``DISTRIB_MEMORY_MIB``.

        Raises OperatorError when the memory is not a number."""
        memory = environ.get(MEMORY_VARIABLE)
        if memory is not None and not (memory.isascii() and memory.isdigit() and int(memory) > 0):
            raise OperatorError(
                f"{MEMORY_VARIABLE}={memory}: not a number of MiB", hint="for example 2048"
            )
        return Job(
            scheduler=self.scheduler,
            job=str(os.getpid()),
            user=_user_name(),
            image=environ.get(IMAGE_VARIABLE) or None,
            memory_mib=None if memory is None else int(memory),
        )

    def holder(self, job: Job) -> dict[str, object]:
        """The process of the job. Raises NotFound when it has ended."""
        return holder_as_dict(holder_of_pid(int(job.job)))

    def alive(self, holder: Mapping[str, object]) -> bool:
        """Whether that very process still runs; True for a holder that is not a process."""
        try:
            process = parse_holder(holder)
        except OperatorError:
            return True
        return not isinstance(process, ProcessHolder) or alive(process, datetime.now(UTC))

    def exit_status(self, error: DistribError | None) -> int:
        """The error's own exit status: nobody between us and the caller reads more into it."""
        return int(ExitStatus.DONE if error is None else error.exit_status)


def _user_name() -> str:
    uid = os.getuid()
    try:
        return pwd.getpwuid(uid).pw_name
    except KeyError:
        return str(uid)
