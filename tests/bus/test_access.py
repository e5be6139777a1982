"""Who may write and read what, decided by the certificate alone."""

from __future__ import annotations

import asyncio
import ssl
from typing import Any

import pytest

from distrib.bus.broker import Broker
from distrib.trust.testpki import Demo

LIMIT_S = 10.0

WRITES = [
    ("wn001", "node/wn001/presence", True),
    ("wn001", "node/wn001/report", True),
    ("wn001", "node/wn001/request", True),
    ("wn001", "node/wn001/event", True),
    ("wn001", "node/wn002/report", False),
    ("wn001", "node/wn002/presence", False),
    ("wn001", "node/wn001/desired", False),
    ("wn001", "node/wn001/orders", False),
    ("wn001", "node/wn002/desired", False),
    ("wn001", "site-list", False),
    ("wn001", "crl", False),
    ("wn001", f"torrent/{'ab' * 32}", False),
    ("wn001", "seeder/seeder/presence", False),
    ("wn001", "seeder/wn001/presence", False),
    ("wn001", "controller/sync", False),
    ("seeder", "seeder/seeder/presence", True),
    ("seeder", f"torrent/{'ab' * 32}", True),
    ("seeder", "site-list", False),
    ("seeder", "node/wn001/desired", False),
    ("seeder", "node/wn001/report", False),
    ("controller", "site-list", True),
    ("controller", "crl", True),
    ("controller", "node/wn001/desired", True),
    ("controller", "node/wn001/orders", True),
    ("operator", "site-list", False),
    ("operator", "node/wn001/desired", False),
]


@pytest.mark.parametrize("case", WRITES, ids=str)
async def test_a_client_writes_only_what_is_its_own(
    broker: Broker, make_bus: Any, inbox: Any, case: tuple[str, str, bool]
) -> None:
    name, leaf, allowed = case
    heard, watcher, writer = inbox(), make_bus("controller"), make_bus(name)
    topic = f"distrib/v1/{leaf}"
    if name == "controller":
        writer = watcher
    watcher.subscribe("distrib/v1/#", heard)
    async with watcher.running():
        async with asyncio.timeout(LIMIT_S):
            await watcher.connected.wait()
        if writer is watcher:
            writer.send(topic, b"x")
        else:
            async with writer.running(), asyncio.timeout(LIMIT_S):
                await writer.connected.wait()
                writer.send(topic, b"x")
        # What the controller says now arrives behind whatever got through.
        watcher.send("distrib/v1/controller/sync", b"end")
        await heard.until(lambda got: any(payload == b"end" for _, payload in got))
    assert ((topic, b"x") in heard.received) is allowed


READS = [
    ("wn001", "node/wn001/desired", True),
    ("wn001", "node/wn001/orders", True),
    ("wn001", "site-list", True),
    ("wn001", "crl", True),
    ("wn001", "node/wn002/desired", False),
    ("wn001", "node/wn002/orders", False),
    ("seeder", "site-list", True),
    ("seeder", "node/wn001/desired", False),
]


@pytest.mark.parametrize("case", READS, ids=str)
async def test_a_client_reads_only_what_is_its_own(
    broker: Broker, make_bus: Any, inbox: Any, case: tuple[str, str, bool]
) -> None:
    name, leaf, allowed = case
    heard, writer, reader = inbox(), make_bus("controller"), make_bus(name)
    reader.subscribe("distrib/v1/#", heard)
    async with writer.running(), reader.running():
        async with asyncio.timeout(LIMIT_S):
            await asyncio.gather(writer.connected.wait(), reader.connected.wait())
        writer.send(f"distrib/v1/{leaf}", b"x")
        writer.send("distrib/v1/crl", b"end")
        await heard.until(lambda got: any(payload == b"end" for _, payload in got))
    assert ((f"distrib/v1/{leaf}", b"x") in heard.received) is allowed


async def test_retained_desired_of_others_is_not_read_either(
    broker: Broker, make_bus: Any, inbox: Any
) -> None:
    heard, writer, reader = inbox(), make_bus("controller"), make_bus("wn001")
    for name in ("wn001", "wn002"):
        writer.retain(f"distrib/v1/node/{name}/desired", name.encode())
    writer.retain("distrib/v1/site-list", b"list")
    async with writer.running():
        async with asyncio.timeout(LIMIT_S):
            await writer.connected.wait()
    reader.subscribe("distrib/v1/#", heard)
    async with reader.running():
        await heard.until(lambda got: len(got) >= 2)
    assert {payload for _, payload in heard.received} == {b"wn001", b"list"}


@pytest.mark.parametrize("certificate", ["none", "other-ca"])
async def test_without_a_certificate_of_the_site_there_is_no_connection(
    broker: Broker, pki: Demo, port: int, certificate: str
) -> None:
    context = ssl.create_default_context(cafile=str(pki.site.directory / "ca.pem"))
    if certificate == "other-ca":
        foreign = pki.experiment.directory / "certs" / "Endorser"
        context.load_cert_chain(f"{foreign}.pem", f"{foreign}.key")
    connect = bytes.fromhex("100d00044d5154540502003c000000")
    with pytest.raises((ssl.SSLError, ConnectionError, asyncio.IncompleteReadError)):
        async with asyncio.timeout(LIMIT_S):
            reader, writer = await asyncio.open_connection("127.0.0.1", port, ssl=context)
            try:
                writer.write(connect)
                await reader.readexactly(1)
            finally:
                writer.close()


async def test_a_client_id_is_not_a_right(broker: Broker, make_bus: Any, inbox: Any) -> None:
    """A node that calls itself ``controller`` neither becomes it nor pushes it off."""
    heard, controller, node = inbox(), make_bus("controller"), make_bus("wn001")
    node._client_id = "controller"
    controller.subscribe("distrib/v1/#", heard)
    async with controller.running(), node.running():
        async with asyncio.timeout(LIMIT_S):
            await asyncio.gather(controller.connected.wait(), node.connected.wait())
        node.send("distrib/v1/node/wn001/event", b"x")
        await heard.one()
        assert controller.connected.is_set()


async def test_an_oversized_message_does_not_pass(
    broker: Broker, make_bus: Any, inbox: Any
) -> None:
    heard, controller, node = inbox(), make_bus("controller"), make_bus("wn001")
    controller.subscribe("distrib/v1/node/+/event", heard)
    async with controller.running(), node.running():
        async with asyncio.timeout(LIMIT_S):
            await asyncio.gather(controller.connected.wait(), node.connected.wait())
        node.send("distrib/v1/node/wn001/event", b"x" * ((1 << 20) + 1))
        node.send("distrib/v1/node/wn001/event", b"small")
        assert (await heard.one())[1] == b"small"
