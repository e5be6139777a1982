"""Grid Engine behind the protocol of all hooks."""

from __future__ import annotations

import os
from collections.abc import Mapping
from datetime import UTC, datetime
from pathlib import Path

from agent.cache.holders import alive, holder_as_dict, parse_holder
from agent.hooks.fault import of_node
from agent.hooks.gridengine.names import (
    IMAGE_VARIABLE,
    MEMORY_VARIABLE,
    REFUSE,
    REQUEUE,
    SCHEDULER,
    job_id,
)
from agent.hooks.hook import Job
from distrib.errors import DistribError, OperatorError


class GridEngineHook:
    """Jobs as a prolog, running as root below the job's shepherd, sees them.

    ``spool``: the job's directory of sge_execd, which is the shepherd's working directory;
    ``shepherd``: its pid; ``slots``: what the job was given on this host."""

    scheduler: str = SCHEDULER

    def __init__(
        self, *, spool: Path | None = None, shepherd: int | None = None, slots: int | None = None
    ) -> None:
        self._spool = spool
        self._slots = slots
        self._shepherd = shepherd

    def job(self, environ: Mapping[str, str]) -> Job:
        """The job of a hook's environment. Raises OperatorError when it is none.

        sge_execd sets JOB_ID and the rest over whatever the user gave; the JSV the others."""
        number = environ.get("JOB_ID", "")
        if not number.isdecimal():
            raise OperatorError("JOB_ID is no job", hint="Grid Engine calls this as a prolog")
        memory = environ.get(MEMORY_VARIABLE) or None
        if memory is not None and not (
            memory.isascii() and memory.isdecimal() and int(memory) > 0 and len(memory) < 9
        ):
            raise OperatorError(f"{MEMORY_VARIABLE}={memory}: not a number of MiB")
        return Job(
            scheduler=self.scheduler,
            job=job_id(number, environ.get("SGE_TASK_ID", "")),
            user=environ.get("LOGNAME", ""),
            image=environ.get(IMAGE_VARIABLE) or None,
            memory_mib=None if memory is None else int(memory),
        )

    def holder(self, job: Job) -> dict[str, object]:
        """Alive while the job's shepherd is: its working directory is the job's spool directory.

        It outlives a restart of sge_execd, and its epilog; not a reboot."""
        if self._spool is None or self._shepherd is None:
            raise OperatorError("no shepherd", hint="Grid Engine calls this as a prolog")
        probe = ["/usr/bin/test", f"/proc/{self._shepherd}/cwd", "-ef", os.fspath(self._spool)]
        return holder_as_dict(
            parse_holder(
                {
                    "kind": "job",
                    "scheduler": self.scheduler,
                    "job": job.job,
                    "probe": probe,
                    "memory_mib": job.memory_mib,
                    "vcpus": self._slots,
                }
            )
        )

    def alive(self, holder: Mapping[str, object]) -> bool:
        """Whether the job still has a shepherd; True when that cannot be told."""
        try:
            return alive(parse_holder(holder), datetime.now(UTC))
        except OperatorError:
            return True

    def exit_status(self, error: DistribError | None) -> int:
        """0, 99 (run it again) or 100 (no node will do): all else puts a queue in state E."""
        if error is None:
            return 0
        return REQUEUE if of_node(error) else REFUSE
