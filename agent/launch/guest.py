"""One guest under watch: started or found again, held to its limits, ended, judged.

All that is known of it lies in the files of its launch, so that a restarted agent goes on where
the former one was.
"""

from __future__ import annotations

import asyncio
import os
import shutil
import signal
import time
from collections.abc import Callable, Mapping
from contextlib import suppress

import structlog

from agent.finishing import to_the_end
from agent.launch import channel
from agent.launch.context import JobPart, files_of, opennebula_files_of, write_disc
from agent.launch.domain import domain_name, domain_uuid
from agent.launch.domain_xml import to_xml
from agent.launch.hypervisor import Domain, End, Hypervisor, Usage
from agent.launch.outcome import MAX_RESULT_BYTES, Outcome, console_tail, parse_result
from agent.launch.shared import require_held
from agent.launch.spec import JobResult, JobSpec, Limits, RunFiles
from agent.launch.written import Written, is_let_go
from distrib.errors import DiskFull, DistribError, LaunchFailed, LimitReached

log = structlog.get_logger(__name__)

_CONSOLE_TAIL_BYTES = 16 << 10
_LEAST_FREE_BYTES = 4 << 20
_LOOK_AGAIN_S = 0.01
"""A guest that reports all the time is looked at no more often."""

TO_THE_JOB = {
    signal.SIGTERM: "TERM",
    signal.SIGINT: "TERM",
    signal.SIGQUIT: "TERM",
    signal.SIGHUP: "HUP",
    signal.SIGXCPU: "XCPU",
    signal.SIGUSR1: "USR1",
    signal.SIGUSR2: "USR2",
}
"""What the guest is told for a signal. A shell's background job ignores INT and QUIT."""

TERMINATING = frozenset(TO_THE_JOB) - {signal.SIGUSR1, signal.SIGUSR2}


class Guest:
    """``start`` or ``adopt``, then ``supervise`` to its end, then ``judge``.

    ``began_s``: CLOCK_MONOTONIC at the beginning of the launch. ``stopped``: whether whoever
    launched it is stopped now; the guest is suspended as long. ``on_phase`` hears of each phase."""

    def __init__(
        self,
        agent: str,
        lease: str,
        files: RunFiles,
        limits: Limits,
        hypervisor: Hypervisor,
        *,
        began_s: float,
        stopped: Callable[[], bool] = lambda: False,
        on_phase: Callable[[str, float], None] = lambda _name, _after_s: None,
    ) -> None:
        self._domain = Domain(domain_name(agent, lease), domain_uuid(agent, lease), lease)
        self._files = files
        self._limits = limits
        self._hypervisor = hypervisor
        self._began_s = began_s
        self._stopped = stopped
        self._on_phase = on_phase
        self.phases: dict[str, float] = {}
        self.usage = Usage()
        self.ended = asyncio.Event()
        self._outcome = Outcome()
        self._reported_s: float | None = None
        self._verdict: DistribError | None = None
        self._signal: int | None = None
        self._kill_at_s: float | None = None
        self._held = False
        self.suspended = False
        self._suspended_s = 0.0
        self._held_since_s = 0.0
        self._wake = asyncio.Event()
        self._reported = asyncio.Event()
        self._let_go = asyncio.Event()

    # -- beginning ------------------------------------------------------------------------------

    async def start(self, spec: JobSpec) -> None:
        """Write the files and start the guest. Raises what the hypervisor raises, LaunchFailed
        where what is to be shared is not there any more; then no guest is left."""
        xml = to_xml(spec.domain())
        await asyncio.to_thread(write_files, spec)
        self._phase("prepared")
        await self._hypervisor.start(xml, suspended=spec.share is not None)
        if spec.share is not None:
            try:
                await asyncio.to_thread(require_held, self._domain.name, spec.share)
                await self._hypervisor.resume(self._domain)
            except BaseException:
                await self.destroy()
                raise
        self._phase("started")

    def adopt(self, phases: Mapping[str, float]) -> None:
        """Go on with a guest that an earlier agent started."""
        self.phases.update(phases)
        # Perhaps it was: then it is let go, or held on, as its client is now.
        self.suspended, self._held_since_s = True, time.monotonic()

    # -- watching -------------------------------------------------------------------------------

    async def supervise(self) -> End:
        """Return when the guest has ended, by itself or at a limit: after its job's report as soon
        as QEMU is gone, which the hypervisor may not have seen yet (``destroy``).

        Raises what the hypervisor raises, unless the job is done; cancellation leaves the guest
        running."""
        waiting = asyncio.create_task(
            self._hypervisor.wait(self._domain, soon=self._reported), name="wait"
        )
        counting = asyncio.create_task(self._count(), name="usage")
        watching = asyncio.create_task(self._watch(), name="limits")
        leaving = asyncio.create_task(self._let_go.wait(), name="let go")
        tasks = (waiting, counting, watching, leaving)
        try:
            await asyncio.wait((waiting, watching, leaving), return_when=asyncio.FIRST_COMPLETED)
            if watching.done():
                watching.result()
            await asyncio.wait((waiting, leaving), return_when=asyncio.FIRST_COMPLETED)
            end = waiting.result() if waiting.done() else End.GONE
        except DistribError as error:
            if self._outcome.exit_status is None:
                raise
            # The job is done, whatever becomes of its machine, which is ended once more.
            log.warning("guest-not-ended", lease=self._domain.lease, why=error.message)
            end = End.GONE
        finally:
            for task in tasks:
                task.cancel()
            await asyncio.gather(*tasks, return_exceptions=True)
        await self._look()
        self._phase("ended")
        self.ended.set()
        return end

    async def destroy(self) -> None:
        """End it at once; nothing when it is gone. Then the hypervisor has forgotten it, too."""
        await to_the_end(self._hypervisor.destroy(self._domain))

    def stop(self, why: DistribError) -> None:
        """Have it ended; ``why`` is what its launch comes to, unless the job was done."""
        self._verdict = self._verdict or why
        self._wake.set()

    async def signal(self, number: signal.Signals) -> None:
        """Do what a signal would do to a job on the node. Raises what the hypervisor raises."""
        if number in {signal.SIGTSTP, signal.SIGSTOP}:
            self._held = True
        elif number == signal.SIGCONT:
            self._held = False
        elif number == signal.SIGKILL:
            self._signal, self._kill_at_s = int(number), time.monotonic()
        if number in TERMINATING:
            self._signal = self._signal or int(number)
            self._kill_at_s = self._kill_at_s or time.monotonic() + self._limits.terminate_s
            self._held = False  # a suspended guest could not hear of its end
        self._wake.set()
        if (word := TO_THE_JOB.get(number)) is not None:
            # A guest that does not listen is ended without having been told.
            with suppress(LaunchFailed):
                await self._hypervisor.tell(self._domain, f"{word}\n".encode())

    async def _watch(self) -> None:
        """End the guest at a limit; what it wrote until then is still passed on."""
        limits = self._limits
        with Written(self._files.result, self._wake.set) as written:
            while not self._let_go.is_set():
                self._wake.clear()
                written.arm()
                await self._look()
                now_s = time.monotonic()
                if self._verdict is None:
                    self._verdict = self._beyond_limits(now_s)
                if self._verdict is not None or self._overdue(now_s):
                    await self.destroy()
                    return
                await self._hold_or_let_go(now_s)
                await channel.set_or_after(self._wake, limits.poll_s)
                await asyncio.sleep(max(0.0, now_s + _LOOK_AGAIN_S - time.monotonic()))

    def _overdue(self, now_s: float) -> bool:
        """The job is done, or told to end, and the guest does not power itself off."""
        done = self._reported_s is not None and now_s - self._reported_s >= self._limits.poweroff_s
        return done or (self._kill_at_s is not None and now_s >= self._kill_at_s)

    def _beyond_limits(self, now_s: float) -> DistribError | None:
        limits, files = self._limits, self._files
        ran_s = now_s - self._began_s - self.phases.get("started", 0.0) - self._suspended_s
        if limits.wall_s is not None and ran_s >= limits.wall_s:
            return LimitReached(
                f"the job ran into its limit of {limits.wall_s:g} s",
                hint="ask for more time, or for a node with hardware virtualisation",
                lease=self._domain.lease,
            )
        if "booted" not in self.phases and ran_s >= limits.boot_timeout_s:
            return self._failed(
                f"no sign from the guest within {limits.boot_timeout_s:g} s",
                hint="is the image bootable by BIOS, and does it run the context disc?",
            )
        if files.console.stat().st_size > limits.console_bytes:
            return self._failed(
                f"the guest wrote more than {limits.console_bytes} bytes to its console"
            )
        if shutil.disk_usage(files.directory).free < _LEAST_FREE_BYTES:
            # QEMU drops what it cannot append: a job must not seem to have said less than it did.
            return DiskFull(
                "the node has no room left for what the guest writes",
                hint="free space below the agent's state_dir",
                path=str(files.directory),
            )
        for path, most in (
            (files.stdout, limits.output_bytes),
            (files.stderr, limits.output_bytes),
            (files.files, limits.files_bytes),
        ):
            if path.stat().st_size > most:
                return LaunchFailed(
                    f"the guest wrote more than {most} bytes to {path.name}",
                    hint="the job may write large results to its scratch disk or to storage",
                    lease=self._domain.lease,
                )
        return None

    async def _look(self) -> None:
        """What the guest has said on its channels."""
        said, result, let_go = await asyncio.to_thread(self._read_channels)
        if said and "booted" not in self.phases:
            self._phase("booted")
        if self._outcome.exit_status is None:
            self._outcome = parse_result(result)
            if self._outcome.exit_status is not None:
                self._reported_s = time.monotonic()
                self._phase("done")
                self._reported.set()
        elif let_go:
            self._let_go.set()

    def _read_channels(self) -> tuple[bool, bytes, bool]:
        files = self._files
        let_go = False
        if self._hypervisor.holds_files and self._reported_s is not None:
            let_go = is_let_go(files.result)
        said = any(path.stat().st_size for path in files.channels)
        with files.result.open("rb") as file:
            return said, file.read(MAX_RESULT_BYTES), let_go

    async def _hold_or_let_go(self, now_s: float) -> None:
        hold = self._held or (self._kill_at_s is None and self._stopped())
        if hold != self.suspended:
            if hold:
                await self._hypervisor.suspend(self._domain)
                self._held_since_s = now_s
            else:
                await self._hypervisor.resume(self._domain)
            self.suspended = hold
        elif hold:
            self._suspended_s += now_s - self._held_since_s
            self._held_since_s = now_s

    async def _count(self) -> None:
        """Ask what the guest has used, and once more when its job is done: it is the last look
        before the machine and its counters are gone."""
        asked_last = False
        while not asked_last:
            asked_last = self._reported.is_set()
            try:
                found = await self._hypervisor.usage(self._domain)
            except DistribError as error:
                log.warning("usage-not-known", lease=self._domain.lease, why=error.message)
                found = None
            if found is not None:
                self.usage = self.usage.and_then(found)
            if asked_last and found is not None:
                # The runner waits for it, for a second.
                with suppress(DistribError):
                    await self._hypervisor.tell(self._domain, b"END\n")
            await channel.set_or_after(self._reported, self._limits.usage_s)

    # -- judging --------------------------------------------------------------------------------

    def judge(self, end: End) -> JobResult:
        """What the launch comes to. Raises the fault that ended it."""
        outcome = self._outcome
        if outcome.exit_status is not None:
            # Said before a limit struck: the job itself was done.
            return self._result(outcome.exit_status)
        if self._verdict is not None:
            raise self._verdict
        if self._signal is not None:
            return self._result(128 + self._signal)
        if outcome.failed is not None:
            raise self._failed(f"the guest could not run the job: {outcome.failed}")
        if end is End.DISK_FAULT:
            raise self._failed(
                "a disk of the guest is full or failed",
                hint="give the lease a larger copy-on-write or scratch size",
            )
        if end is End.CRASHED:
            raise self._failed(
                "the hypervisor stopped the guest",
                hint="setting launch.hypervisor = qemu avoids a KVM that is not complete",
            )
        raise self._failed(
            "the guest ended without a result",
            hint="it crashed, or was ended from outside; its console's last lines are above",
        )

    def _result(self, exit_status: int) -> JobResult:
        return JobResult(exit_status, self._tail(), self.phases, self.usage, self._signal)

    def _failed(self, message: str, *, hint: str = "") -> LaunchFailed:
        tail = self._tail()
        console = f"\nconsole:\n{tail}" if tail else "; its console is empty"
        return LaunchFailed(message + console, hint=hint, lease=self._domain.lease)

    def _tail(self) -> str:
        with self._files.console.open("rb") as file:
            file.seek(max(0, self._files.console.stat().st_size - _CONSOLE_TAIL_BYTES))
            return console_tail(file.read())

    def _phase(self, name: str) -> None:
        self.phases[name] = round(time.monotonic() - self._began_s, 3)
        self._on_phase(name, self.phases[name])


def write_files(spec: JobSpec) -> None:
    """Make the files that a launch begins with, the context disc among them. Blocks."""
    files = spec.files
    for path in (files.console, *files.channels):
        channel.create(path)
    job = JobPart(
        instance_id=f"{spec.agent}-{spec.lease_id}-{time.time_ns():x}",
        script=spec.script,
        args=spec.args,
        environment=spec.environment,
        share=spec.share.tag if spec.share else "",
        context=spec.context,
    )
    given = {name: files.given(name) for name in spec.inputs}
    write_disc(files.iso, files_of(spec.site, job), given=given)
    files.iso.chmod(0o600)
    if spec.opennebula:
        write_disc(files.opennebula_iso, opennebula_files_of(spec.site, job), label="CONTEXT")
        files.opennebula_iso.chmod(0o600)
    for path in given.values():
        path.unlink()
    if spec.disk_owner is not None:
        for disk in (spec.disk_path, spec.scratch_path):
            if disk is not None:
                os.chown(disk, *spec.disk_owner)
    if spec.run_as is not None:
        isos = [files.iso, *([files.opennebula_iso] if spec.opennebula else [])]
        for path in (files.console, *files.channels, *isos):
            os.chown(path, *spec.run_as)
