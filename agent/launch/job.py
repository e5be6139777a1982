"""One job in one guest, from the context disc to the exit status, for a caller who stays.

Whatever happens (a limit, a lost client, cancellation, a fault) the guest is ended and the
launch's directory removed before ``run_job`` returns or raises. The agent's own launches outlive
the agent (agent/launched.py); they are made of the same parts.
"""

from __future__ import annotations

import asyncio
import shutil
import time
from collections.abc import Awaitable, Callable

from agent.finishing import to_the_end
from agent.launch import channel
from agent.launch.guest import Guest
from agent.launch.hypervisor import Hypervisor
from agent.launch.spec import JobResult, JobSpec
from distrib.errors import Conflict

Sink = Callable[[bytes], Awaitable[None]]


async def run_job(
    spec: JobSpec,
    *,
    on_stdout: Sink,
    on_stderr: Sink,
    hypervisor: Hypervisor,
    on_phase: Callable[[str, float], None] = lambda _name, _after_s: None,
) -> JobResult:
    """Run the job; its output goes to the sinks while it runs.

    Raises LaunchFailed (no boot, no result, too much output, a disk that is full), LimitReached
    (the wall-clock limit), Conflict (``run_dir`` exists), what the hypervisor raises, and what a
    sink raises."""
    make_run_dir(spec)
    guest = Guest(
        spec.agent,
        spec.lease_id,
        spec.files,
        spec.limits,
        hypervisor,
        began_s=time.monotonic(),
        on_phase=on_phase,
    )
    limits, files = spec.limits, spec.files
    try:
        await guest.start(spec)
        try:
            async with asyncio.TaskGroup() as group:
                for path, sink in ((files.stdout, on_stdout), (files.stderr, on_stderr)):
                    pumping = channel.pump(
                        path,
                        sink,
                        ended=guest.ended,
                        poll_s=limits.poll_s,
                        limit_bytes=limits.output_bytes,
                    )
                    group.create_task(pumping, name=path.name)
                end = await guest.supervise()
        except BaseExceptionGroup as group_error:
            # One fault ends a launch; the others are its echo.
            raise _first(group_error) from group_error
        finally:
            await guest.destroy()
        return await asyncio.to_thread(guest.judge, end)
    finally:
        await to_the_end(asyncio.to_thread(shutil.rmtree, spec.run_dir, ignore_errors=True))


def make_run_dir(spec: JobSpec) -> None:
    """Raises Conflict when a launch uses it already."""
    try:
        # Passed through by QEMU's account, listed by nobody else.
        spec.run_dir.mkdir(mode=0o711, parents=True)
    except FileExistsError as error:
        raise Conflict(
            f"a launch uses this directory already: {spec.run_dir}",
            hint="another launch of this lease runs, or its remains were not removed",
            lease=spec.lease_id,
        ) from error


def _first(group: BaseExceptionGroup[BaseException]) -> BaseException:
    error = group.exceptions[0]
    return _first(error) if isinstance(error, BaseExceptionGroup) else error
