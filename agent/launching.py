"""Launches on this node: lease, guest, run log, release, and what a crash left behind."""

from __future__ import annotations

import asyncio
import base64
import os
import pwd
import shutil
from collections.abc import Awaitable, Callable, Mapping
from dataclasses import dataclass, field
from datetime import datetime
from pathlib import Path

import structlog

from agent.cache.leases import Lease
from agent.launch import accelerator
from agent.launch.context import SitePart
from agent.launch.domain import Accelerator
from agent.launch.job import JobResult, JobSpec, Limits, run_job
from agent.launch.libvirt import Libvirt
from agent.launch.runlog import Run, RunLog
from agent.settings import AgentSettings
from agent.socket.server import Send
from distrib.errors import ConfigInvalid, DistribError

log = structlog.get_logger(__name__)

OUTPUT_CHUNK_BYTES = 256 * 1024


@dataclass(frozen=True)
class Job:
    """What a caller wants to run. ``wall_limit_s`` bounds it below the site's own limit."""

    script: bytes
    args: tuple[str, ...] = ()
    environment: Mapping[str, str] = field(default_factory=dict)
    memory_mib: int | None = None
    vcpus: int | None = None
    wall_limit_s: float | None = None
    name: str = ""


class Launcher:
    """Runs jobs in guests. libvirt is loaded at the first launch only."""

    def __init__(
        self,
        settings: AgentSettings,
        *,
        clock: Callable[[], datetime],
    ) -> None:
        self._settings = settings
        self._clock = clock
        self._libvirt: Libvirt | None = None
        self._accelerator: Accelerator | None = None
        self._choosing = asyncio.Lock()
        self._run_dir = settings.state_dir / "run"
        self.runlog = RunLog(settings.state_dir / "runlog")

    @property
    def own_uids(self) -> frozenset[int]:
        """Accounts that instances for the agent's own guests belong to."""
        user = self._settings.launch.qemu_user
        return frozenset({0, os.geteuid(), *((_ids_of(user)[0],) if user else ())})

    async def close(self) -> None:
        if self._libvirt is not None:
            await self._libvirt.close()

    async def end_orphans(self, keep: set[str]) -> None:
        """End guests of this agent whose leases are gone; after a crash, at the start."""
        leftovers = [path for path in self._run_dir.glob("l-*") if path.name not in keep]
        if not leftovers:
            return
        hypervisor = self._hypervisor()
        for domain in await hypervisor.orphans(keep=keep):
            log.warning("orphan-ended", domain=domain.name, lease=domain.lease)
            await hypervisor.destroy(domain)
        for path in leftovers:
            await asyncio.to_thread(shutil.rmtree, path, ignore_errors=True)

    async def launch(self, lease: Lease, sha512: str, job: Job, send: Send) -> JobResult:
        """Run a job on a lease's instance; output goes out as it comes.

        ``sha512``: of the image's raw bytes, for the run log.

        Raises what ``run_job`` raises, and ToolMissing without libvirt."""
        kind = await self._kind()
        spec = await asyncio.to_thread(self._spec, lease, job, kind)
        run = self._run(lease, sha512, job)
        began = self._clock()
        await asyncio.to_thread(self.runlog.started, run, now=began)
        exit_status, code = None, "cancelled"
        try:
            result = await run_job(
                spec,
                on_stdout=_stream("stdout", send),
                on_stderr=_stream("stderr", send),
                on_phase=lambda phase, after_s: send(
                    {"phase": phase, "after_s": round(after_s, 3)}
                ),
                hypervisor=self._hypervisor(),
            )
            exit_status, code = result.exit_status, ""
        except DistribError as error:
            code = error.code
            raise
        finally:
            await asyncio.shield(
                asyncio.to_thread(
                    self.runlog.ended,
                    run,
                    start=began,
                    now=self._clock(),
                    exit_status=exit_status,
                    error=code or None,
                )
            )
        return result

    def _hypervisor(self) -> Libvirt:
        if self._libvirt is None:
            self._libvirt = Libvirt(self._settings.launch.libvirt_uri, agent=self._settings.node)
        return self._libvirt

    async def _kind(self) -> Accelerator:
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

    def _spec(self, lease: Lease, job: Job, kind: Accelerator) -> JobSpec:
        launch = self._settings.launch
        wall_s = min(job.wall_limit_s or launch.wall_limit_s, launch.wall_limit_s)
        site = SitePart.from_directory(launch.site_context) if launch.site_context else SitePart()
        return JobSpec(
            agent=self._settings.node,
            lease_id=lease.lease,
            script=job.script,
            args=job.args,
            environment=dict(job.environment),
            disk_path=Path(lease.device),
            disk_format=lease.format,
            disk_block=lease.block,
            scratch_path=Path(lease.scratch) if lease.scratch else None,
            scratch_block=lease.scratch is not None and Path(lease.scratch).is_block_device(),
            memory_mib=job.memory_mib or launch.memory_mib,
            vcpus=job.vcpus or launch.vcpus,
            run_dir=self._run_dir / lease.lease,
            accelerator=kind,
            disk_owner=_ids_of(launch.qemu_user) if launch.qemu_user else None,
            site=site,
            limits=Limits(boot_timeout_s=launch.boot_limit_s, wall_s=wall_s),
        )

    def _run(self, lease: Lease, sha512: str, job: Job) -> Run:
        image, _, version = lease.image.partition("@")
        return Run(
            lease=lease.lease,
            image=image,
            version=version,
            sha512=sha512,
            job=job.name or lease.lease,
            user=lease.user,
            host=self._settings.node,
        )


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


def _stream(name: str, send: Send) -> Callable[[bytes], Awaitable[None]]:
    async def pass_on(data: bytes) -> None:
        for at in range(0, len(data), OUTPUT_CHUNK_BYTES):
            chunk = data[at : at + OUTPUT_CHUNK_BYTES]
            await send({"stream": name, "data": base64.b64encode(chunk).decode()})

    return pass_on
