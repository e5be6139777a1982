"""Launches on this node: lease, guest, run log, and what a crash left behind."""

from __future__ import annotations

import asyncio
import contextlib
import os
import pwd
import secrets
import shutil
import time
from collections.abc import Awaitable, Callable, Collection, Mapping
from dataclasses import replace
from datetime import datetime
from pathlib import Path

import structlog

from agent.cache.holders import JobHolder, ProcessHolder
from agent.cache.leases import Lease
from agent.finishing import to_the_end
from agent.launch import accelerator
from agent.launch.choosing import Job, gets_site_part, machine_for, require_room
from agent.launch.consoles import Consoles
from agent.launch.context import SitePart
from agent.launch.domain import Virtualisation
from agent.launch.guest import Guest
from agent.launch.job import make_run_dir
from agent.launch.libvirt import Libvirt
from agent.launch.record import LaunchRecord, Outcome, load_outcome, load_record, save_record
from agent.launch.runlog import Run, RunLog
from agent.launch.shared import share_of
from agent.launch.spec import JobResult, JobSpec, Limits, RunFiles
from agent.launched import Launched
from agent.settings import AgentSettings
from agent.socket.caller import Caller
from distrib.errors import ConfigInvalid, Conflict, DistribError, Forbidden, NotFound
from distrib.trust.sitelist import SiteImage

log = structlog.get_logger(__name__)

Release = Callable[[str], Awaitable[None]]

_OVER_S = 10.0
"""So long the next launch in a lease waits for the last one to be cleaned away."""

_OF_PROLOGS = ("gridengine:", "slurm:")
"""Names of jobs whose leases their prologs take."""


class Launcher:
    """Runs jobs in guests. libvirt is loaded at the first launch only.

    ``release`` gives a lease back that was made for a launch."""

    def __init__(self, settings: AgentSettings, *, clock: Callable[[], datetime]) -> None:
        self._settings = settings
        self._clock = clock
        self._libvirt: Libvirt | None = None
        self._accelerator: Virtualisation | None = None
        self._choosing = asyncio.Lock()
        self._run_dir = settings.state_dir / "run"
        self._launched: dict[str, Launched] = {}
        self._beginning: set[str] = set()
        self._tasks: set[asyncio.Task[None]] = set()
        self._leaving = False
        self._consoles = Consoles(
            settings.state_dir / "consoles", keep_days=settings.launch.console_keep_days
        )
        self.release: Release | None = None
        self.runlog = RunLog(settings.state_dir / "runlog")

    @property
    def own_uids(self) -> frozenset[int]:
        """Accounts that instances for the agent's own guests belong to."""
        user = self._settings.launch.qemu_user
        return frozenset({0, os.geteuid(), *((_ids_of(user)[0],) if user else ())})

    # -- the agent's life -----------------------------------------------------------------------

    def adopt(self, leases: Mapping[str, Lease]) -> None:
        """Go on with what an earlier agent launched; before anybody is served."""
        for directory in sorted(self._run_dir.glob("l-*")):
            files = RunFiles(directory)
            record = load_record(files)
            if record is None or directory.name not in leases or record.lease != directory.name:
                continue
            log.info("launch-adopted", lease=record.lease, job=record.run.job)
            launched = self._made(record, files, outcome=load_outcome(files))
            launched.guest.adopt(record.phases)
            self._begin(launched, None)

    def leave(self) -> None:
        """The agent stops: from now on a client that loses its connection has not hung up."""
        self._leaving = True
        for launched in self._launched.values():
            launched.leaving = True

    async def close(self) -> None:
        """Let go of all guests; they run on."""
        self.leave()
        for task in self._tasks:
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)
        if self._libvirt is not None:
            await self._libvirt.close()

    async def end_orphans(self, keep: set[str]) -> None:
        """End guests of this agent that no launch is responsible for, or whose lease is not in
        ``keep``: after a crash, and where libvirt did not answer when a guest was to end."""
        await asyncio.to_thread(self._consoles.expire, self._clock())
        launches = self._launched.keys() | self._beginning
        leftovers = [path for path in self._run_dir.glob("l-*") if path.name not in launches]
        if not leftovers and self._libvirt is None:
            return
        hypervisor = self._hypervisor()
        for domain in await hypervisor.orphans(keep=keep & launches):
            log.warning("orphan-ended", domain=domain.name, lease=domain.lease)
            await hypervisor.destroy(domain)
        for path in leftovers:
            if path.name not in self._launched.keys() | self._beginning:
                await asyncio.to_thread(shutil.rmtree, path, ignore_errors=True)

    # -- what is asked --------------------------------------------------------------------------

    async def begin(
        self,
        lease: Lease,
        image: SiteImage,
        job: Job,
        caller: Caller,
        client: ProcessHolder,
        *,
        own_lease: bool,
    ) -> Launched:
        """Start a launch; ``Launched.follow`` tells how it goes. One of a lease at a time.

        Raises Forbidden, Conflict, StorageFailed, ToolMissing, and what libvirt says."""
        kind = await self._kind()
        spec = await asyncio.to_thread(self._spec, lease, image, job, caller, kind)
        record = LaunchRecord(
            lease=lease.lease,
            token=secrets.token_hex(16),
            uid=caller.uid,
            client=client,
            own_lease=own_lease,
            run=self._run(lease, image, job),
            infohash=lease.infohash,
            began=self._clock(),
            began_s=time.monotonic(),
            limits=spec.limits,
            returns_files="files" in job.inputs,
        )
        if (last := self._launched.get(lease.lease)) is not None and last.told:
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(_OVER_S):
                    await last.over.wait()
        if lease.lease in self._beginning:
            raise Conflict(f"a launch is being started in lease {lease.lease}", hint="wait for it")
        self._beginning.add(lease.lease)
        try:
            await to_the_end(asyncio.to_thread(self._write, spec, record))
            launched = self._made(record, spec.files)
        except asyncio.CancelledError:
            # Its caller has gone while the files were written: nobody else knows of them.
            await to_the_end(asyncio.to_thread(shutil.rmtree, spec.run_dir, ignore_errors=True))
            raise
        finally:
            self._beginning.discard(lease.lease)
        launched.leaving = self._leaving
        launched.want(job.inputs)
        self._begin(launched, spec)
        return launched

    def find(self, caller: Caller, lease: str, *, token: str | None = None) -> Launched:
        """The launch in a lease, for its owner, an administrator, or who has its token.

        Raises NotFound."""
        launched = self._launched.get(lease)
        if launched is not None:
            record = launched.record
            owner = caller.uid == record.uid or caller.user == record.run.user
            if (caller.admin or owner) and token in {None, record.token}:
                return launched
        raise NotFound(f"no launch of yours in lease {lease}", hint="it has ended, or never was")

    async def end(self, why: DistribError, *, leases: Collection[str]) -> tuple[str, ...]:
        """End the guests of these leases; whoever waits for them is told ``why``. Returns, when
        they are gone, the leases that had one."""
        ending = [self._launched[lease] for lease in leases if lease in self._launched]
        for launched in ending:
            launched.guest.stop(why)
        for launched in ending:
            await launched.guest_gone.wait()
        return tuple(launched.record.lease for launched in ending)

    # -- parts ----------------------------------------------------------------------------------

    def _write(self, spec: JobSpec, record: LaunchRecord) -> None:
        make_run_dir(spec)
        try:
            save_record(spec.files, record)
            self.runlog.started(record.run, now=record.began)
        except DistribError:
            shutil.rmtree(spec.run_dir, ignore_errors=True)
            raise

    def _made(
        self, record: LaunchRecord, files: RunFiles, *, outcome: Outcome | None = None
    ) -> Launched:
        guest = Guest(
            self._settings.node,
            record.lease,
            files,
            record.limits,
            self._hypervisor(),
            began_s=record.began_s,
            # Bound below.
            stopped=lambda: launched.client_is_stopped(),  # noqa: PLW0108
            on_phase=lambda name, after_s: launched.phase(name, after_s),  # noqa: PLW0108
        )
        launched = Launched(
            record,
            files,
            guest,
            reconnect_s=self._settings.launch.reconnect_s,
            on_ended=self._on_ended,
            on_over=self._on_over,
            outcome=outcome,
        )
        self._launched[record.lease] = launched
        return launched

    def _begin(self, launched: Launched, spec: JobSpec | None) -> None:
        task = asyncio.create_task(launched.run(spec), name=f"launch {launched.record.lease}")
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)

    async def _on_ended(self, launched: Launched, outcome: Outcome) -> None:
        """Before anybody is told: what is to be kept of it."""
        record = launched.record
        failed = not isinstance(outcome, JobResult)
        if failed:
            kept = await asyncio.to_thread(
                self._consoles.keep, record.lease, launched.files.console
            )
            if kept is not None and isinstance(outcome, DistribError):
                outcome.ids["console"] = str(kept)
        try:
            await asyncio.to_thread(
                self.runlog.ended,
                record.run,
                start=record.began,
                now=self._clock(),
                exit_status=None if failed else outcome.exit_status,
                error=outcome.code if isinstance(outcome, DistribError) else None,
                usage=launched.guest.usage,
            )
        except DistribError as error:
            log.warning("run-log-not-written", lease=record.lease, why=error.message)

    async def _on_over(self, launched: Launched) -> None:
        record = launched.record
        self._launched.pop(record.lease, None)
        if record.own_lease and self.release is not None:
            await self.release(record.lease)

    def _hypervisor(self) -> Libvirt:
        if self._libvirt is None:
            launch = self._settings.launch
            self._libvirt = Libvirt(
                launch.libvirt_uri,
                agent=self._settings.node,
                call_timeout_s=launch.libvirt_limit_s,
            )
        return self._libvirt

    async def _kind(self) -> Virtualisation:
        async with self._choosing:
            if self._accelerator is None:
                self._accelerator = await accelerator.choose(
                    self._settings.launch.hypervisor,
                    agent=self._settings.node,
                    hypervisor=self._hypervisor(),
                    run_dir=self._run_dir,
                    remembered=self._settings.state_dir / "accelerator.json",
                )
        return self._accelerator

    def _spec(
        self, lease: Lease, image: SiteImage, job: Job, caller: Caller, kind: Virtualisation
    ) -> JobSpec:
        launch = self._settings.launch
        machine = machine_for(_within_grant(job, lease), image, launch)
        require_room(machine, os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE") >> 20)
        with_site = launch.site_context is not None and gets_site_part(image)
        site = (
            SitePart.from_directory(launch.site_context)
            if with_site and launch.site_context
            else SitePart()
        )
        owner = _ids_of(launch.qemu_user) if launch.qemu_user else None
        share, run_as = None, None
        if job.share is not None:
            share = share_of(job.share, caller.uid, launch.share_roots)
            owner = run_as = (caller.uid, pwd.getpwuid(caller.uid).pw_gid)
        return JobSpec(
            agent=self._settings.node,
            lease_id=lease.lease,
            script=job.script,
            args=job.args,
            environment=dict(job.environment),
            inputs=job.inputs,
            context=job.context,
            disk_path=Path(lease.device),
            disk_format=lease.format,
            disk_block=lease.block,
            scratch_path=Path(lease.scratch) if lease.scratch else None,
            scratch_block=lease.scratch is not None and Path(lease.scratch).is_block_device(),
            memory_mib=machine.memory_mib,
            vcpus=machine.vcpus,
            run_dir=self._run_dir / lease.lease,
            hardware=machine.hardware,
            nic=machine.nic,
            opennebula=machine.opennebula,
            accelerator=kind,
            disk_owner=owner,
            run_as=run_as,
            share=share,
            site=site,
            limits=Limits(
                boot_timeout_s=launch.boot_limit_s,
                wall_s=machine.wall_s,
                terminate_s=launch.terminate_s,
                files_bytes=launch.files_limit_bytes,
            ),
        )

    def _run(self, lease: Lease, image: SiteImage, job: Job) -> Run:
        identifier, _, version = lease.image.partition("@")
        return Run(
            lease=lease.lease,
            image=identifier,
            version=version,
            sha512=image.sha512,
            job=_name_of(job, lease),
            user=lease.user,
            host=self._settings.node,
        )


def _within_grant(job: Job, lease: Lease) -> Job:
    """The job with no more than its scheduler gave it: what its own environment says of that is
    its user's. Raises Forbidden."""
    holder = lease.holder
    if not isinstance(holder, JobHolder):
        return job
    for what, asked, given in (
        ("memory_mib", job.memory_mib, holder.memory_mib),
        ("vcpus", job.vcpus, holder.vcpus),
    ):
        if asked is not None and given is not None and asked > given:
            raise Forbidden(
                f"{what} {asked} is more than job {holder.name} was given",
                hint=f"at most {given}: ask the batch system for more",
                lease=lease.lease,
            )
    return replace(
        job, memory_mib=job.memory_mib or holder.memory_mib, vcpus=job.vcpus or holder.vcpus
    )


def _name_of(job: Job, lease: Lease) -> str:
    """Of a batch job's lease the job: what its guests take is accounted to it by this name, and to
    no other. Raises Forbidden."""
    if isinstance(lease.holder, JobHolder):
        return lease.holder.name
    if job.name.startswith(_OF_PROLOGS):
        raise Forbidden(
            f"{job.name[:60]} names a job of a batch system that has a lease of its own",
            hint="another name, or the lease of the job",
            lease=lease.lease,
        )
    return job.name or lease.lease


def _ids_of(user: str) -> tuple[int, int]:
    try:
        account = pwd.getpwnam(user)
    except KeyError:
        raise ConfigInvalid(
            f"launch.qemu_user = {user!r}: no such account",
            hint="libvirt's qemu.conf says which account it uses",
            key="launch.qemu_user",
        ) from None
    return account.pw_uid, account.pw_gid
