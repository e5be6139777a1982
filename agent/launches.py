"""Launches over the socket: who may run what in which guest."""

from __future__ import annotations

import asyncio
import base64
import binascii
from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Self

from pydantic import BaseModel, ConfigDict, Field, model_validator

from agent.cache.cache import Cache
from agent.cache.holders import holder_of_pid
from agent.cache.leases import Lease
from agent.giving import Giving, Recipient
from agent.launching import Job, Launcher
from agent.reporter import Reporter
from agent.socket.caller import Caller
from agent.socket.request import parse
from agent.socket.server import Args, Operation, Send
from distrib.bus.messages import EventKind
from distrib.errors import Forbidden, MessageInvalid


class _Launch(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True)

    image: Annotated[str, Field(max_length=200)] | None = None
    lease: Annotated[str, Field(max_length=200)] | None = None
    script: Annotated[str, Field(max_length=900_000)]
    args: Annotated[tuple[str, ...], Field(max_length=1000)] = ()
    env: dict[str, str] = {}
    memory_mib: Annotated[int, Field(ge=64, le=1 << 24)] | None = None
    vcpus: Annotated[int, Field(ge=1, le=1024)] | None = None
    wall_limit_s: Annotated[float, Field(gt=0)] | None = None

    @model_validator(mode="after")
    def _one_of_both(self) -> Self:
        if (self.image is None) == (self.lease is None):
            raise ValueError("name an image or a lease, one of them")
        return self


class Launches:
    """The operations on guests by name: ``table`` is what the socket serves."""

    def __init__(
        self, *, giving: Giving, cache: Cache, launcher: Launcher, reporter: Reporter
    ) -> None:
        self._giving = giving
        self._cache = cache
        self._launcher = launcher
        self._reporter = reporter
        self.table: Mapping[str, Operation] = {"launch": self._launch}

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
        lease = await self._lease(caller, request)
        self._reporter.event(EventKind.LAUNCHED, lease=lease.lease, user=lease.user)
        try:
            record = await asyncio.to_thread(self._cache.record, lease.infohash)
            sha512 = record.sha512 if record else ""
            result = await self._launcher.launch(lease, sha512, job, send)
        finally:
            self._reporter.event(EventKind.ENDED, lease=lease.lease, user=lease.user)
            if request.lease is None:
                await asyncio.shield(self._giving.give_up(lease))
        return {
            "exit": result.exit_status,
            "phases": result.phases,
            "image": lease.image,
            "lease": lease.lease,
        }

    async def _lease(self, caller: Caller, request: _Launch) -> Lease:
        """The lease to launch in: one that there is, or a new one for the caller's life."""
        if request.lease is None:
            assert request.image is not None  # noqa: S101 - checked above
            return await self._giving.give(
                Recipient.of(caller, agents_own=True), request.image, holder_of_pid(caller.pid)
            )
        lease = await self._giving.held(caller, request.lease)
        await self._giving.require_listed(lease)
        await asyncio.to_thread(_require_agents_own, lease, self._launcher.own_uids)
        return lease


def _require_agents_own(lease: Lease, own_uids: frozenset[int]) -> None:
    # Its owner could write into its header that it stands on any file of the host.
    if lease.format == "raw" or Path(lease.device).stat().st_uid in own_uids:
        return
    raise Forbidden(
        f"lease {lease.lease}: its files are user {lease.user}'s own",
        hint="name the image instead: `launch` leases by itself",
        lease=lease.lease,
    )
