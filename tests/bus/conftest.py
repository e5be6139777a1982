"""A real mosquitto over TLS, and clients with certificates of a site that lives for the session."""

from __future__ import annotations

import asyncio
import socket
from collections.abc import AsyncIterator, Callable, Iterator
from dataclasses import dataclass, field
from datetime import UTC, datetime
from pathlib import Path

import pytest

from distrib.bus.broker import Broker, BrokerSettings
from distrib.bus.mqtt import Bus, BusSettings, Publication
from distrib.trust.testpki import Demo, create_demo

LIMIT_S = 10.0


@pytest.fixture(scope="session")
def pki(tmp_path_factory: pytest.TempPathFactory) -> Demo:
    return create_demo(
        tmp_path_factory.mktemp("pki"),
        site="Example Site",
        nodes=("wn001", "wn002"),
        now=datetime.now(UTC),
    )


@pytest.fixture
def port() -> Iterator[int]:
    with socket.socket() as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        probe.bind(("127.0.0.1", 0))
        found: int = probe.getsockname()[1]
    yield found


@pytest.fixture
def broker_settings(pki: Demo, port: int) -> BrokerSettings:
    certs = pki.site.directory / "certs"
    return BrokerSettings(
        port=port,
        ca=pki.site.directory / "ca.pem",
        cert=certs / "server.pem",
        key=certs / "server.key",
    )


@pytest.fixture
async def broker(broker_settings: BrokerSettings, tmp_path: Path) -> AsyncIterator[Broker]:
    running = Broker(broker_settings, tmp_path / "broker")
    async with running.running():
        yield running


@dataclass
class Inbox:
    """What a subscription brought, in order."""

    received: list[tuple[str, bytes]] = field(default_factory=list)
    _news: asyncio.Event = field(default_factory=asyncio.Event)

    def __call__(self, topic: str, payload: bytes) -> None:
        self.received.append((topic, payload))
        self._news.set()

    async def until(self, seen: Callable[[list[tuple[str, bytes]]], bool]) -> None:
        async with asyncio.timeout(LIMIT_S):
            while not seen(self.received):
                self._news.clear()
                await self._news.wait()

    async def one(self) -> tuple[str, bytes]:
        await self.until(bool)
        return self.received[0]


MakeBus = Callable[..., Bus]


@pytest.fixture
def make_bus(pki: Demo, port: int) -> MakeBus:
    certs = pki.site.directory / "certs"

    def make(
        name: str, *, will: Publication | None = None, session_expiry_s: int = 0, **changes: object
    ) -> Bus:
        settings = BusSettings(
            port=port,
            ca=pki.site.directory / "ca.pem",
            cert=certs / f"{name}.pem",
            key=certs / f"{name}.key",
            reconnect_max_s=0.5,
        ).model_copy(update=changes)
        return Bus(settings, client_id=name, will=will, session_expiry_s=session_expiry_s)

    return make


@pytest.fixture
def inbox() -> type[Inbox]:
    return Inbox
