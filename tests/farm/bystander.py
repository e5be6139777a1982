"""Somebody with a certificate who speaks on the bus: honest or not, as a story needs it."""

from __future__ import annotations

import asyncio
from pathlib import Path

from distrib.bus.mqtt import Bus, BusSettings
from tests.farm.farm import BROKER_PORT, Farm


def settings_of(farm: Farm, certificate: Path) -> BusSettings:
    """The bus as the holder of ``certificate`` (without its ending) reaches it."""
    return BusSettings(
        host=farm.head_host.address,
        port=BROKER_PORT,
        ca=farm.pki / "site" / "ca.pem",
        cert=Path(f"{certificate}.pem"),
        key=Path(f"{certificate}.key"),
    )


def retain(farm: Farm, name: str, messages: dict[str, bytes]) -> None:
    """Publish retained messages, by topic below the prefix, in the name of ``name``."""

    async def publish() -> None:
        bus = Bus(
            settings_of(farm, farm.pki / "site" / "certs" / name), client_id=f"bystander-{name}"
        )
        async with bus.running():
            async with asyncio.timeout(10):
                await bus.connected.wait()
            for topic, payload in messages.items():
                bus.retain(f"{bus.topics.prefix}/{topic}", payload)

    asyncio.run(publish())


def retained(farm: Farm, name: str, topic: str) -> bytes:
    """The retained message of a topic below the prefix, as ``name`` may read it."""

    async def read() -> bytes:
        bus = Bus(
            settings_of(farm, farm.pki / "site" / "certs" / name), client_id=f"bystander-{name}"
        )
        found: asyncio.Future[bytes] = asyncio.get_running_loop().create_future()

        def take(_topic: str, payload: bytes) -> None:
            if not found.done():
                found.set_result(payload)

        bus.subscribe(f"{bus.topics.prefix}/{topic}", take)
        async with bus.running(), asyncio.timeout(10):
            return await found

    return asyncio.run(read())
