"""One job in one guest, from the context disc to the exit status.

Whatever happens (a limit, a lost client, cancellation, a fault) the guest is ended and the
launch's directory removed before ``run_job`` returns or raises.
"""

from __future__ import annotations

import asyncio
import os
import shutil
import time
from collections.abc import Awaitable, Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path, PurePosixPath
from typing import Literal

from agent.finishing import to_the_end
from agent.launch import channel
from agent.launch.context import JobPart, SitePart, files_of, write_disc
from agent.launch.domain import Accelerator, Disk, DomainSpec, Nic, to_xml
from agent.launch.hypervisor import Domain, End, Hypervisor
from agent.launch.outcome import MAX_RESULT_BYTES, Outcome, console_tail, parse_result
from distrib.errors import Conflict, DistribError, LaunchFailed, LimitReached

Sink = Callable[[bytes], Awaitable[None]]
PhaseSink = Callable[[str, float], Awaitable[None]]

_CONSOLE_TAIL_BYTES = 16 << 10


@dataclass(frozen=True)
class Limits:
    """``boot_timeout_s``: from power-on to the guest's first sign on a channel;
    ``wall_s``: from power-on to power-off, None for no limit;
    ``poweroff_s``: from the job's exit status to power-off;
    ``output_bytes``: of each of stdout and stderr; ``poll_s``: how often files are looked at."""

    boot_timeout_s: float = 300.0
    wall_s: float | None = None
    poweroff_s: float = 60.0
    output_bytes: int = 1 << 30
    console_bytes: int = 16 << 20
    poll_s: float = 0.1


@dataclass(frozen=True)
class JobSpec:
    """A launch. ``run_dir`` must not exist: it is made, used and removed here; the account that
    QEMU runs as must be able to pass through its parents.

    ``disk_owner``: (uid, gid) of that account, to whom the instance and the scratch disk are given
    before the start; None where they are its own already. What the instance is backed by must be
    readable to it, and is left as it is."""

    agent: str
    lease_id: str
    script: bytes
    disk_path: Path
    disk_format: Literal["raw", "qcow2"]
    memory_mib: int
    vcpus: int
    run_dir: Path
    args: Sequence[str] = ()
    environment: Mapping[str, str] = field(default_factory=dict)
    disk_block: bool = False
    scratch_path: Path | None = None
    scratch_block: bool = False
    bus: Literal["virtio", "ide"] = "virtio"
    disk_owner: tuple[int, int] | None = None
    accelerator: Accelerator = "qemu"
    nic: Nic | None = None
    site: SitePart = field(default_factory=SitePart)
    limits: Limits = field(default_factory=Limits)


@dataclass(frozen=True)
class JobResult:
    """``phases``: seconds from the beginning of the launch to ``prepared``, ``started``,
    ``booted`` and ``ended``."""

    exit_status: int
    console_log_tail: str
    phases: dict[str, float]


async def run_job(
    spec: JobSpec,
    *,
    on_stdout: Sink,
    on_stderr: Sink,
    hypervisor: Hypervisor,
    on_phase: PhaseSink | None = None,
) -> JobResult:
    """Run the job; its output goes to the sinks while it runs.

    Raises LaunchFailed (no boot, no result, too much output, a disk that is full), LimitReached
    (the wall-clock limit), Conflict (``run_dir`` exists), what the hypervisor raises and what a sink
    raises."""
    launch = _Launch(spec, hypervisor, on_phase)
    await launch.prepare()
    try:
        return await launch.run(on_stdout, on_stderr)
    finally:
        await to_the_end(asyncio.to_thread(shutil.rmtree, spec.run_dir, ignore_errors=True))


class _Launch:
    """State of one launch. ``verdict``: why the guest is being ended before its time."""

    def __init__(self, spec: JobSpec, hypervisor: Hypervisor, on_phase: PhaseSink | None) -> None:
        self._spec = spec
        self._hypervisor = hypervisor
        self._on_phase = on_phase
        self._began_s = time.monotonic()
        self._phases: dict[str, float] = {}
        self._verdict: DistribError | None = None
        self._ended = asyncio.Event()
        self._result = b""
        self._reported_s: float | None = None
        run_dir = spec.run_dir
        self._iso = run_dir / "context.iso"
        self._console = run_dir / "console.log"
        self._stdout, self._stderr, self._result_file = (
            run_dir / name for name in ("stdout", "stderr", "result")
        )

    async def prepare(self) -> None:
        try:
            # Passed through by QEMU's account, listed by nobody else.
            self._spec.run_dir.mkdir(mode=0o711, parents=True)
        except FileExistsError as error:
            raise Conflict(
                f"a launch uses this directory already: {self._spec.run_dir}",
                hint="another launch of this lease runs, or its remains were not removed",
                lease=self._spec.lease_id,
            ) from error

    async def run(self, on_stdout: Sink, on_stderr: Sink) -> JobResult:
        xml = to_xml(self._domain_spec())
        await asyncio.to_thread(self._write_files)
        await self._phase("prepared")
        domain = await self._hypervisor.start(xml)
        try:
            await self._phase("started")
            end = await self._supervise(domain, on_stdout, on_stderr)
        finally:
            await to_the_end(self._hypervisor.destroy(domain))
        await self._phase("ended")
        return self._judge(end)

    def _write_files(self) -> None:
        spec = self._spec
        for path in (self._console, self._stdout, self._stderr, self._result_file):
            channel.create(path)
        job = JobPart(
            instance_id=f"{spec.agent}-{spec.lease_id}",
            script=spec.script,
            args=spec.args,
            environment=spec.environment,
        )
        write_disc(self._iso, files_of(spec.site, job))
        self._iso.chmod(0o600)
        if spec.disk_owner is not None:
            for disk in (spec.disk_path, spec.scratch_path):
                if disk is not None:
                    os.chown(disk, *spec.disk_owner)

    def _domain_spec(self) -> DomainSpec:
        spec = self._spec

        def disk(path: Path, form: Literal["raw", "qcow2"], block: bool) -> Disk:
            return Disk(PurePosixPath(path), form, block, bus=spec.bus)

        return DomainSpec(
            agent=spec.agent,
            lease=spec.lease_id,
            accelerator=spec.accelerator,
            memory_mib=spec.memory_mib,
            vcpus=spec.vcpus,
            root=disk(spec.disk_path, spec.disk_format, spec.disk_block),
            scratch=(
                disk(spec.scratch_path, "raw", spec.scratch_block) if spec.scratch_path else None
            ),
            context_iso=PurePosixPath(self._iso),
            console_log=PurePosixPath(self._console),
            channels=(
                PurePosixPath(self._stdout),
                PurePosixPath(self._stderr),
                PurePosixPath(self._result_file),
            ),
            nic=spec.nic,
        )

    async def _supervise(self, domain: Domain, on_stdout: Sink, on_stderr: Sink) -> End:
        limits = self._spec.limits

        def pump(path: Path, sink: Sink, limit_bytes: int) -> Awaitable[None]:
            async def signed(data: bytes) -> None:
                if "booted" not in self._phases:
                    await self._phase("booted")
                await sink(data)

            return channel.pump(
                path, signed, ended=self._ended, poll_s=limits.poll_s, limit_bytes=limit_bytes
            )

        async def keep(data: bytes) -> None:
            self._result += data
            if self._reported_s is None and parse_result(self._result).exit_status is not None:
                self._reported_s = time.monotonic()

        try:
            async with asyncio.TaskGroup() as group:
                for path, sink, limit_bytes in (
                    (self._stdout, on_stdout, limits.output_bytes),
                    (self._stderr, on_stderr, limits.output_bytes),
                    (self._result_file, keep, MAX_RESULT_BYTES),
                ):
                    group.create_task(_run(pump(path, sink, limit_bytes)), name=path.name)
                watch = group.create_task(self._watch(domain), name="limits")
                end = await self._hypervisor.wait(domain)
                watch.cancel()
                self._ended.set()
        except BaseExceptionGroup as group_error:
            # One fault ends a launch; the others are its echo.
            raise _first(group_error) from group_error
        return end

    async def _watch(self, domain: Domain) -> None:
        """End the guest at a limit; what it wrote until then is still passed on."""
        limits = self._spec.limits
        started_s = time.monotonic()
        while self._verdict is None:
            now_s = time.monotonic()
            ran_s = now_s - started_s
            if self._reported_s is not None and now_s - self._reported_s >= limits.poweroff_s:
                # The job is done; a guest that cannot power itself off is switched off.
                break
            if limits.wall_s is not None and ran_s >= limits.wall_s:
                self._verdict = LimitReached(
                    f"the job ran into its limit of {limits.wall_s:g} s",
                    hint="ask for more time, or for a node with hardware virtualisation",
                    lease=self._spec.lease_id,
                )
            elif "booted" not in self._phases and ran_s >= limits.boot_timeout_s:
                self._verdict = self._failed(
                    f"no sign from the guest within {limits.boot_timeout_s:g} s",
                    hint="is the image bootable by BIOS, and does it run the context disc?",
                )
            elif self._console.stat().st_size > limits.console_bytes:
                self._verdict = self._failed(
                    f"the guest wrote more than {limits.console_bytes} bytes to its console"
                )
            else:
                await asyncio.sleep(limits.poll_s)
        await self._hypervisor.destroy(domain)

    def _judge(self, end: End) -> JobResult:
        outcome: Outcome = parse_result(self._result)
        if outcome.exit_status is not None:
            # Said before a limit struck: the job itself was done.
            return JobResult(outcome.exit_status, self._tail(), self._phases)
        if self._verdict is not None:
            raise self._verdict
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
                hint="setting accelerator = qemu avoids a KVM that is not complete",
            )
        raise self._failed(
            "the guest ended without a result",
            hint="it crashed, or was ended from outside; its console's last lines are above",
        )

    def _failed(self, message: str, *, hint: str = "") -> LaunchFailed:
        tail = self._tail()
        console = f"\nconsole:\n{tail}" if tail else "; its console is empty"
        return LaunchFailed(message + console, hint=hint, lease=self._spec.lease_id)

    def _tail(self) -> str:
        with self._console.open("rb") as file:
            file.seek(max(0, self._console.stat().st_size - _CONSOLE_TAIL_BYTES))
            return console_tail(file.read())

    async def _phase(self, name: str) -> None:
        self._phases[name] = round(time.monotonic() - self._began_s, 3)
        if self._on_phase is not None:
            await self._on_phase(name, self._phases[name])


async def _run(awaitable: Awaitable[None]) -> None:
    await awaitable


def _first(group: BaseExceptionGroup[BaseException]) -> BaseException:
    error = group.exceptions[0]
    return _first(error) if isinstance(error, BaseExceptionGroup) else error
