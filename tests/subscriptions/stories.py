"""What the stories are told with: heads of several sites, and one that follows a list."""

from __future__ import annotations

import uuid
from collections.abc import AsyncIterator
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from sqlalchemy import select

from distrib.api.services import Services
from distrib.catalogue.catalogue import Catalogue
from distrib.catalogue.fetching import Fetcher
from distrib.catalogue.identity import SiteIdentity
from distrib.catalogue.subscriptions import Wanted
from distrib.db.intake_models import Subscription, Take
from distrib.db.models import Image
from distrib.db.schema import upgrade
from distrib.db.session import Database, sqlite_url
from distrib.trust.testpki import Authority, Demo
from tests.head.stories import Endorser, Head, Rollouts, TickingClock
from tests.subscriptions.server import ListServer

FETCH_S = 30.0


def open_site(
    state_dir: Path,
    authority: Authority,
    endorser_trust: Path,
    orders_key: Ed25519PrivateKey,
    *,
    fetcher: Fetcher | None = None,
    url: str | None = None,
) -> Head:
    """A head of the site that ``authority`` is the CA of; ``url`` of its database, else SQLite."""
    state_dir.mkdir(exist_ok=True)
    clock = TickingClock()
    database = Database(url or sqlite_url(state_dir / "distrib.db"))
    upgrade(database)
    certs = authority.directory / "certs"
    identity = SiteIdentity.load(
        site=state_dir.name,
        identifier=str(uuid.uuid5(uuid.NAMESPACE_URL, state_dir.name)),
        url="https://head.example.org:8443/api/v1/site-list",
        certificate=certs / "catalogue.pem",
        key=certs / "catalogue.key",
        controller_keys=(orders_key.public_key(),),
    )
    published: list[bytes] = []
    catalogue = Catalogue.open(
        database=database,
        state_dir=state_dir,
        endorser_trust=endorser_trust,
        identity=identity,
        clock=clock,
        on_published=published.append,
        fetcher=fetcher or Fetcher(limit_s=FETCH_S),
    )
    services = Services(
        database=database,
        catalogue=catalogue,
        rollouts=Rollouts(database),
        farm=None,
        clock=clock,
    )
    demo = Demo(site=authority, experiment=authority, issued=())
    return Head(
        state_dir, demo, clock, database, catalogue, Rollouts(database), services, published
    )


@dataclass
class Follower:
    """A head, and the list that it follows."""

    head: Head
    server: ListServer
    endorser: Endorser
    row: Subscription | None = None
    versions: list[str] = field(default_factory=list)

    @property
    def id(self) -> int:
        assert self.row is not None
        return self.row.id

    def wanted(self, **more: Any) -> Wanted:
        """The subscription to the server's list."""
        plain = Wanted(
            url=self.server.url,
            dn=self.endorser.dn,
            ca=self.endorser.ca,
            take=Take.NONE,
            ca_file=self.server.ca_file,
        )
        return replace(plain, **more)

    def subscribe(self, **more: Any) -> Subscription:
        """Follow the list."""
        self.row = self.head.catalogue.subscriptions.add(self.wanted(**more), actor="test")
        return self.row

    async def poll(self) -> Subscription:
        """Poll, as on demand."""
        self.row = await self.head.catalogue.schedule.poll(self.id, actor="test")
        return self.row

    async def follows(self, *images: dict[str, Any], version: str, **more: Any) -> Subscription:
        """The endorser signs a list of that version, and it is polled."""
        self.server.serve(self.endorser.sign(*images, version=version, **more))
        return await self.poll()

    def states(self) -> dict[str, str]:
        """Image versions by their last four digits and version, with their states."""
        with self.head.database.reading() as session:
            rows = session.scalars(select(Image)).all()
        return {f"{row.identifier[-4:]}@{row.version}": row.state for row in rows}

    def image(self, identifier: str, version: str = "1.0.0") -> Image:
        """One row."""
        with self.head.database.reading() as session:
            return session.get_one(Image, (identifier, version))

    async def approve(self, identifier: str, content: bytes, version: str = "1.0.0") -> Image:
        """The file comes in, and the site says yes."""

        async def chunks() -> AsyncIterator[bytes]:
            yield content

        row = self.image(identifier, version)
        if row.state == "announced":
            self.head.catalogue.taking.take(identifier, version, actor="test")
        await self.head.catalogue.quarantine.receive(identifier, version, chunks(), actor="test")
        approved = await self.head.catalogue.approval.approve(identifier, version, actor="test")
        self.head.catalogue.publisher.publish_if_due()
        return approved


def codes(row: Subscription) -> list[str]:
    """The reasons of the last poll."""
    return [reason["code"] for reason in row.reasons["reasons"]]


def remarks(row: Subscription) -> list[tuple[str, str]]:
    """What was passed over by the last poll: image and code."""
    return [(remark["image"], remark["code"]) for remark in row.reasons["remarks"]]
