"""What the stories are told with: a database with events in it, and handlers that are programs."""

from __future__ import annotations

import asyncio
import contextlib
import time
from collections.abc import AsyncIterator, Callable
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

from sqlalchemy import select

from distrib.db.intake_models import DeliveryState, Event, EventDelivery
from distrib.db.models import AcceptedList, Image, ImageState
from distrib.db.outbox import EventType, emit
from distrib.db.schema import upgrade
from distrib.db.session import Database, sqlite_url
from distrib.events.delivery import Delivery
from distrib.events.environment import Site
from distrib.events.settings import HandlerSettings

LIST = "0d4b3b8e-54f0-4a53-8a6e-0a4f1a6a2c01"
ONE = "7cb7a2d5-0f0e-4f43-9a11-3a9f5e0f6c11"
TWO = "5a1b4f52-9e7a-4e5d-8c55-7d6c0b7e0a22"
INFOHASH = "a3" * 32
WITHIN_S = 10.0

AVAILABLE = EventType.AVAILABLE_POSTFIX
EXPIRE = EventType.EXPIRE_PREFIX


async def until(condition: Callable[[], bool]) -> None:
    """Wait for what another process does."""
    async with asyncio.timeout(WITHIN_S):
        while not condition():  # noqa: ASYNC110 - another process
            await asyncio.sleep(0.01)


def site_of(state_dir: Path) -> Site:
    """The head's directories."""
    return Site(
        database="postgresql+psycopg://distrib:***@db/distrib",
        images=state_dir / "images",
        downloads=state_dir / "quarantine",
        certificates=Path("/etc/grid-security/certificates"),
        image_file=lambda infohash: state_dir / "images" / infohash / "image.raw",
        list_file=lambda sha512: state_dir / "lists" / f"{sha512}.smime",
    )


@dataclass
class Outbox:
    """A head's database; ``ahead`` puts its clock on."""

    state_dir: Path
    ahead: timedelta = timedelta()
    database: Database = field(init=False)

    def __post_init__(self) -> None:
        self.database = Database(sqlite_url(self.state_dir / "distrib.db"))
        upgrade(self.database)

    def clock(self) -> datetime:
        return datetime.now(UTC) + self.ahead

    def image(self, identifier: str = ONE, version: str = "1.0.0", **more: Any) -> Image:
        """An image that was approved, as the database has it."""
        now = self.clock()
        values = {
            "identifier": identifier,
            "version": version,
            "title": "worker",
            "list_sha512": "ab" * 64,
            "list_identifier": LIST,
            "list_version": "1.0.0",
            "endorser_dn": "/CN=Endorser",
            "endorser_ca": "/CN=CA",
            "entry": {"dc:identifier": identifier, "hv:version": version},
            "endorsed_sha512": "cd" * 64,
            "endorsed_size_bytes": 1000,
            "expires": None,
            "state": ImageState.APPROVED,
            "since": now,
            "infohash": INFOHASH,
            "sha512": "cd" * 64,
            "size_bytes": 1000,
        }
        with self.database.transaction() as session:
            if session.get(AcceptedList, "ab" * 64) is None:
                session.add(
                    AcceptedList(
                        sha512="ab" * 64,
                        identifier=LIST,
                        version="1.0.0",
                        endorser_dn="/CN=Endorser",
                        endorser_ca="/CN=CA",
                        created=now,
                        expires=now + timedelta(days=28),
                        accepted_at=now,
                        accepted_by="test",
                    )
                )
                session.flush()
            row = Image(**(values | more))
            session.add(row)
            return row

    def emit(self, type_: EventType, image: Image | None = None, **more: Any) -> int:
        """Something happened; the number of its event."""
        with self.database.transaction() as session:
            event: int = emit(session, self.clock(), type_, image=image, **more).id
            return event

    def delivery(self, event: int, handler: str = "h") -> EventDelivery | None:
        with self.database.reading() as session:
            return session.get(EventDelivery, (event, handler))

    def state(self, event: int, handler: str = "h") -> str | None:
        row = self.delivery(event, handler)
        return None if row is None else row.state

    def is_done(self, *events: int, handler: str = "h") -> bool:
        return {self.state(event, handler) for event in events} == {DeliveryState.DONE}

    def events(self) -> list[Event]:
        with self.database.reading() as session:
            return list(session.scalars(select(Event).order_by(Event.id)))

    def deliverer(self, *handlers: HandlerSettings, **more: Any) -> Delivery:
        made = Delivery(
            database=self.database,
            handlers=handlers,
            site=site_of(self.state_dir),
            clock=self.clock,
            look_s=0.02,
            **({"keep": timedelta(days=90)} | more),
        )
        made.register()
        return made

    @contextlib.asynccontextmanager
    async def delivering(self, *handlers: HandlerSettings) -> AsyncIterator[None]:
        """Handlers are told while the block runs."""
        async with asyncio.TaskGroup() as tasks:
            task = tasks.create_task(self.deliverer(*handlers).run())
            try:
                yield
            finally:
                task.cancel()


@dataclass
class Script:
    """A handler that is a shell script; what it is told is in files of ``folder``."""

    folder: Path
    body: str = ""

    def __post_init__(self) -> None:
        self.folder.mkdir(exist_ok=True)
        self.folder.chmod(0o777)
        self.file.write_text(
            '#!/bin/sh\nDIR="$1"\n'
            'env -0 > "$DIR/$DISTRIB_EVENT_ID.env"\n'
            'echo "$DISTRIB_EVENT_ID" >> "$DIR/told"\n' + self.body
        )
        self.file.chmod(0o755)

    @property
    def file(self) -> Path:
        return self.folder / "handler"

    def settings(self, name: str = "h", **more: Any) -> HandlerSettings:
        quick = {"retry_first_s": 0.02, "retry_longest_s": 0.1, "give_up_s": 3600.0}
        command = [str(self.file), str(self.folder)]
        return HandlerSettings(**({"name": name, "command": command} | quick | more))

    def told(self) -> list[int]:
        """The events it was told, in order; an event again for each try."""
        file = self.folder / "told"
        return [int(line) for line in file.read_text().split()] if file.exists() else []

    def environment(self, event: int) -> dict[str, str]:
        raw = (self.folder / f"{event}.env").read_bytes().decode()
        pairs = (entry.split("=", 1) for entry in raw.split("\0") if entry)
        # The shell's own.
        return {name: value for name, value in pairs if name not in {"PWD", "OLDPWD", "_", "SHLVL"}}


def is_running(pid: int) -> bool:
    """Whether the process is there and no zombie."""
    try:
        stat = Path(f"/proc/{pid}/stat").read_text()
    except FileNotFoundError:
        return False
    return stat.rpartition(")")[2].split()[0] != "Z"


def wait_until(condition: Callable[[], bool]) -> None:
    """The same as ``until``, for stories without a loop."""
    end = time.monotonic() + WITHIN_S
    while not condition():
        assert time.monotonic() < end
        time.sleep(0.01)
