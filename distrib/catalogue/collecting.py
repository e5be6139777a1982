"""Fetches what is expected: the task of the controller that downloads, converts and checks images.

An image is due when it is ``expected``, somebody said from where, and its last failure (if there
was one) is long enough ago. What failed for good is left alone until somebody asks again
(``Taking.take``). A file that is all here (a crash came after it) is due as well, uploads included.
"""

from __future__ import annotations

import asyncio
import contextlib
import shutil
import time
from collections.abc import Awaitable, Callable
from datetime import datetime, timedelta
from pathlib import Path
from typing import Any

import structlog
from sqlalchemy import select

from distrib.catalogue.clock import Clock
from distrib.catalogue.download import Access, Download, host_of
from distrib.catalogue.intake_settings import IntakeSettings
from distrib.catalogue.passwords import Passwords
from distrib.catalogue.preparation import ENDORSED_FILE, Preparation
from distrib.catalogue.quarantine import Quarantine
from distrib.db.intake_models import Subscription
from distrib.db.models import Image, ImageState
from distrib.db.references import image_name
from distrib.db.session import Database
from distrib.errors import Conflict, DistribError, ImageError, NotFound, OperatorError

log = structlog.get_logger(__name__)

ACTOR = "intake"
_LOOK_S = 5.0
_LONGEST_RETRY_S = 3600.0
_TELL_S = 1.0


class Collector:
    """Call ``wake`` when something may be due: it is looked for every few seconds anyway."""

    def __init__(
        self,
        *,
        database: Database,
        quarantine: Quarantine,
        preparation: Preparation,
        passwords: Passwords,
        settings: IntakeSettings,
        clock: Clock,
        on_prepared: Callable[[Image], Awaitable[None]] | None = None,
    ) -> None:
        """``on_prepared`` is told of each image that is in quarantine now."""
        self._on_prepared = on_prepared
        self._database = database
        self._quarantine = quarantine
        self._preparation = preparation
        self._passwords = passwords
        self._settings = settings
        self._clock = clock
        self._download = Download(settings.file_roots)
        self._woken = asyncio.Event()
        self._loop: asyncio.AbstractEventLoop | None = None
        self._busy: dict[str, asyncio.Task[None]] = {}

    def wake(self) -> None:
        """Look now. From any thread."""
        if self._loop is not None:
            with contextlib.suppress(RuntimeError):  # the loop has ended meanwhile
                self._loop.call_soon_threadsafe(self._woken.set)

    async def run(self) -> None:
        """Until it is cancelled."""
        # An event belongs to the loop that it is first waited for in.
        self._loop, self._woken = asyncio.get_running_loop(), asyncio.Event()
        try:
            async with asyncio.TaskGroup() as group:
                while True:
                    self._woken.clear()
                    for row in await self._to_do():
                        name = image_name(row)
                        if len(self._busy) < self._settings.downloads and self._is_free(name):
                            self._busy[name] = group.create_task(self._one(row), name=name)
                    with contextlib.suppress(TimeoutError):
                        async with asyncio.timeout(_LOOK_S):
                            await self._woken.wait()
        finally:
            self._loop = None

    def _is_free(self, name: str) -> bool:
        # An upload may be looked into for minutes: it is not to be tried for all the while.
        return name not in self._busy and not self._quarantine.in_hand(name)

    async def _to_do(self) -> list[Image]:
        try:
            return await asyncio.to_thread(self._due)
        except DistribError as error:
            # The database is away, or its disk is full: it is looked at again in a while.
            log.warning("expected-images-not-read", code=error.code, why=error.message)
            return []

    def _due(self) -> list[Image]:
        now = self._clock()
        with self._database.reading() as session:
            query = select(Image).where(Image.state == ImageState.EXPECTED).order_by(Image.since)
            rows = list(session.scalars(query))
        return [row for row in rows if self._is_wanted(row) and _is_due(row.fault, now)]

    def _is_wanted(self, row: Image) -> bool:
        return bool(row.source) or (self._preparation.folder(row) / ENDORSED_FILE).exists()

    async def _one(self, row: Image) -> None:
        name = image_name(row)
        try:
            with self._quarantine.alone(name):
                prepared = await self._take_in(row)
            if self._on_prepared is not None:
                await self._on_prepared(prepared)
            log.info("image-taken-in", image=name, source=row.source)
        except Conflict as error:
            # Somebody uploads it, or it was denied or revoked meanwhile.
            log.info("image-not-taken-in", image=name, why=error.message)
        except DistribError as error:
            await self._note_failed(row, error)
        except Exception as error:
            # One image must not end the intake of the others, whatever was in it.
            log.exception("image-not-taken-in", image=name)
            fault = DistribError(
                f"{type(error).__name__}: {error}"[:500], hint="the log has the traceback"
            )
            await self._note_failed(row, fault)
        finally:
            self._busy.pop(name, None)
            self._woken.set()

    async def _take_in(self, row: Image) -> Image:
        folder = self._preparation.folder(row)
        if not await asyncio.to_thread((folder / ENDORSED_FILE).exists):
            access = await asyncio.to_thread(self._access, row)
            try:
                await self._fetch(row, folder, access)
            except ImageError as error:
                await asyncio.to_thread(
                    self._preparation.note_refusal, image_name(row), error, ACTOR
                )
                raise
        return await self._preparation.prepare(row, actor=ACTOR)

    async def _fetch(self, row: Image, folder: Path, access: Access) -> None:
        try:
            await self._download.fetch(row, folder, access=access, progress=self._progress_of(row))
        except Conflict:
            # Nobody wants it from there any more: what has come of it is of no use.
            shutil.rmtree(folder, ignore_errors=True)
            raise
        finally:
            await asyncio.to_thread(_drop_if_empty, folder)

    def _access(self, row: Image) -> Access:
        """What the subscription of the image's list has been given."""
        query = select(Subscription).where(Subscription.identifier == row.list_identifier)
        with self._database.reading() as session:
            found = session.scalars(query).first()
        if found is None:
            return Access()
        auth = None
        if found.username is not None and host_of(found.url):
            auth = (found.username, self._passwords.of(found.id))
        ca_file = Path(found.ca_file) if found.ca_file else None
        return Access(host_of(found.url), auth, ca_file)

    def _progress_of(self, row: Image) -> Callable[[int], Awaitable[None]]:
        told_at = 0.0

        async def progress(have_bytes: int) -> None:
            nonlocal told_at
            if time.monotonic() - told_at >= _TELL_S or have_bytes == row.endorsed_size_bytes:
                told_at = time.monotonic()
                await asyncio.to_thread(self._tell, row, have_bytes)

        return progress

    def _tell(self, row: Image, have_bytes: int) -> None:
        with self._database.transaction() as session:
            fresh = session.get(Image, (row.identifier, row.version), with_for_update=True)
            if fresh is None or fresh.state != ImageState.EXPECTED or fresh.source != row.source:
                raise Conflict(f"image {image_name(row)} is not wanted from there any more")
            fresh.fetched_bytes = have_bytes

    async def _note_failed(self, row: Image, error: DistribError) -> None:
        try:
            await asyncio.to_thread(self._failed, row, error)
        except DistribError as unwritten:
            log.warning("fault-not-noted", image=image_name(row), why=unwritten.message)

    def _failed(self, row: Image, error: DistribError) -> None:
        now, name = self._clock(), image_name(row)
        with self._database.transaction() as session:
            fresh = session.get(Image, (row.identifier, row.version), with_for_update=True)
            if fresh is None or fresh.state != ImageState.EXPECTED:
                return
            attempts = int(fresh.fault.get("attempts", 0)) + 1
            for_good = _is_for_good(error) or attempts >= self._settings.attempts
            fault: dict[str, Any] = {
                "code": error.code,
                "message": error.message,
                "hint": error.hint,
                "exit": int(error.exit_status),
                "at": now.isoformat(),
                "attempts": attempts,
            }
            if not for_good:
                wait_s = min(self._settings.retry_s * 2 ** (attempts - 1), _LONGEST_RETRY_S)
                fault["again_at"] = (now + timedelta(seconds=wait_s)).isoformat()
            fresh.fault = fault
        log.warning(
            "image-not-taken-in", image=name, code=error.code, why=error.message, attempt=attempts
        )


def _is_for_good(error: DistribError) -> bool:
    """Whether another try would end like this one: the file is at fault, or a setting."""
    waits = isinstance(error, NotFound) or error.code in {"forbidden", "tool-missing"}
    return isinstance(error, ImageError) or (isinstance(error, OperatorError) and not waits)


def _is_due(fault: dict[str, Any], now: datetime) -> bool:
    if not fault:
        return True
    again_at = fault.get("again_at")
    return again_at is not None and datetime.fromisoformat(again_at) <= now


def _drop_if_empty(folder: Path) -> None:
    with contextlib.suppress(OSError):
        folder.rmdir()
