"""Leases over the socket: who may have one of what, for how long, and how it is taken back."""

from __future__ import annotations

import asyncio
import contextlib
from collections import defaultdict
from collections.abc import Awaitable, Callable, Mapping
from dataclasses import dataclass
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
from agent.reporter import Reporter
from agent.settings import AgentSettings
from agent.socket.caller import Caller, owner_of_process
from agent.socket.request import parse
from agent.socket.server import Args, Operation, Send, Undoable
from distrib.bus.messages import EventKind
from distrib.errors import DistribError, Forbidden, NotFound
from distrib.trust.sitelist import SiteImage

log = structlog.get_logger(__name__)

Resolve = Callable[[str], Awaitable[tuple[VolumeRecord, SiteImage]]]

_MAKERS = 2
"""So many instances are made at a time, in the order of asking: while one waits for the disk the
other works, and more would only be in each other's way. As many again of those that take as long
as the disk needs to write all of them: nobody waits behind these."""


class _Args(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True)


class _Lease(_Args):
    image: Annotated[str, Field(max_length=200)]
    user: Annotated[str, Field(pattern=r"^[^\s:/\x00-\x1f\x7f]{1,64}$")] | None = None
    holder: dict[str, Any] | None = None
    cow_bytes: Annotated[int, Field(gt=0)] | None = None
    scratch_bytes: Annotated[int, Field(ge=0)] = 0
    block: bool | None = None


class _Pid(_Args):
    kind: Literal["process"]
    pid: Annotated[int, Field(strict=True, gt=0, le=1 << 22)]


class _Release(_Args):
    lease: Annotated[str, Field(max_length=200)]


@dataclass(frozen=True)
class Recipient:
    """Whom a lease is given to. ``free``: an administrator asks, who is not counted;
    ``owner_uid``: whose the files are, None for the agent's own."""

    user: str
    free: bool
    admitted: bool
    owner_uid: int | None = None

    @classmethod
    def of(cls, caller: Caller, *, user: str | None = None, agents_own: bool = False) -> Recipient:
        """The caller, or the user that an administrator names, who gets no files of its own: they
        are for the agent's guests. So they are with ``agents_own``."""
        if user is not None and user != caller.user:
            caller.require_admin("a lease for another user")
            return cls(user, free=True, admitted=False)
        return cls(
            caller.user,
            free=caller.admin,
            admitted=caller.admin,
            owner_uid=None if caller.admin or agents_own else caller.uid,
        )


class Giving:
    """The operations on leases by name: ``table`` is what the socket serves.

    ``resolve``: what IMAGE means on this node."""

    def __init__(
        self,
        settings: AgentSettings,
        *,
        authority: Authority,
        cache: Cache,
        reporter: Reporter,
        resolve: Resolve,
        clock: Callable[[], datetime],
    ) -> None:
        self._settings = settings
        self._authority = authority
        self._cache = cache
        self._reporter = reporter
        self._resolve = resolve
        self._clock = clock
        self._turns: defaultdict[str, asyncio.Lock] = defaultdict(asyncio.Lock)
        self._quick, self._slow = asyncio.Semaphore(_MAKERS), asyncio.Semaphore(_MAKERS)
        self.table: Mapping[str, Operation] = {
            "leases": self._leases,
            "lease": self._lease,
            "release": self._release,
        }

    async def held(self, caller: Caller, name: str) -> Lease:
        """The caller's lease of this name: its own, or that of its job (``SCHEDULER:JOB``).

        Raises NotFound."""
        for lease in await asyncio.to_thread(self._cache.leases):
            if name in _names(lease) and (caller.admin or lease.user == caller.user):
                return lease
        raise NotFound(f"no lease {name} of yours", hint="see `distrib-agent leases`")

    def scratch_for(self, caller: Caller, scratch_bytes: int) -> int:
        """``scratch_bytes``, if the caller may have as many. Raises Forbidden."""
        most = self._settings.cache.max_scratch_bytes
        if not caller.admin and scratch_bytes > most:
            raise Forbidden(
                f"{scratch_bytes} is more than user {caller.user} may ask for",
                hint=f"at most {most} (setting cache.max_scratch_bytes)",
            )
        return scratch_bytes

    async def require_listed(self, lease: Lease) -> SiteImage:
        """The site's entry of a lease's image. Raises Revoked when it is not listed any more."""
        _, image = await self._resolve(lease.image)
        return image

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
        lease = await self.give(
            Recipient.of(caller, user=request.user),
            request.image,
            holder,
            cow_bytes=request.cow_bytes,
            scratch_bytes=request.scratch_bytes,
            block=request.block,
        )
        return Undoable(lease.as_dict(), lambda: self.give_up(lease))

    async def _release(self, caller: Caller, args: Args, send: Send) -> dict[str, object]:
        lease = await self.held(caller, parse(_Release, args).lease)
        await self._take_back(lease)
        return {"released": lease.lease}

    async def give(
        self,
        to: Recipient,
        image_ref: str,
        holder: Holder,
        *,
        cow_bytes: int | None = None,
        scratch_bytes: int = 0,
        block: bool | None = None,
    ) -> Lease:
        """A lease of IMAGE, with its instance. Raises Forbidden, Revoked, NoSpace, ..."""
        # One at a time of each user: parallel requests count each other. Nobody counts those of
        # an administrator.
        turn = contextlib.nullcontext() if to.free else self._turns[to.user]
        if block is None:
            block = self._settings.cache.expose == "loop"
        async with turn, self._slow if scratch_bytes or block else self._quick:
            record = await self._allowed(to, image_ref)
            leases = await asyncio.to_thread(self._cache.leases)
            held = sum(lease.user == to.user for lease in leases)
            if not to.free and held >= self._settings.leases_per_user:
                raise Forbidden(
                    f"user {to.user} holds {held} leases",
                    hint="release some (leases_per_user)",
                )
            making = asyncio.ensure_future(
                asyncio.to_thread(
                    self._cache.lease,
                    record.infohash,
                    holder=holder,
                    user=to.user,
                    cow_bytes=cow_bytes or self._settings.cache.cow_bytes,
                    scratch_bytes=scratch_bytes,
                    owner_uid=to.owner_uid,
                    block=block,
                )
            )
            try:
                lease = await asyncio.shield(making)
                self._tell(EventKind.LEASED, lease)
                await self._allowed(to, record.image)  # the site may have spoken meanwhile
            except BaseException:
                # Also when the caller has gone: the thread goes on, and what it makes goes back.
                with contextlib.suppress(DistribError):
                    await self.give_up(await making)
                raise
        return lease

    async def _allowed(self, to: Recipient, image_ref: str) -> VolumeRecord:
        """The record that the user may lease, as the site list says now."""
        self._authority.require_leasable()
        record, image = await self._resolve(image_ref)
        if not (to.admitted or image.admits(to.user)):
            raise Forbidden(
                f"image {record.image} is not for user {to.user}",
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

    async def give_up(self, lease: Lease) -> None:
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


def _names(lease: Lease) -> tuple[str, ...]:
    holder = lease.holder
    if isinstance(holder, JobHolder):
        return lease.lease, holder.name
    return (lease.lease,)
