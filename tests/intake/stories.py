"""What the stories of intake are told with."""

from __future__ import annotations

import asyncio
import hashlib
import json
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

from distrib.catalogue.intake import ImageChoice
from distrib.catalogue.intake_settings import IntakeSettings
from distrib.db.intake_models import ImageCheck, Subscription
from distrib.db.models import Image
from distrib.trust.testpki import Demo
from tests.head.stories import LIST, WORKER, Endorser, Head, entry, open_head
from tests.subscriptions.server import ListServer, Request, head

REF = f"{WORKER}@1.0.0"
WAIT_S = 40.0


@dataclass
class Site:
    """A head; ``settings`` are those of its intake."""

    state_dir: Path
    pki: Demo
    endorser: Endorser
    server: ListServer
    orders_key: Ed25519PrivateKey
    settings: dict[str, Any] = field(default_factory=lambda: {"retry_s": 0.05})
    opened: Head | None = None
    lists: int = 0

    @property
    def head(self) -> Head:
        """The head, opened at its first use."""
        if self.opened is None:
            settings = IntakeSettings(**self.settings)
            self.opened = open_head(self.state_dir, self.pki, self.orders_key, intake=settings)
            endorsers = self.opened.catalogue.endorsers
            if not (self.state_dir / "secrets" / "subscription-1").exists():
                endorsers.add(
                    dn=self.endorser.dn, ca=self.endorser.ca, list_identifier=LIST, actor="test"
                )
                self._subscribe()
        return self.opened

    def close(self) -> None:
        """Close the database; the next use opens all anew, as a restart does."""
        if self.opened is not None:
            self.opened.database.close()
        self.opened = None

    def _subscribe(self) -> None:
        with self.head.database.transaction() as session:
            session.add(
                Subscription(
                    url=self.server.url,
                    identifier=LIST,
                    dn=self.endorser.dn,
                    ca=self.endorser.ca,
                    ca_file=str(self.server.ca_file),
                    username="site",
                    added_at=self.head.clock(),
                    added_by="test",
                )
            )
        secrets = self.state_dir / "secrets"
        secrets.mkdir(mode=0o700, exist_ok=True)
        (secrets / "subscription-1").write_text("token")

    def announce(self, content: bytes, *, uri: str | None = None, **more: Any) -> Image:
        """The list names an image of this content, at ``uri``; the head is told to take it."""
        where = uri or f"{self.server.base}/worker"
        self.lists += 1
        signed = self.endorser.sign(
            entry(content, **{"hv:uri": where}, **more), version=str(self.lists)
        )
        self.head.catalogue.intake.announce(
            signed, ImageChoice(size_bytes=len(content)), actor="test"
        )
        return self.head.catalogue.taking.take(WORKER, "1.0.0", actor="test")

    def row(self) -> Image:
        """The image as the database has it."""
        with self.head.database.reading() as session:
            return session.get_one(Image, (WORKER, "1.0.0"))

    def checks(self) -> dict[str, str]:
        """What the checks said."""
        with self.head.database.reading() as session:
            return {one.name: one.outcome for one in session.query(ImageCheck)}

    @property
    def folder(self) -> Path:
        """The image's folder in quarantine."""
        return self.state_dir / "quarantine" / REF

    def collect(self, until: Callable[[Image], bool] | None = None) -> Image:
        """Let the head fetch until the image has come, has failed for good, or is as wanted."""
        return asyncio.run(self._collect(until or _settled))

    async def _collect(self, until: Callable[[Image], bool]) -> Image:
        task = asyncio.create_task(self.head.catalogue.collector.run())
        try:
            async with asyncio.timeout(WAIT_S):
                while not until(row := await asyncio.to_thread(self.row)):
                    if task.done():
                        task.result()
                    # There is no event for a row: it is looked at.
                    await asyncio.sleep(0.02)
                    self.head.catalogue.collector.wake()
                return row
        finally:
            task.cancel()
            await asyncio.gather(task, return_exceptions=True)


def _settled(row: Image) -> bool:
    return row.state != "expected" or ("again_at" not in row.fault and bool(row.fault))


@dataclass
class Shelf:
    """An image on the server: ranges, ETag, and faults by the number of the request."""

    content: bytes
    etag: str = ""
    ranges: bool = True
    cut_after: list[int] = field(default_factory=list)
    auth: str = ""
    asked: list[str] = field(default_factory=list)

    def __call__(self, request: Request) -> Iterator[bytes]:
        """Answer; where ``cut_after`` is not used up, the connection ends after so many bytes."""
        wanted = request.headers.get("range", "")
        self.asked.append(wanted)
        if self.auth and request.credentials != self.auth:
            yield head(401, ("Content-Length", "0"))
            return
        etag = self.etag or f'"{hashlib.sha256(self.content).hexdigest()[:16]}"'
        start = 0
        if wanted and self.ranges and request.headers.get("if-range", etag) == etag:
            start = int(wanted.removeprefix("bytes=").removesuffix("-"))
        body = self.content[start:]
        headers = [("ETag", etag), ("Content-Length", str(len(body)))]
        if start:
            last = len(self.content) - 1
            headers.append(("Content-Range", f"bytes {start}-{last}/{len(self.content)}"))
        yield head(206 if start else 200, *headers)
        yield body[: self.cut_after.pop(0)] if self.cut_after else body


def audit_details(site: Site, action: str) -> list[dict[str, Any]]:
    """The details of all audit lines of an action."""
    from distrib.db.audit import newest

    with site.head.database.reading() as session:
        rows: Iterable[Any] = newest(session, limit=100)
        return [json.loads(json.dumps(row.detail)) for row in rows if row.action == action]
