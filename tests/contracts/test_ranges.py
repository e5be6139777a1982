"""A mounted path and HTTPS keep the contract of sources; what a web seed gives, and to whom."""

from __future__ import annotations

import asyncio
import shutil
import socket
from collections.abc import AsyncIterator, Collection
from contextlib import AbstractAsyncContextManager, asynccontextmanager
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import httpx
import pytest

from agent.cache.file import FileStore
from agent.pull.further import Means, Pulled
from agent.pull.ranges import HttpMaker, MountedImage, PathMaker, Ranges
from agent.pull.source import Source
from distrib.bus.mqtt import BusSettings
from distrib.errors import DigestMismatch, NetworkError
from distrib.swarm import TORRENT_FILE
from distrib.swarm.transfer import Transfer
from distrib.webseed import RANGE_MAX_BYTES, WebSeed, WebSeedSettings, serving_web
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
async def web_seed(store: Path, pki: Path, *, serves: Collection[str]) -> AsyncIterator[str]:
    """Where the images are, as nodes are told it."""
    with socket.create_server(("127.0.0.1", 0)) as probe:
        port = probe.getsockname()[1]
    settings = WebSeedSettings(port=port, address="127.0.0.1")
    async with serving_web(settings, bus(pki, "seeder"), store, Serving(serves)):
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


@asynccontextmanager
async def http(store: Path, pki: Path, published: Published, _: Transfer) -> AsyncIterator[Source]:
    own = bus(pki, "wn1")
    async with web_seed(store, pki, serves=[published.info.infohash]) as url:
        where = f"{url}/{published.info.infohash}/image.raw"
        maker = HttpMaker(ca=own.ca, cert=own.cert, key=own.key)
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


def as_node(pki: Path, name: str | None) -> AbstractAsyncContextManager[httpx.AsyncClient]:
    import ssl

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


async def test_a_client_that_takes_nothing_neither_fills_the_memory_nor_keeps_others_out(
    tmp_path: Path,
) -> None:
    infohash = "0" * 64
    (tmp_path / infohash).mkdir()
    (tmp_path / infohash / "image.raw").write_bytes(bytes(RANGE_MAX_BYTES))
    app = WebSeed(tmp_path, Serving([infohash]), requests=1, patience_s=0.2)
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

    scope = {
        "type": "http",
        "method": "GET",
        "path": f"/images/{infohash}/image.raw",
        "headers": [(b"range", b"bytes=0-%d" % (RANGE_MAX_BYTES - 1))],
    }
    slow = asyncio.create_task(app(scope, None, takes_nothing))
    await stuck.wait()
    assert held < RANGE_MAX_BYTES / 8
    await app(scope, None, reads)
    assert said[0] == 503
    await slow
    await app(scope, None, reads)
    assert 206 in said
