"""What the stories are told with: endorsers, images, and a head over a directory."""

from __future__ import annotations

import asyncio
import contextlib
import hashlib
import json
import ssl
import threading
from collections.abc import AsyncIterator, Iterator
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import httpx
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

from distrib.api.app import create_app
from distrib.api.bearer import issue_token
from distrib.api.server import ApiSettings, serving
from distrib.api.services import Document, Services
from distrib.catalogue.catalogue import Catalogue
from distrib.catalogue.identity import SiteIdentity
from distrib.catalogue.intake_settings import IntakeSettings
from distrib.catalogue.proposal_settings import ProposalSettings
from distrib.db.audit import newest
from distrib.db.models import Node, Role
from distrib.db.schema import upgrade
from distrib.db.session import Database, sqlite_url
from distrib.errors import NotFound
from distrib.events.settings import HandlerSettings
from distrib.rollout.wanting import Wish
from distrib.trust.directory import load_trust_directory
from distrib.trust.names import slash_form
from distrib.trust.signature import sign_smime
from distrib.trust.sitelist import SiteList, verify_site_list
from distrib.trust.testpki import Demo, Issued

SITE_LIST = "1f8b6e0c-6b1e-4c6a-9d6e-2f0f4c1d9a10"
LIST = "0d4b3b8e-54f0-4a53-8a6e-0a4f1a6a2c01"
WORKER = "7cb7a2d5-0f0e-4f43-9a11-3a9f5e0f6c11"


@dataclass
class TickingClock:
    """The real time, plus what a story adds."""

    ahead: timedelta = timedelta()

    def __call__(self) -> datetime:
        return datetime.now(UTC) + self.ahead


@dataclass
class Endorser:
    """An experiment that signs lists of images."""

    issued: Issued
    identifier: str = LIST

    @property
    def dn(self) -> str:
        return slash_form(self.issued.certificate.subject)

    @property
    def ca(self) -> str:
        return slash_form(self.issued.certificate.issuer)

    def sign(
        self,
        *images: dict[str, Any],
        version: str = "1.0.0",
        now: datetime | None = None,
        lifetime: timedelta = timedelta(days=28),
    ) -> bytes:
        created = (now or datetime.now(UTC)) - timedelta(minutes=1)
        document = {
            "hv:imagelist": {
                "dc:identifier": self.identifier,
                "dc:date:created": created.strftime("%Y-%m-%dT%H:%M:%SZ"),
                "dc:date:expires": (created + lifetime).strftime("%Y-%m-%dT%H:%M:%SZ"),
                "dc:title": "Experiment images",
                "hv:version": version,
                "hv:endorser": {"hv:x509": {"hv:dn": self.dn, "hv:ca": self.ca}},
                "hv:images": [{"hv:image": image} for image in images],
            }
        }
        return sign_smime(json.dumps(document).encode(), self.issued.certificate, self.issued.key)


def entry(
    content: bytes,
    *,
    identifier: str = WORKER,
    title: str = "worker",
    version: str = "1.0.0",
    **more: Any,
) -> dict[str, Any]:
    """The entry of an image in a list."""
    return {
        "dc:identifier": identifier,
        "dc:title": title,
        "hv:version": version,
        "hv:uri": "https://images.example.org/worker.raw",
        "hv:size": len(content),
        "sl:checksum:sha512": hashlib.sha512(content).hexdigest(),
    } | more


def image_bytes(seed: int = 0, size_bytes: int = 300_000) -> bytes:
    """Bytes that look like nothing else."""
    return hashlib.shake_256(f"image {seed}".encode()).digest(size_bytes)


class Uses:
    """Stands in for the ending of uses and for pre-staging."""

    def __init__(self) -> None:
        self.ended: list[str] = []

    async def want(self, wish: Wish) -> Document:
        return {"image": wish.image, "job": wish.job, "state": "waits"}

    async def wants(self) -> list[Document]:
        return []

    async def done_wanting(self, image: str, job: str) -> int:
        return 1

    async def end_uses(
        self, identifier: str, version: str, *, reason: str, actor: str
    ) -> list[Document]:
        self.ended.append(f"{identifier}@{version} {reason}")
        return []


class Rollouts:
    """Stands in for the rollout service: rollouts are what a story says, step by step."""

    def __init__(self, database: Database) -> None:
        self._database = database
        self.steps: list[Document] = []
        self.requests: list[Document] = []
        self.aborted: list[str] = []
        self.uses = Uses()

    async def start(self, request: Document, actor: str) -> Document:
        self.requests.append(dict(request) | {"actor": actor})
        return self.steps[0]

    async def list(self) -> list[Document]:
        return self.steps[-1:]

    async def show(self, rollout: str) -> Document:
        if not self.steps or self.steps[0]["id"] != rollout:
            raise NotFound(f"no rollout {rollout}", hint="distrib rollout list", rollout=rollout)
        return self.steps[-1]

    async def watch(self, rollout: str) -> AsyncIterator[Document]:
        for step in self.steps:
            yield step
        if self.steps[-1]["state"] == "running":
            await asyncio.Event().wait()

    async def abort(self, rollout: str, actor: str) -> Document:
        self.aborted.append(rollout)
        return dict(self.steps[-1]) | {"state": "aborted"}

    async def swarm_view(self, infohash: str) -> Document:
        return {"infohash": infohash, "seeders": [], "nodes": [], "bad_peers": []}

    async def node_view(self, name: str) -> Document:
        return {"online": False}

    async def forget(self, name: str, actor: str) -> None:
        with self._database.transaction() as session:
            session.delete(session.get_one(Node, name))


class FarmCaps:
    """Stands in for the farm map: the caps that a story says."""

    def __init__(self) -> None:
        self.caps: Document = {}

    def view(self) -> Document:
        return {"caps": self.caps, "set_at_run_time": [], "foreign": []}


@dataclass
class Head:
    """One head: call its services directly, or its API over TLS once it serves."""

    state_dir: Path
    pki: Demo
    clock: TickingClock
    database: Database
    catalogue: Catalogue
    rollouts: Rollouts
    services: Services
    published: list[bytes]
    url: str = ""
    tokens: dict[str, str] = field(default_factory=dict)

    @property
    def ca_file(self) -> Path:
        return self.pki.site.directory / "ca.pem"

    def token(self, role: Role = Role.ADMIN, *, lifetime: timedelta | None = None) -> str:
        """A token of that role, made once."""
        name = f"{role}-{lifetime}"
        if name not in self.tokens:
            now = self.clock()
            with self.database.transaction() as session:
                self.tokens[name] = issue_token(
                    session,
                    name=str(role) if lifetime is None else name.replace(" ", "").replace(",", ""),
                    role=role,
                    now=now,
                    actor="test",
                    expires_at=now + lifetime if lifetime else None,
                    replace=True,
                ).secret
        return self.tokens[name]

    @contextlib.contextmanager
    def http(self, token: str | None = None) -> Iterator[httpx.Client]:
        """An HTTP client of the API; by default an admin's."""
        headers = {"Authorization": f"Bearer {token or self.token()}"}
        tls = ssl.create_default_context(cafile=str(self.ca_file))
        with httpx.Client(base_url=f"{self.url}/api/v1", headers=headers, verify=tls) as client:
            yield client

    def actions(self) -> list[str]:
        """The audit log, oldest first."""
        with self.database.reading() as session:
            return [row.action for row in reversed(newest(session, limit=1000))]

    def site_list(self) -> SiteList:
        """The current site list, verified as a node verifies it."""
        message = self.catalogue.publisher.current()
        assert message is not None
        trust = load_trust_directory(self.pki.site.trust_directory)
        return verify_site_list(message, trust=trust, now=self.clock()).require()


def open_head(
    state_dir: Path,
    pki: Demo,
    orders_key: Ed25519PrivateKey,
    *,
    url: str | None = None,
    intake: IntakeSettings | None = None,
    proposals: ProposalSettings | None = None,
) -> Head:
    """A head over a state directory, new or not; ``url`` of its database, by default SQLite's."""
    state_dir.mkdir(exist_ok=True)
    clock = TickingClock()
    database = Database(url or sqlite_url(state_dir / "distrib.db"))
    upgrade(database)
    certs = pki.site.directory / "certs"
    identity = SiteIdentity.load(
        site="Example Site",
        identifier=SITE_LIST,
        url="https://head.example.org:8443/api/v1/site-list",
        certificate=certs / "catalogue.pem",
        key=certs / "catalogue.key",
        controller_keys=(orders_key.public_key(),),
    )
    published: list[bytes] = []
    catalogue = Catalogue.open(
        database=database,
        state_dir=state_dir,
        endorser_trust=pki.experiment.trust_directory,
        identity=identity,
        site_trust=lambda: load_trust_directory(pki.site.trust_directory),
        clock=clock,
        on_published=published.append,
        intake=intake,
        proposals=proposals,
    )
    rollouts = Rollouts(database)
    services = Services(
        database=database,
        catalogue=catalogue,
        rollouts=rollouts,
        farm=FarmCaps(),
        clock=clock,
        handlers=(HandlerSettings(name="glance", command="true"),),
    )
    return Head(state_dir, pki, clock, database, catalogue, rollouts, services, published)


@contextlib.contextmanager
def serve(head: Head) -> Iterator[None]:
    """Run the API in a thread of its own while the block runs."""
    certs = head.pki.site.directory / "certs"
    settings = ApiSettings(
        address="127.0.0.1", port=0, cert=certs / "server.pem", key=certs / "server.key"
    )
    up, loops = threading.Event(), []
    done = asyncio.Event()

    async def run() -> None:
        async with serving(create_app(head.services), settings) as port:
            head.url = f"https://localhost:{port}"
            loops.append(asyncio.get_running_loop())
            up.set()
            await done.wait()

    thread = threading.Thread(target=lambda: asyncio.run(run()), name="api")
    thread.start()
    assert up.wait(10)
    try:
        yield
    finally:
        loops[0].call_soon_threadsafe(done.set)
        thread.join(15)
        assert not thread.is_alive()
