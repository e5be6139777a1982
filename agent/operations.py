"""What may be asked of the agent over its socket (docs/formats/socket.md), and by whom."""

from __future__ import annotations

import asyncio
import base64
import binascii
import contextlib
import os
from collections import defaultdict
from collections.abc import Callable
from datetime import datetime
from typing import Annotated, Any, Literal

import structlog
from pydantic import BaseModel, ConfigDict, Field

from agent.authority import Authority
from agent.cache.cache import Cache
from agent.cache.holders import (
    Holder,
    JobHolder,
    ProcessHolder,
    TimeHolder,
    holder_of_pid,
    parse_holder,
)
from agent.cache.leases import Lease
from agent.cache.records import VolumeRecord
from agent.launching import Job, Launcher
from agent.reporter import Reporter
from agent.settings import AgentSettings
from agent.socket.caller import Caller, owner_of_process
from agent.socket.request import parse
from agent.socket.server import Args, Operation, Send, Undoable
from agent.upkeep import Resolve, Upkeep
from distrib.bus.messages import EventKind
from distrib.command import product_version
from distrib.errors import (
    DistribError,
    Forbidden,
    MessageInvalid,
    NotFound,
    NotReady,
    Revoked,
    SiteListStale,
)
from distrib.trust.sitelist import ImageRef, SiteImage, SiteList, parse_image_ref

log = structlog.get_logger(__name__)

_MAKERS = 2
"""So many instances are made at a time, in the order of asking: while one waits for the disk the
other works, and more would only be in each other's way. As many again of those that take as long
as the disk needs to write all of them: nobody waits behind these."""


class _Args(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True)


class _Image(_Args):
    image: Annotated[str, Field(max_length=200)]


class _Lease(_Image):
    holder: dict[str, Any] | None = None
    cow_bytes: Annotated[int, Field(gt=0)] | None = None
    scratch_bytes: Annotated[int, Field(ge=0)] = 0
    block: bool | None = None


class _Pid(_Args):
    kind: Literal["process"]
    pid: Annotated[int, Field(strict=True, gt=0, le=1 << 22)]


class _Release(_Args):
    lease: Annotated[str, Field(max_length=100)]


class _Launch(_Image):
    script: Annotated[str, Field(max_length=900_000)]
    args: Annotated[tuple[str, ...], Field(max_length=1000)] = ()
    env: dict[str, str] = {}
    memory_mib: Annotated[int, Field(ge=64, le=1 << 24)] | None = None
    vcpus: Annotated[int, Field(ge=1, le=1024)] | None = None
    wall_limit_s: Annotated[float, Field(gt=0)] | None = None


class Operations:
    """The operations by name: ``table`` is what the socket serves."""

    def __init__(
        self,
        settings: AgentSettings,
        *,
        authority: Authority,
        cache: Cache,
        upkeep: Callable[[Resolve], Upkeep],
        launcher: Launcher,
        reporter: Reporter,
        scrubbed: Callable[[], dict[str, dict[str, object]]],
        clock: Callable[[], datetime],
    ) -> None:
        self._scrubbed = scrubbed
        self._settings = settings
        self._authority = authority
        self._cache = cache
        self._launcher = launcher
        self._reporter = reporter
        self._clock = clock
        self._giving: defaultdict[str, asyncio.Lock] = defaultdict(asyncio.Lock)
        self._quick, self._slow = asyncio.Semaphore(_MAKERS), asyncio.Semaphore(_MAKERS)
        self.table: dict[str, Operation] = {
            "status": self._status,
            "leases": self._leases,
            "lease": self._lease,
            "release": self._release,
            "launch": self._launch,
            "pin": self._pin,
            "unpin": self._unpin,
            **upkeep(self.resolve).table,
        }

    async def _status(self, caller: Caller, args: Args, send: Send) -> dict[str, object]:
        parse(_Args, args)
        site_list = self._authority.site_list
        return {
            "version": product_version(),
            "pid": os.getpid(),
            "site_list_age_s": self._authority.list_age_s,
            "site": site_list.site if site_list else None,
            "leasable": self._leasable(),
            "alarm": (self._authority.list_age_s or 0) > self._settings.trust.alarm_age_s,
            "report": (await self._reporter.report()).model_dump(mode="json"),
            "scrub": await asyncio.to_thread(self._scrubbed),
        }

    def _leasable(self) -> bool:
        try:
            self._authority.require_leasable()
        except (NotReady, SiteListStale):
            return False
        return True

    async def _leases(self, caller: Caller, args: Args, send: Send) -> dict[str, object]:
        parse(_Args, args)
        held = await asyncio.to_thread(self._cache.leases)
        mine = [x for x in held if caller.admin or x.user == caller.user]
        damaged = await asyncio.to_thread(self._cache.damaged)
        try:
            filled = await asyncio.to_thread(self._cache.fills) if mine else {}
        except DistribError as error:
            log.warning("instances-not-looked-at", why=error.message)
            filled = {}
        return {
            "leases": [
                x.as_dict()
                | {"damaged": x.infohash in damaged, "filled_percent": filled.get(x.lease)}
                for x in mine
            ],
        }

    async def _lease(self, caller: Caller, args: Args, send: Send) -> Undoable:
        request = parse(_Lease, args)
        holder = self._holder(caller, request.holder)
        self._check_limits(caller, request, holder)
        lease = await self._give(
            caller,
            request.image,
            holder,
            cow_bytes=request.cow_bytes,
            scratch_bytes=request.scratch_bytes,
            owner_uid=None if caller.admin else caller.uid,
            block=request.block,
        )
        return Undoable(lease.as_dict(), lambda: self._give_up(lease))

    async def _release(self, caller: Caller, args: Args, send: Send) -> dict[str, object]:
        wanted = parse(_Release, args).lease
        held = await asyncio.to_thread(self._cache.leases)
        lease = next((x for x in held if x.lease == wanted), None)
        if lease is None or not (caller.admin or lease.user == caller.user):
            raise NotFound(f"no lease {wanted} of yours", hint="see `distrib-agent leases`")
        await self._take_back(lease)
        return {"released": lease.lease}

    async def _launch(self, caller: Caller, args: Args, send: Send) -> dict[str, object]:
        request = parse(_Launch, args)
        try:
            script = base64.b64decode(request.script, validate=True)
        except binascii.Error:
            raise MessageInvalid("launch: script is not base64", hint="see socket.md") from None
        job = Job(
            script=script,
            args=request.args,
            environment=request.env,
            memory_mib=request.memory_mib,
            vcpus=request.vcpus,
            wall_limit_s=request.wall_limit_s,
        )
        lease = await self._give(caller, request.image, holder_of_pid(caller.pid))
        self._reporter.event(EventKind.LAUNCHED, lease=lease.lease, user=lease.user)
        try:
            record = await asyncio.to_thread(self._cache.record, lease.infohash)
            sha512 = record.sha512 if record else ""
            result = await self._launcher.launch(lease, sha512, job, send)
        finally:
            self._reporter.event(EventKind.ENDED, lease=lease.lease, user=lease.user)
            await asyncio.shield(self._give_up(lease))
        return {"exit": result.exit_status, "phases": result.phases, "image": lease.image}

    async def _pin(self, caller: Caller, args: Args, send: Send) -> dict[str, object]:
        return await self._set_pinned(caller, args, pinned=True)

    async def _unpin(self, caller: Caller, args: Args, send: Send) -> dict[str, object]:
        return await self._set_pinned(caller, args, pinned=False)

    async def _set_pinned(self, caller: Caller, args: Args, *, pinned: bool) -> dict[str, object]:
        caller.require_admin("pin" if pinned else "unpin")
        record, _ = await self.resolve(parse(_Image, args).image)
        change = self._cache.pin if pinned else self._cache.unpin
        await asyncio.to_thread(change, record.infohash)
        return {"image": record.image, "pinned": pinned}

    # -- parts ----------------------------------------------------------------------------------

    async def resolve(self, text: str) -> tuple[VolumeRecord, SiteImage]:
        """The record and the site's entry that IMAGE means on this node."""
        site_list = self._authority.site_list
        if site_list is None:
            raise NotReady("no site list yet", hint="is the broker reachable?")
        ref = parse_image_ref(text)
        found = site_list.find(ref)
        if not found:
            await self._refuse_withdrawn(ref, site_list)
            raise NotFound(
                f"image {text}: the site list approves no such image",
                hint="it was never approved, or was revoked",
                image=text,
            )
        record = await asyncio.to_thread(self._cache.resolve, found[0].identifier, ref.version)
        image = self._authority.entry(record.identifier, record.version, record.infohash)
        if image is None:
            raise _withdrawn(record)
        return record, image

    async def _refuse_withdrawn(self, ref: ImageRef, site_list: SiteList) -> None:
        """Raise Revoked for an image that this node holds, or a name that the site gave to one,
        and that the site does not list."""
        meant = self._authority.aliases.meant(ref.name)
        if meant is not None and not site_list.find(ref.name):
            raise Revoked(
                f"image {ref.name} ({meant}) is not on the site list any more",
                hint="use another image or version",
                image=meant,
            )
        try:
            record = await asyncio.to_thread(self._cache.resolve, ref.name, ref.version)
        except NotFound:
            return
        raise _withdrawn(record)

    async def _give(
        self,
        caller: Caller,
        image_ref: str,
        holder: Holder,
        *,
        cow_bytes: int | None = None,
        scratch_bytes: int = 0,
        owner_uid: int | None = None,
        block: bool | None = None,
    ) -> Lease:
        # One at a time of each user: parallel requests count each other. Nobody counts those of
        # an administrator.
        turn = contextlib.nullcontext() if caller.admin else self._giving[caller.user]
        if block is None:
            block = self._settings.cache.expose == "loop"
        async with turn, self._slow if scratch_bytes or block else self._quick:
            record = await self._allowed(caller, image_ref)
            leases = await asyncio.to_thread(self._cache.leases)
            held = sum(lease.user == caller.user for lease in leases)
            if not caller.admin and held >= self._settings.leases_per_user:
                raise Forbidden(
                    f"user {caller.user} holds {held} leases",
                    hint="release some (leases_per_user)",
                )
            making = asyncio.ensure_future(
                asyncio.to_thread(
                    self._cache.lease,
                    record.infohash,
                    holder=holder,
                    user=caller.user,
                    cow_bytes=cow_bytes or self._settings.cache.cow_bytes,
                    scratch_bytes=scratch_bytes,
                    owner_uid=owner_uid,
                    block=block,
                )
            )
            try:
                lease = await asyncio.shield(making)
                self._tell(EventKind.LEASED, lease)
                await self._allowed(caller, record.image)  # the site may have spoken meanwhile
            except BaseException:
                # Also when the caller has gone: the thread goes on, and what it makes goes back.
                with contextlib.suppress(DistribError):
                    await self._give_up(await making)
                raise
        return lease

    async def _allowed(self, caller: Caller, image_ref: str) -> VolumeRecord:
        """The record that the caller may lease, as the site list says now."""
        self._authority.require_leasable()
        record, image = await self.resolve(image_ref)
        if not (caller.admin or image.admits(caller.user)):
            raise Forbidden(
                f"image {record.image} is not for user {caller.user}",
                hint="the site decides its audience",
                image=record.image,
            )
        return record

    def _check_limits(self, caller: Caller, request: _Lease, holder: Holder) -> None:
        """Raise Forbidden where an ordinary user asks for more than the settings allow."""
        if caller.admin:
            return
        cache = self._settings.cache
        left_s = (
            (holder.until - self._clock()).total_seconds() if isinstance(holder, TimeHolder) else 0
        )
        for key, asked, most in (
            ("max_cow_bytes", request.cow_bytes or 0, cache.max_cow_bytes),
            ("max_scratch_bytes", request.scratch_bytes, cache.max_scratch_bytes),
            ("max_lease_s", left_s, cache.max_lease_s),
        ):
            if asked > most:
                raise Forbidden(
                    f"{asked:.0f} is more than user {caller.user} may ask for",
                    hint=f"at most {most:.0f} (setting cache.{key})",
                )

    async def _give_up(self, lease: Lease) -> None:
        """Take a lease back whose caller has gone; a fault is nobody's to hear but the log's."""
        try:
            await self._take_back(lease)
        except DistribError as error:
            log.warning("lease-not-removed", lease=lease.lease, why=error.message)

    async def _take_back(self, lease: Lease) -> None:
        try:
            await asyncio.to_thread(self._cache.release, lease.lease)
        except NotFound:
            return
        self._tell(EventKind.RELEASED, lease)

    def _tell(self, kind: EventKind, lease: Lease) -> None:
        identifier, _, version = lease.image.partition("@")
        self._reporter.event(
            kind, identifier=identifier, version=version, lease=lease.lease, user=lease.user
        )
        self._reporter.changed()

    def _holder(self, caller: Caller, given: dict[str, Any] | None) -> Holder:
        if given is None:
            return holder_of_pid(caller.pid)
        if given.get("kind") == "process" and set(given) == {"kind", "pid"}:
            holder: Holder = holder_of_pid(parse(_Pid, given).pid)
        else:
            holder = parse_holder(given)
        if isinstance(holder, JobHolder):
            caller.require_admin("a lease for a job")
        foreign = isinstance(holder, ProcessHolder) and owner_of_process(holder.pid) != caller.uid
        if foreign and not caller.admin:
            raise Forbidden("the holder is another user's process", hint="name one of yours")
        return holder


def _withdrawn(record: VolumeRecord) -> Revoked:
    return Revoked(
        f"image {record.image} is not on the site list any more",
        hint="use another image or version",
        image=record.image,
    )
