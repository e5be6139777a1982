"""A mounted path and HTTPS keep the contract of sources; what a web seed gives, and to whom."""

from __future__ import annotations

import asyncio
import shutil
import socket
import ssl
from collections.abc import AsyncIterator, Collection
from contextlib import AbstractAsyncContextManager, asynccontextmanager
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import httpx
import pytest
from structlog.testing import capture_logs

from agent.cache.file import FileStore
from agent.pull.further import Means, Pulled
from agent.pull.ranges import HttpMaker, MountedImage, PathMaker, Ranges
from agent.pull.source import Source
from distrib.bus import certificates
from distrib.bus.certificates import SiteCertificates
from distrib.bus.mqtt import BusSettings
from distrib.errors import DigestMismatch, NetworkError
from distrib.swarm import TORRENT_FILE
from distrib.swarm.transfer import Transfer
from distrib.webseed import CERTIFICATE, RANGE_MAX_BYTES, WebSeed, WebSeedSettings, serving_web
from tests.contracts.test_source import (
    SourceFor,
    test_it_brings_every_piece,
    test_it_ends_when_another_source_brought_the_rest,
    test_it_lets_go_when_it_is_cancelled,
)
from tests.delta.node import site_image
from tests.farm.process import command
from tests.pull.conftest import IMAGE_BYTES, NODE, Published, published, session

__all__ = [
    "published",
    "test_it_brings_every_piece",
    "test_it_ends_when_another_source_brought_the_rest",
    "test_it_lets_go_when_it_is_cancelled",
]


@dataclass
class Serving:
    """What a seeder says of itself."""

    serves: Collection[str]
    farm: tuple[str, ...] = ("127.0.0.1",)

    def admits(self, address: str) -> bool:
        return address in self.farm


@pytest.fixture(scope="module")
def pki(tmp_path_factory: pytest.TempPathFactory) -> Path:
    directory = tmp_path_factory.mktemp("pki")
    command(["distrib", "testpki", "init", str(directory), "--node=wn1"])
    return directory / "site"


@pytest.fixture
def store(tmp_path: Path, published: Published) -> Path:
    """A head's store with the image."""
    directory = tmp_path / "images" / published.info.infohash
    directory.mkdir(parents=True)
    shutil.copy(published.directory / "image.raw", directory)
    (directory / TORRENT_FILE).write_bytes(published.torrent)
    return directory.parent


def bus(pki: Path, name: str) -> BusSettings:
    certificate = pki / "certs" / name
    return BusSettings(
        ca=pki / "ca.pem", cert=Path(f"{certificate}.pem"), key=Path(f"{certificate}.key")
    )


@asynccontextmanager
async def web_seed(
    store: Path, pki: Path, *, serves: Collection[str], name: str = "seeder", **farm: Any
) -> AsyncIterator[str]:
    """Where the images are, as nodes are told it."""
    with socket.create_server(("127.0.0.1", 0)) as probe:
        port = probe.getsockname()[1]
    settings = WebSeedSettings(port=port, address="127.0.0.1")
    seeder = Serving(serves, **farm)
    trust = pki / "trust"
    async with serving_web(settings, bus(pki, name), store, seeder, ca_directory=trust):
        yield f"https://127.0.0.1:{port}/images"


def pulled(published: Published, *web_seeds: str) -> Pulled:
    return Pulled(
        site_image(published.torrent, published.data, "1"),
        published.info,
        published.raw_info,
        means=lambda: Means(web_seeds=web_seeds),
    )


@asynccontextmanager
async def path(store: Path, pki: Path, published: Published, _: Transfer) -> AsyncIterator[Source]:
    source = PathMaker((store / "not-mounted", store)).make(pulled(published))
    assert source is not None
    yield source


def maker_of(pki: Path) -> HttpMaker:
    own = bus(pki, "wn1")
    return HttpMaker(ca=own.ca, cert=own.cert, key=own.key, ca_directory=pki / "trust")


@asynccontextmanager
async def http(store: Path, pki: Path, published: Published, _: Transfer) -> AsyncIterator[Source]:
    async with web_seed(store, pki, serves=[published.info.infohash]) as url:
        where = f"{url}/{published.info.infohash}/image.raw"
        maker = maker_of(pki)
        source = maker.make(pulled(published, where))
        assert source is not None
        yield source
        await maker.close()


@pytest.fixture(params=[path, http], ids=lambda maker: maker.__name__)
def source_for(request: pytest.FixtureRequest, store: Path, pki: Path) -> SourceFor:
    made: SourceFor = partial(request.param, store, pki)
    return made


@pytest.fixture
async def transfer(tmp_path: Path, published: Published) -> AsyncIterator[Transfer]:
    """Knows the piece hashes."""
    cache = FileStore(tmp_path / "cache", 2 * IMAGE_BYTES)
    volume = cache.reserve(published.info.infohash, IMAGE_BYTES)
    async with session(NODE) as own:
        with cache.writing(volume) as target:
            opened = own.add(published.info, published.torrent, target.directory)
            yield opened
            await own.remove(opened)


async def test_other_bytes_under_the_name_are_given_up_and_nothing_of_them_is_kept(
    store: Path, published: Published, transfer: Transfer
) -> None:
    directory = store / published.info.infohash
    (directory / "image.raw").write_bytes(bytes(IMAGE_BYTES))
    with pytest.raises(DigestMismatch, match="failed their hash"):
        async with asyncio.timeout(30):
            await Ranges("path", MountedImage(directory)).bring(transfer)
    assert transfer.done_bytes == 0


async def test_what_another_source_brought_meanwhile_is_not_read(
    store: Path, published: Published, transfer: Transfer
) -> None:
    image = MountedImage(store / published.info.infohash)
    asked = []

    class BesideAnother:
        where, torrent = image.where, image.torrent

        async def read(self, offset: int, size: int) -> bytes:
            asked.append(offset)
            for index in transfer.missing()[1:]:
                at = index * transfer.piece_bytes
                rest = min(transfer.piece_bytes, transfer.size_bytes - at)
                assert await transfer.offer(index, await image.read(at, rest))
            return await image.read(offset, size)

    async with asyncio.timeout(30):
        await Ranges("path", BesideAnother()).bring(transfer)
    assert asked == [0]


def as_node(pki: Path, name: str | None) -> AbstractAsyncContextManager[httpx.AsyncClient]:
    context = ssl.create_default_context(cafile=str(pki / "ca.pem"))
    context.check_hostname = False
    if name is not None:
        own = bus(pki, name)
        context.load_cert_chain(own.cert, own.key)
    return httpx.AsyncClient(verify=context, trust_env=False)


async def test_a_web_seed_answers_to_bounded_ranges_of_what_is_served_and_to_nothing_else(
    store: Path, pki: Path, published: Published
) -> None:
    infohash = published.info.infohash
    (store / ("0" * 64)).mkdir()
    (store / ("0" * 64) / "image.raw").write_bytes(b"denied")
    async with web_seed(store, pki, serves=[infohash]) as url, as_node(pki, "wn1") as client:

        async def ask(where: str, asked: str = "bytes=0-99") -> tuple[int, bytes]:
            answer = await client.get(f"{url}/{where}", headers={"Range": asked})
            return answer.status_code, answer.content

        image = f"{infohash}/image.raw"
        assert await ask(image, "bytes=100-199") == (206, published.data[100:200])
        for bad in ("bytes=5-4", f"bytes=0-{RANGE_MAX_BYTES}", "bytes=-5", "bytes=0-1,3-4", "x"):
            assert (await ask(image, bad))[0] == 416, bad
        for gone in (f"{'0' * 64}/image.raw", f"{infohash}/../up.toml", "%2e%2e/x", infohash):
            assert (await ask(gone))[0] == 404, gone


async def test_a_web_seed_is_for_certificates_of_the_site(
    store: Path, pki: Path, published: Published
) -> None:
    infohash = published.info.infohash
    async with web_seed(store, pki, serves=[infohash]) as url, as_node(pki, None) as nobody:
        with pytest.raises((httpx.HTTPError, NetworkError)):
            await nobody.get(f"{url}/{infohash}/image.raw", headers={"Range": "bytes=0-9"})


async def asked_for(maker: HttpMaker, url: str, published: Published, transfer: Transfer) -> None:
    source = maker.make(pulled(published, f"{url}/{published.info.infohash}/image.raw"))
    assert source is not None
    try:
        async with asyncio.timeout(30):
            await source.bring(transfer)
    finally:
        await maker.close()


async def test_a_revoked_certificate_is_refused_on_a_connection_that_stands(
    store: Path, tmp_path: Path, published: Published, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(certificates, "LOOK_S", 0.0)
    command(["distrib", "testpki", "init", str(tmp_path / "pki"), "--node=wn1", "--node=wn2"])
    own = tmp_path / "pki" / "site"
    infohash = published.info.infohash
    part = {"Range": "bytes=0-9"}
    with capture_logs() as said:
        async with web_seed(store, own, serves=[infohash]) as url:
            image = f"{url}/{infohash}/image.raw"
            async with as_node(own, "wn1") as one, as_node(own, "wn2") as two:
                assert (await one.get(image, headers=part)).status_code == 206
                command(["distrib", "testpki", "revoke", str(own), "wn1"])
                told = [(await one.get(image, headers=part)).status_code for _ in range(3)]
                assert told == [403, 403, 403]
                assert (await two.get(image, headers=part)).status_code == 206
    (line,) = [one for one in said if one["event"] == "client-refused"]
    assert line["certificate"] == "wn1"
    assert "was revoked at" in line["why"]


async def test_who_is_not_of_the_inventory_is_told_so(
    store: Path, pki: Path, published: Published, transfer: Transfer
) -> None:
    with capture_logs() as said:
        async with web_seed(store, pki, serves=[published.info.infohash], farm=()) as url:
            with pytest.raises(NetworkError, match="HTTP 403"):
                await asked_for(maker_of(pki), url, published, transfer)
    (line,) = [one for one in said if one["event"] == "client-refused"]
    assert (line["certificate"], line["address"]) == ("wn1", "127.0.0.1")
    assert "inventory" in line["why"]


async def test_somebody_else_of_the_site_in_a_seeders_place_is_not_asked(
    store: Path, pki: Path, published: Published, transfer: Transfer
) -> None:
    infohash = published.info.infohash
    async with web_seed(store, pki, serves=[infohash], name="server") as url:
        with pytest.raises(NetworkError, match="no seeder"):
            await asked_for(maker_of(pki), url, published, transfer)
    assert transfer.done_bytes == 0


async def test_a_revoked_seeder_is_not_asked(
    store: Path, tmp_path: Path, published: Published, transfer: Transfer
) -> None:
    command(["distrib", "testpki", "init", str(tmp_path / "pki"), "--node=wn1"])
    own = tmp_path / "pki" / "site"
    command(["distrib", "testpki", "revoke", str(own), "seeder"])
    async with web_seed(store, own, serves=[published.info.infohash]) as url:
        with pytest.raises(NetworkError, match="was revoked at"):
            await asked_for(maker_of(own), url, published, transfer)
    assert transfer.done_bytes == 0


async def test_a_client_that_takes_nothing_neither_fills_the_memory_nor_keeps_others_out(
    tmp_path: Path, pki: Path
) -> None:
    infohash = "0" * 64
    (tmp_path / infohash).mkdir()
    (tmp_path / infohash / "image.raw").write_bytes(bytes(RANGE_MAX_BYTES))
    believed = SiteCertificates(pki / "ca.pem", pki / "trust")
    serving = Serving([infohash])
    app = WebSeed(tmp_path, serving, certificates=believed, requests=1, patience_s=0.2)
    held, stuck = 0, asyncio.Event()

    async def takes_nothing(message: dict[str, object]) -> None:
        nonlocal held
        part = message.get("body", b"")
        assert isinstance(part, bytes)
        if held:
            stuck.set()
            await asyncio.Event().wait()
        held += len(part)

    said: list[object] = []

    async def reads(message: dict[str, object]) -> None:
        said.append(message.get("status"))

    certificate = (pki / "certs" / "wn1.pem").read_text()
    scope = {
        CERTIFICATE: ssl.PEM_cert_to_DER_cert(certificate),
        "client": ("127.0.0.1", 1),
        "type": "http",
        "method": "GET",
        "path": f"/images/{infohash}/image.raw",
        "headers": [(b"range", b"bytes=0-%d" % (RANGE_MAX_BYTES - 1))],
    }
    crowd = WebSeed(tmp_path, serving, certificates=believed, requests=4, patience_s=0.2)
    first = [asyncio.create_task(crowd(scope, None, takes_nothing)) for _ in range(2)]
    await stuck.wait()
    another = (pki / "certs" / "seeder.pem").read_text()
    for who, status in ((certificate, 503), (another, 206)):
        said.clear()
        await crowd(scope | {CERTIFICATE: ssl.PEM_cert_to_DER_cert(who)}, None, reads)
        assert said[0] == status
    await asyncio.gather(*first)
    held = 0
    stuck.clear()
    said.clear()

    slow = asyncio.create_task(app(scope, None, takes_nothing))
    await stuck.wait()
    assert held < RANGE_MAX_BYTES / 8
    await app(scope, None, reads)
    assert said[0] == 503
    await slow
    await app(scope, None, reads)
    assert 206 in said
