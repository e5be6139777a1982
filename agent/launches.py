"""Launches over the socket: who may run what in which guest, follow it, end it."""

from __future__ import annotations

import asyncio
import base64
import binascii
import signal
from collections.abc import Mapping
from dataclasses import asdict
from pathlib import Path
from typing import Annotated, Literal, Self

from pydantic import BaseModel, ConfigDict, Field, model_validator

from agent.cache.cache import Cache
from agent.cache.holders import JobHolder, holder_of_pid
from agent.cache.leases import Lease
from agent.giving import Giving, Recipient
from agent.launch.choosing import Job
from agent.launch.guest import TO_THE_JOB
from agent.launch.spec import JobResult
from agent.launched import Launched
from agent.launching import Launcher
from agent.reporter import Reporter
from agent.settings import AgentSettings
from agent.socket.caller import Caller
from agent.socket.request import parse
from agent.socket.server import Args, Operation, Send
from distrib.bus.messages import EventKind
from distrib.errors import Forbidden, MessageInvalid, NotFound, OperatorError, Revoked

SIGNALS = frozenset(TO_THE_JOB) | {
    signal.SIGTSTP,
    signal.SIGSTOP,
    signal.SIGCONT,
    signal.SIGKILL,
}

LeaseName = Annotated[str, Field(max_length=200)]


class _Model(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True)


class _Launch(_Model):
    image: Annotated[str, Field(max_length=200)] | None = None
    lease: LeaseName | None = None
    script: Annotated[str, Field(max_length=900_000)]
    args: Annotated[tuple[str, ...], Field(max_length=1000)] = ()
    env: dict[str, str] = {}
    memory_mib: Annotated[int, Field(ge=64, le=1 << 24)] | None = None
    vcpus: Annotated[int, Field(ge=1, le=1024)] | None = None
    wall_limit_s: Annotated[float, Field(gt=0)] | None = None
    scratch_bytes: Annotated[int, Field(ge=0)] = 0
    network: Literal["none", "private", "public"] | None = None
    bus: Literal["virtio", "virtio-scsi", "scsi", "ide", "sata"] | None = None
    nic: Literal["virtio", "e1000"] | None = None
    inputs: tuple[Literal["stdin", "files"], ...] = ()
    share: Annotated[str, Field(max_length=4096)] | None = None
    name: Annotated[str, Field(max_length=200)] = ""
    context: Annotated[str, Field(max_length=900_000)] = ""

    @model_validator(mode="after")
    def _consistent(self) -> Self:
        if (self.image is None) == (self.lease is None):
            raise ValueError("name an image or a lease, one of them")
        if self.share is not None and (
            "files" in self.inputs or not Path(self.share).is_absolute()
        ):
            raise ValueError("share: an absolute path, and no files besides")
        if self.scratch_bytes and self.lease is not None:
            raise ValueError("scratch_bytes: the lease has its scratch disk, or none")
        return self


class _Put(_Model):
    lease: LeaseName
    token: Annotated[str, Field(max_length=64)]
    name: Literal["stdin", "files"]
    data: Annotated[str, Field(max_length=900_000)]
    last: bool = False


class _Attach(_Model):
    lease: LeaseName
    token: Annotated[str, Field(max_length=64)] | None = None
    stdout: Annotated[int, Field(ge=0)] = 0
    stderr: Annotated[int, Field(ge=0)] = 0
    files: Annotated[int, Field(ge=0)] = 0


class _Signal(_Model):
    lease: LeaseName
    signal: Annotated[str, Field(max_length=20)]


class Launches:
    """The operations on guests by name: ``table`` is what the socket serves."""

    def __init__(
        self,
        settings: AgentSettings,
        *,
        giving: Giving,
        cache: Cache,
        launcher: Launcher,
        reporter: Reporter,
    ) -> None:
        self._settings = settings
        self._giving = giving
        self._cache = cache
        self._launcher = launcher
        self._reporter = reporter
        launcher.release = self._release
        self.table: Mapping[str, Operation] = {
            "launch": self._launch,
            "put": self._put,
            "attach": self._attach,
            "signal": self._signal,
        }

    async def end_uses(self, infohash: str, text: str) -> tuple[str, ...]:
        """End the guests of an image version, tell their clients that it was revoked, and take
        back its leases. Returns the leases."""
        leases = await asyncio.to_thread(self._cache.leases)
        theirs = [lease for lease in leases if lease.infohash == infohash]
        why = Revoked(
            f"the site ended all uses of image {theirs[0].image}{': ' if text else ''}{text}"
            if theirs
            else "",
            hint="use another image or version",
        )
        await self._launcher.end(why, leases=[lease.lease for lease in theirs])
        for lease in theirs:
            await self._giving.give_up(lease)
        return tuple(lease.lease for lease in theirs)

    # -- operations -----------------------------------------------------------------------------

    async def _launch(self, caller: Caller, args: Args, send: Send) -> dict[str, object]:
        request = parse(_Launch, args)
        job = Job(
            script=_decoded(request.script, "script"),
            args=request.args,
            environment=request.env,
            memory_mib=request.memory_mib,
            vcpus=request.vcpus,
            wall_limit_s=request.wall_limit_s,
            network=request.network,
            bus=request.bus,
            nic=request.nic,
            inputs=request.inputs,
            share=None if request.share is None else Path(request.share),
            name=request.name,
            context=_decoded(request.context, "context"),
        )
        client = holder_of_pid(caller.pid)
        lease = await self._lease(caller, request)
        try:
            image = await self._giving.require_listed(lease)
            launched = await self._launcher.begin(
                lease, image, job, caller, client, own_lease=request.lease is None
            )
        except BaseException:
            if request.lease is None:
                await asyncio.shield(self._giving.give_up(lease))
            raise
        self._reporter.event(EventKind.LAUNCHED, lease=lease.lease, user=lease.user)
        try:
            await send({"lease": lease.lease, "token": launched.record.token})
        except BaseException:
            launched.abandon()
            raise
        return _told(launched, await launched.follow(send, {}, owner=True))

    async def _put(self, caller: Caller, args: Args, send: Send) -> dict[str, object]:
        request = parse(_Put, args)
        launched = self._launcher.find(caller, request.lease, token=request.token)
        data = _decoded(request.data, "data")
        limit_bytes = self._settings.launch.files_limit_bytes
        await launched.put(request.name, data, last=request.last, limit_bytes=limit_bytes)
        return {"taken_bytes": len(data)}

    async def _attach(self, caller: Caller, args: Args, send: Send) -> dict[str, object]:
        request = parse(_Attach, args)
        name = await self._name(caller, request.lease)
        launched = self._launcher.find(caller, name, token=request.token)
        offsets = {"stdout": request.stdout, "stderr": request.stderr, "files": request.files}
        result = await launched.follow(send, offsets, owner=request.token is not None)
        return _told(launched, result)

    async def _signal(self, caller: Caller, args: Args, send: Send) -> dict[str, object]:
        request = parse(_Signal, args)
        name = request.signal.upper().removeprefix("SIG")
        number = getattr(signal, f"SIG{name}", None)
        if number not in SIGNALS:
            raise OperatorError(
                f"signal {request.signal}: not for a guest",
                hint=f"one of {', '.join(sorted(one.name[3:] for one in SIGNALS))}",
            )
        launched = self._launcher.find(caller, await self._name(caller, request.lease))
        await launched.guest.signal(number)
        return {"lease": launched.record.lease, "signal": name}

    # -- parts ----------------------------------------------------------------------------------

    async def _name(self, caller: Caller, lease: str) -> str:
        """A lease's own name, also where its job was named."""
        return (await self._giving.held(caller, lease)).lease if ":" in lease else lease

    async def _release(self, name: str) -> None:
        leases = await asyncio.to_thread(self._cache.leases)
        for lease in leases:
            if lease.lease == name:
                self._reporter.event(EventKind.ENDED, lease=lease.lease, user=lease.user)
                await self._giving.give_up(lease)

    async def _lease(self, caller: Caller, request: _Launch) -> Lease:
        """The lease to launch in: one that there is, or a new one for the caller's life."""
        only_in_jobs = self._settings.launch.only_in_jobs
        if request.lease is None:
            if only_in_jobs:
                raise _only_in_jobs()
            assert request.image is not None  # noqa: S101 - checked above
            return await self._giving.give(
                Recipient.of(caller, agents_own=True),
                request.image,
                holder_of_pid(caller.pid),
                scratch_bytes=self._giving.scratch_for(caller, request.scratch_bytes),
            )
        lease = await self._giving.held(caller, request.lease)
        if only_in_jobs and not isinstance(lease.holder, JobHolder):
            raise _only_in_jobs()
        await asyncio.to_thread(_require_agents_own, lease, self._launcher.own_uids)
        return lease


def _told(launched: Launched, result: JobResult) -> dict[str, object]:
    return {
        "exit": result.exit_status,
        "signal": result.signal,
        "phases": result.phases,
        "usage": asdict(result.usage),
        "image": f"{launched.record.run.image}@{launched.record.run.version}",
        "lease": launched.record.lease,
    }


def _only_in_jobs() -> Forbidden:
    return Forbidden(
        "guests run on this node only in jobs of its batch system",
        hint="submit a job that names the image (the site set launch.only_in_jobs)",
    )


def _decoded(text: str, what: str) -> bytes:
    try:
        return base64.b64decode(text, validate=True)
    except binascii.Error:
        raise MessageInvalid(f"launch: {what} is not base64", hint="see socket.md") from None


def _require_agents_own(lease: Lease, own_uids: frozenset[int]) -> None:
    # Its owner could write into its header that it stands on any file of the host.
    try:
        owner = Path(lease.device).stat().st_uid
    except OSError:
        raise NotFound(f"lease {lease.lease} has lost its instance", hint="release it") from None
    if lease.format == "raw" or owner in own_uids:
        return
    raise Forbidden(
        f"lease {lease.lease}: its files are user {lease.user}'s own",
        hint="name the image instead: `launch` leases by itself",
        lease=lease.lease,
    )
