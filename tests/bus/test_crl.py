"""Who is revoked does not get to the broker, and is cut off if it was there."""

from __future__ import annotations

import asyncio
import ssl
from collections.abc import AsyncIterator, Callable
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import aiomqtt
import pytest
from cryptography import x509
from cryptography.hazmat.primitives.serialization import Encoding

from distrib.bus import crl
from distrib.bus.broker import Broker, BrokerSettings
from distrib.bus.crl import Change, CrlFile
from distrib.bus.mqtt import BusSettings, client_tls
from distrib.errors import ConfigInvalid
from distrib.trust.testpki import Authority, Demo, Role, create_demo

LIMIT_S = 10.0
LATER = timedelta(seconds=2)  # times in CRLs are whole seconds


@pytest.fixture
def site(tmp_path: Path) -> Demo:
    """A site whose certificates are revoked here."""
    names = ("wn001", "wn002", "wn003")
    return create_demo(tmp_path / "pki", site="Example Site", nodes=names, now=datetime.now(UTC))


@pytest.fixture
async def broker(
    site: Demo, broker_settings: BrokerSettings, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> AsyncIterator[Broker]:
    monkeypatch.setattr(crl, "POLL_S", 0.05)
    certs = site.site.directory / "certs"
    changes = {
        "ca": site.site.directory / "ca.pem",
        "cert": certs / "server.pem",
        "key": certs / "server.key",
        "crl": site.site.trust_directory,
    }
    running = Broker(broker_settings.model_copy(update=changes), tmp_path / "broker")
    async with running.running():
        yield running


def tls_of(authority: Authority, name: str, port: int) -> ssl.SSLContext:
    certificate = authority.certificate_path(name)
    settings = BusSettings(
        port=port,
        ca=authority.directory / "ca.pem",
        cert=certificate,
        key=certificate.with_suffix(".key"),
    )
    return client_tls(settings)


def client(authority: Authority, name: str, port: int) -> aiomqtt.Client:
    tls = tls_of(authority, name, port)
    return aiomqtt.Client("127.0.0.1", port=port, identifier=name, tls_context=tls, timeout=LIMIT_S)


async def connects(authority: Authority, name: str, port: int) -> bool:
    """Whether the broker takes the certificate."""
    tls = tls_of(authority, name, port)
    reader, writer = await asyncio.open_connection("127.0.0.1", port, ssl=tls)
    try:
        # With TLS 1.3 a client is told with the first thing that it reads.
        writer.write(b"\x10\x11\x00\x04MQTT\x05\x02\x00\x05\x00\x00\x04test")
        async with asyncio.timeout(LIMIT_S):
            return bool(await reader.read(1))
    except OSError:
        return False
    finally:
        writer.close()
        await asyncio.gather(writer.wait_closed(), return_exceptions=True)


@pytest.fixture
def said(broker: Broker, inbox: Any, monkeypatch: pytest.MonkeyPatch) -> Any:
    """What the broker says from here on."""
    heard = inbox()
    monkeypatch.setattr(broker.child, "_on_line", lambda line: heard(line, b""))
    return heard


def times(line: str, count: int) -> Callable[[list[tuple[str, bytes]]], bool]:
    return lambda got: sum(line in said for said, _ in got) >= count


async def test_a_revoked_node_is_cut_off_and_kept_off(
    broker: Broker, site: Demo, port: int, said: Any
) -> None:
    authority = site.site
    for starts, name in enumerate(("wn001", "wn002"), start=1):
        async with client(authority, name, port) as connected:
            node = next(one for one in site.issued if one.certificate_path.stem == name)
            authority.revoke(node.certificate, now=datetime.now(UTC))
            with pytest.raises(aiomqtt.MqttError):
                async with asyncio.timeout(LIMIT_S):
                    async for _ in connected.messages:
                        pass
        await said.until(times("running", starts))
        assert not await connects(authority, name, port)
        assert await connects(authority, "wn003", port)
    # A new certificate of the same name is another one.
    authority.issue(Role.NODE, "wn001", now=datetime.now(UTC))
    assert await connects(authority, "wn001", port)


async def test_a_crl_that_is_renewed_cuts_nobody_off(
    broker: Broker, site: Demo, port: int, said: Any
) -> None:
    async with client(site.site, "wn001", port) as connected:
        site.site.write_crl(now=datetime.now(UTC) + LATER)
        await said.until(times("Reloading", 1))
        await connected.publish("distrib/v1/node/wn001/report", b"still here", qos=1)
    assert broker.child.starts == 1
    assert await connects(site.site, "wn002", port)


def test_what_is_no_crl_is_named_and_the_old_one_stays(site: Demo, tmp_path: Path) -> None:
    authority, target = site.site, tmp_path / "crl.pem"
    followed = CrlFile(authority.crl_path, target)
    assert followed.refresh() is Change.REVOKED
    assert followed.refresh() is Change.NONE
    good = target.read_bytes()
    authority.crl_path.write_text("rubbish")
    with pytest.raises(ConfigInvalid, match=r"broker\.crl"):
        followed.refresh()
    assert target.read_bytes() == good
    authority.write_crl((), now=datetime.now(UTC) + LATER)
    assert followed.refresh() is Change.RENEWED


def test_an_expired_crl_is_told_once(site: Demo, tmp_path: Path, capsys: Any) -> None:
    authority = site.site
    authority.write_crl((), now=datetime.now(UTC) - timedelta(days=9), days=8)
    followed = CrlFile(authority.trust_directory, tmp_path / "crl.pem")
    for _ in range(2):
        followed.refresh()
    said = capsys.readouterr()
    assert (said.out + said.err).count("crl-expired") == 1


def test_a_crl_whose_entries_are_rubbish_is_named(site: Demo, tmp_path: Path) -> None:
    authority = site.site
    authority.revoke(site.issued[0].certificate, now=datetime.now(UTC))
    whole = x509.load_pem_x509_crl(authority.crl_path.read_bytes()).public_bytes(Encoding.DER)
    serial = site.issued[0].certificate.serial_number.to_bytes(20, "big")
    # The INTEGER of the entry becomes an OCTET STRING: the head of the CRL is as it was.
    entry = whole.index(serial) - 2
    authority.crl_path.write_bytes(whole[:entry] + b"\x04" + whole[entry + 1 :])
    target = tmp_path / "crl.pem"
    with pytest.raises(ConfigInvalid, match=r"broker\.crl"):
        CrlFile(authority.crl_path, target).refresh()
    assert not target.exists()
