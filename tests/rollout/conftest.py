"""A site for rollout stories: a real broker and database, the rollout service, named fake nodes.

A FakeNode speaks on the bus as an agent does, and holds what a story says; no bytes are moved.
"""

from __future__ import annotations

import asyncio
import socket
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import pytest
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

from distrib.bus.broker import Broker, BrokerSettings
from distrib.bus.messages import (
    Desired,
    DesiredImage,
    ImageReport,
    Orders,
    Presence,
    Report,
    SeederPresence,
    State,
)
from distrib.bus.mqtt import Bus, BusSettings, Publication
from distrib.bus.schema import decode, encode
from distrib.db import models
from distrib.db.schema import upgrade
from distrib.db.session import Database, sqlite_url
from distrib.rollout.service import Rollouts
from distrib.trust.envelope import key_id, open_envelope
from distrib.trust.testpki import Demo, create_demo
from tests.head.postgresql import Cluster, private_cluster

LIMIT_S = 15.0
NODES = ("wn001", "wn002", "wn003", "wn004")
WORKER = "7cb7a2d5-0f0e-4f43-9a11-3a9f5e0f6c11"
SIZE = 1 << 20
INFOHASH = {"1.0.0": "a1" * 32, "2.0.0": "b2" * 32}

#: Stories that are told on PostgreSQL as well: those whose state has to be in the database.
ON_BOTH = {
    "test_an_offline_node_catches_up_and_a_new_one_is_warmed",
    "test_abort_stops_pulls_and_the_version_before_is_active_again",
    "test_a_restarted_controller_goes_on_and_says_nothing_twice",
    "test_a_forgotten_node_leaves_nothing_behind",
    "test_a_revoked_image_is_not_wanted_any_more",
}


def pytest_generate_tests(metafunc: pytest.Metafunc) -> None:
    if metafunc.function.__name__ in ON_BOTH:
        metafunc.parametrize("database_url", ["sqlite", "postgresql"], indirect=True)


@pytest.fixture(scope="session")
def cluster() -> Iterator[Cluster]:
    """Started for the first story that is told on PostgreSQL."""
    with private_cluster() as running:
        yield running


@pytest.fixture
def database_url(request: pytest.FixtureRequest, tmp_path: Path) -> str:
    if getattr(request, "param", "sqlite") == "sqlite":
        return sqlite_url(tmp_path / "distrib.db")
    running: Cluster = request.getfixturevalue("cluster")
    return running.database()


@pytest.fixture(scope="session")
def pki(tmp_path_factory: pytest.TempPathFactory) -> Demo:
    return create_demo(
        tmp_path_factory.mktemp("pki"), site="Example Site", nodes=NODES, now=datetime.now(UTC)
    )


def now() -> datetime:
    return datetime.now(UTC)


@dataclass
class FakeNode:
    """A node on the bus that does as a story says."""

    name: str
    settings: BusSettings
    key: Ed25519PrivateKey
    port: int = 6881
    held: dict[str, ImageReport] = field(default_factory=dict)
    desired: Desired | None = None
    orders: list[Orders] = field(default_factory=list)
    generations: list[int] = field(default_factory=list)
    reports_generation: bool = True
    _news: asyncio.Event = field(default_factory=asyncio.Event)
    _bus: Bus | None = None

    @property
    def bus(self) -> Bus:
        assert self._bus is not None
        return self._bus

    @asynccontextmanager
    async def online(self) -> AsyncIterator[FakeNode]:
        topic = f"distrib/v1/node/{self.name}/presence"
        gone = encode(Presence(node=self.name, online=False))
        self._bus = Bus(
            self.settings,
            client_id=self.name,
            will=Publication(topic, gone, 1, retain=True),
            on_connect=self._say_all,
        )
        for leaf in ("desired", "orders"):
            self._bus.subscribe(f"distrib/v1/node/{self.name}/{leaf}", self._on_message)
        async with self._bus.running():
            async with asyncio.timeout(LIMIT_S):
                await self._bus.connected.wait()
            try:
                yield self
            finally:
                self._bus.retain(topic, gone)

    def _say_all(self) -> None:
        presence = Presence(node=self.name, online=True, swarm_port=self.port, sent_at=now())
        self.bus.retain(f"distrib/v1/node/{self.name}/presence", encode(presence))
        self.report()

    def _on_message(self, topic: str, payload: bytes) -> None:
        if not payload:
            return
        kind = topic.rpartition("/")[2]
        public = self.key.public_key()
        opened = open_envelope(payload, kind=kind, keys={key_id(public): public}).encode()
        if kind == "orders":
            self.orders.append(decode(Orders, opened, what=topic))
        else:
            self.desired = decode(Desired, opened, what=topic)
            assert self.desired.node == self.name
            self.generations.append(self.desired.generation)
        self._news.set()

    def holds(self, version: str, state: State, **fields: Any) -> None:
        done = SIZE if state is State.READY else fields.pop("bytes_done", 0)
        self.held[version] = ImageReport(
            identifier=WORKER,
            version=version,
            infohash=INFOHASH[version],
            state=state,
            bytes_done=done,
            bytes_total=SIZE,
            since=now(),
            **fields,
        )
        self.report()

    def report(self, **changes: Any) -> None:
        seen = self.desired.generation if self.desired and self.reports_generation else 0
        report = Report(
            node=self.name,
            boot_id="b",
            sent_at=now(),
            generation=seen,
            images=tuple(self.held.values()),
        ).model_copy(update=changes)
        self.bus.retain(f"distrib/v1/node/{self.name}/report", encode(report), qos=0)

    async def told(
        self, fits: Callable[[dict[str, DesiredImage]], bool]
    ) -> dict[str, DesiredImage]:
        """The desired images by version, once they fit."""
        async with asyncio.timeout(LIMIT_S):
            while True:
                images = self.desired.images if self.desired else ()
                by_version = {image.version: image for image in images}
                if self.desired is not None and fits(by_version):
                    return by_version
                self._news.clear()
                await self._news.wait()

    async def cancelled(self) -> Orders:
        async with asyncio.timeout(LIMIT_S):
            while not self.orders:
                self._news.clear()
                await self._news.wait()
        return self.orders[0]


@dataclass
class Site:
    """Database, keys and settings of one site; services are started over it."""

    database: Database
    key: Ed25519PrivateKey
    settings: Callable[[str], BusSettings]
    broker: Broker
    nodes: dict[str, FakeNode]

    @asynccontextmanager
    async def service(self, **changes: Any) -> AsyncIterator[Rollouts]:
        """The rollout service, from its start to its end."""
        rollouts = Rollouts(
            database=self.database,
            bus=self.settings("controller"),
            orders_key=self.key,
            **changes,
        )
        async with rollouts.bus.running():
            task = asyncio.create_task(rollouts.run(), name="service")
            try:
                async with asyncio.timeout(LIMIT_S):
                    while not rollouts._loop.synced:
                        assert not task.done(), task.result()
                        await asyncio.wait({task}, timeout=0.02)
                yield rollouts
            finally:
                task.cancel()
                await asyncio.gather(task, return_exceptions=True)

    @asynccontextmanager
    async def seeder(self, *infohashes: str) -> AsyncIterator[Bus]:
        """A seeder that says that it has these."""
        bus = Bus(self.settings("seeder"), client_id="seeder")
        topic = "distrib/v1/seeder/seeder/presence"
        here = SeederPresence(
            seeder="seeder", online=True, address="192.0.2.250", port=6881, infohashes=infohashes
        )
        async with bus.running():
            bus.retain(topic, encode(here))
            try:
                yield bus
            finally:
                bus.retain(topic, encode(here.model_copy(update={"online": False})))

    def add_node(self, name: str, *, address: str, rack: str = "R1") -> None:
        with self.database.transaction() as session:
            session.add(
                models.Node(
                    name=name, address=address, rack=rack, labels={}, added_at=now(), added_by="t"
                )
            )


@pytest.fixture
async def site(tmp_path: Path, pki: Demo, database_url: str) -> AsyncIterator[Site]:
    certs = pki.site.directory / "certs"
    with socket.socket() as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    ca = pki.site.directory / "ca.pem"

    def settings(name: str) -> BusSettings:
        return BusSettings(
            port=port,
            ca=ca,
            cert=certs / f"{name}.pem",
            key=certs / f"{name}.key",
            reconnect_max_s=0.5,
        )

    broker_settings = BrokerSettings(
        port=port, ca=ca, cert=certs / "server.pem", key=certs / "server.key"
    )
    key = Ed25519PrivateKey.generate()
    database = Database(database_url)
    upgrade(database)
    broker = Broker(broker_settings, tmp_path / "broker")
    nodes = {name: FakeNode(name, settings(name), key) for name in NODES}
    made = Site(database, key, settings, broker, nodes)
    _approve(database)
    for number, name in enumerate(NODES, start=1):
        if name != "wn004":
            made.add_node(name, address=f"192.0.2.{number}")
    async with broker.running():
        yield made
    database.close()


def _approve(database: Database) -> None:
    """Two versions of one image, as the catalogue leaves them."""
    with database.transaction() as session:
        session.add(
            models.AcceptedList(
                sha512="ab" * 64,
                identifier="0d4b3b8e-54f0-4a53-8a6e-0a4f1a6a2c01",
                version="1",
                endorser_dn="/CN=e",
                endorser_ca="/CN=c",
                created=now(),
                expires=now(),
                accepted_at=now(),
                accepted_by="t",
            )
        )
        session.flush()
        for version, state in (("1.0.0", "superseded"), ("2.0.0", "approved")):
            session.add(
                models.Image(
                    identifier=WORKER,
                    version=version,
                    list_sha512="ab" * 64,
                    list_identifier="0d4b3b8e-54f0-4a53-8a6e-0a4f1a6a2c01",
                    list_version="1",
                    endorser_dn="/CN=e",
                    endorser_ca="/CN=c",
                    entry={},
                    endorsed_sha512="cd" * 64,
                    endorsed_size_bytes=SIZE,
                    state=state,
                    since=now(),
                    infohash=INFOHASH[version],
                    sha512="cd" * 64,
                    size_bytes=SIZE,
                    piece_bytes=65536,
                )
            )
        session.add(models.Alias(alias="worker", identifier=WORKER))
