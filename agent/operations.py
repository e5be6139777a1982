"""What may be asked of the agent over its socket (docs/formats/socket.md), and by whom."""

from __future__ import annotations

import asyncio
import os
from collections.abc import Callable
from datetime import datetime
from typing import Annotated

from pydantic import BaseModel, ConfigDict, Field

from agent.accounts import Accounts
from agent.asking import Asking
from agent.authority import Authority
from agent.cache.cache import Cache
from agent.cache.records import VolumeRecord
from agent.giving import Giving, Resolve
from agent.launch.runlog import RunLog
from agent.launches import Launches
from agent.reporter import Reporter
from agent.settings import AgentSettings
from agent.socket.caller import Caller
from agent.socket.request import parse
from agent.socket.server import Args, Operation, Send
from agent.upkeep import Upkeep
from distrib.command import product_version
from distrib.errors import NotFound, NotReady, Revoked, SiteListStale
from distrib.trust.sitelist import ImageRef, SiteImage, SiteList, parse_image_ref

WITHDRAWN_MAX = 10
"""So many images that the site list names no more are told, the latest."""


class _Args(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True)


class _Image(_Args):
    image: Annotated[str, Field(max_length=200)]


class Operations:
    """The operations by name: ``table`` is what the socket serves."""

    def __init__(
        self,
        settings: AgentSettings,
        *,
        authority: Authority,
        cache: Cache,
        upkeep: Callable[[Resolve], Upkeep],
        launches: Callable[[Giving], Launches],
        reporter: Reporter,
        scrubbed: Callable[[], dict[str, dict[str, object]]],
        traffic: Callable[[], dict[str, object]] = dict,
        clock: Callable[[], datetime],
    ) -> None:
        self._scrubbed = scrubbed
        self._traffic = traffic
        self._settings = settings
        self._authority = authority
        self._cache = cache
        self._reporter = reporter
        self.giving = Giving(
            settings,
            authority=authority,
            cache=cache,
            reporter=reporter,
            resolve=self.resolve,
            clock=clock,
        )
        self.table: dict[str, Operation] = {
            "status": self._status,
            "pin": self._pin,
            "unpin": self._unpin,
            **self.giving.table,
            **launches(self.giving).table,
            **upkeep(self.resolve).table,
            **Asking(authority=authority, reporter=reporter, schedulers=settings.schedulers).table,
            **Accounts(RunLog(settings.state_dir / "runlog")).table,
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
            "aliases": {
                alias: image.identifier
                for image in (site_list.images if site_list else ())
                if caller.admin or image.admits(caller.user)
                for alias in image.aliases
            },
            "withdrawn": self._withdrawn(),
            "alarm": (self._authority.list_age_s or 0) > self._settings.trust.alarm_age_s,
            "report": (await self._reporter.report()).model_dump(mode="json"),
            "scrub": await asyncio.to_thread(self._scrubbed),
            "traffic": self._traffic(),
        }

    def _withdrawn(self) -> list[str]:
        site_list = self._authority.site_list
        if site_list is None:
            return []
        listed = {image.identifier for image in site_list.images}
        return self._authority.aliases.withdrawn(listed, most=WITHDRAWN_MAX)

    def _leasable(self) -> bool:
        try:
            self._authority.require_leasable()
        except (NotReady, SiteListStale):
            return False
        return True

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


def _withdrawn(record: VolumeRecord) -> Revoked:
    return Revoked(
        f"image {record.image} is not on the site list any more",
        hint="use another image or version",
        image=record.image,
    )
