"""The seeder's images over HTTPS, in ranges, for nodes that show a certificate of the site.

``GET /images/<infohash>/image.raw`` with one range of at most 16 MiB, and ``image.torrent`` whole.
Only what the seeder serves on the swarm, and to whom it does: addresses of the inventory. Each
request's certificate is looked up in the site's CRLs. So many requests at a time, half of them of
one certificate, the others hear 503.
"""

from __future__ import annotations

import asyncio
import os
import re
import socket
import ssl
from collections import Counter
from collections.abc import AsyncIterator, Awaitable, Callable, Collection, Iterator
from contextlib import asynccontextmanager, closing, contextmanager
from pathlib import Path
from typing import Any, Final, Protocol

import structlog
import uvicorn
from pydantic import Field
from uvicorn.protocols.http.h11_impl import H11Protocol

from distrib.bus.certificates import SiteCertificates, common_name
from distrib.bus.mqtt import BusSettings
from distrib.config import Section
from distrib.errors import ConfigInvalid
from distrib.swarm import IMAGE_FILE, TORRENT_FILE

log = structlog.get_logger(__name__)

RANGE_MAX_BYTES: Final = 16 << 20
CHUNK_BYTES: Final = 1 << 20
"""The server holds so much, and no more, for a client that does not read."""

PATIENCE_S: Final = 60.0
"""In which a client takes its answer: else it would keep others from theirs."""

_PATH = re.compile(rf"/images/([0-9a-f]{{64}})/({re.escape(IMAGE_FILE)}|{re.escape(TORRENT_FILE)})")
_RANGE = re.compile(rb"bytes=([0-9]{1,18})-([0-9]{1,18})")


class WebSeedSettings(Section):
    """Images over HTTPS, for nodes' certificates; the seeder's own is that of its bus."""

    port: int = Field(0, ge=0, le=65535, description="TCP port; 0: not served")
    address: str = Field("0.0.0.0", description="address to listen on")  # noqa: S104
    url: str = Field("", description="what nodes are told, if another: ends before `/<infohash>`")
    requests: int = Field(
        16, gt=0, description="answered at a time, half of them to one node; the others hear 503"
    )


REFUSED_MAX: Final = 1000
"""So many are told of, once each."""


class Serves(Protocol):
    """Says what may be served, and to whom."""

    @property
    def serves(self) -> Collection[str]: ...

    def admits(self, address: str) -> bool:
        """Whether somebody at this address is served."""
        ...


CERTIFICATE: Final = "distrib.certificate"
"""In the scope of a request: what the client showed, DER."""

Scope = dict[str, Any]
Send = Callable[[dict[str, Any]], Awaitable[None]]


class WebSeed:
    """The ASGI application."""

    def __init__(
        self,
        images_dir: Path,
        seeder: Serves,
        *,
        certificates: SiteCertificates,
        requests: int,
        patience_s: float = PATIENCE_S,
    ) -> None:
        self._patience_s = patience_s
        self._certificates = certificates
        self._refused: set[tuple[str, str, str]] = set()
        self._images = images_dir
        self._seeder = seeder
        self._free = requests
        self._each = -(-requests // 2)
        self._busy: Counter[bytes] = Counter()

    async def __call__(self, scope: Scope, receive: object, send: Send) -> None:
        """Answer one request."""
        if scope["type"] != "http":
            return
        who: bytes = scope[CERTIFICATE]
        if self._free <= 0 or self._busy[who] >= self._each:
            await _answer(send, 503, headers=[(b"retry-after", b"1")])
            return
        self._free -= 1
        self._busy[who] += 1
        try:
            async with asyncio.timeout(self._patience_s):
                if await self._admits(scope):
                    await self._get(scope, send)
                else:
                    await _answer(send, 403)
        except TimeoutError:
            # An answer that is not whole makes the server hang up.
            log.warning("slow-client", path=scope["path"])
        finally:
            self._free += 1
            self._busy[who] -= 1
            if not self._busy[who]:
                del self._busy[who]

    async def _admits(self, scope: Scope) -> bool:
        """Whether who asks is served; else it is told once why not."""
        certificate: bytes = scope[CERTIFICATE]
        address = scope["client"][0]
        why = await self._certificates.fault(certificate)
        if not why and not self._seeder.admits(address):
            why = "not an address of the inventory (node add --address), nor of farm.foreign"
        told = (common_name(certificate), address, why) if why else None
        if told and told not in self._refused and len(self._refused) < REFUSED_MAX:
            self._refused.add(told)
            log.warning("client-refused", certificate=told[0], address=address, why=why)
        return not why

    async def _get(self, scope: Scope, send: Send) -> None:
        found = _PATH.fullmatch(scope["path"])
        if scope["method"] != "GET":
            await _answer(send, 405)
        elif found is None or found[1] not in self._seeder.serves:
            await _answer(send, 404)
        elif found[2] == TORRENT_FILE:
            await _answer(send, 200, await asyncio.to_thread(self._file(found).read_bytes))
        else:
            await self._range(self._file(found), dict(scope["headers"]).get(b"range", b""), send)

    def _file(self, found: re.Match[str]) -> Path:
        return self._images / found[1] / found[2]

    async def _range(self, file: Path, asked: bytes, send: Send) -> None:
        size = await asyncio.to_thread(lambda: file.stat().st_size)
        wanted = _RANGE.fullmatch(asked)
        first, last = (int(wanted[1]), int(wanted[2])) if wanted else (0, -1)
        last = min(last, size - 1)
        if first > last or last - first >= RANGE_MAX_BYTES:
            await _answer(send, 416, headers=[(b"content-range", b"bytes */%d" % size)])
            return
        data = await asyncio.to_thread(_read, file, first, last - first + 1)
        said = b"bytes %d-%d/%d" % (first, last, size)
        await _answer(send, 206, data, headers=[(b"content-range", said)])


def _read(file: Path, offset: int, size: int) -> bytes:
    with file.open("rb") as opened:
        return os.pread(opened.fileno(), size, offset)


async def _answer(
    send: Send, status: int, body: bytes = b"", *, headers: list[tuple[bytes, bytes]] | None = None
) -> None:
    said = [(b"content-length", b"%d" % len(body)), *(headers or [])]
    await send({"type": "http.response.start", "status": status, "headers": said})
    # The server waits for the client before each part but the first.
    for at in range(0, len(body), CHUNK_BYTES):
        part = body[at : at + CHUNK_BYTES]
        await send({"type": "http.response.body", "body": part, "more_body": True})
    await send({"type": "http.response.body", "body": b""})


class _Connection(H11Protocol):
    """Puts the client's certificate into the scope, which uvicorn does not."""

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        super().connection_made(transport)
        shown: bytes = transport.get_extra_info("ssl_object").getpeercert(binary_form=True)
        served: Any = self.app

        async def app(scope: Any, receive: Any, send: Any) -> None:
            await served({**scope, CERTIFICATE: shown}, receive, send)

        self.app = app


class _Server(uvicorn.Server):
    @contextmanager
    def capture_signals(self) -> Iterator[None]:
        """Nothing is captured: the seeder ends by its own order."""
        yield


@asynccontextmanager
async def serving_web(
    settings: WebSeedSettings,
    bus: BusSettings,
    images_dir: Path,
    seeder: Serves,
    *,
    ca_directory: Path,
) -> AsyncIterator[None]:
    """Serve while the block runs, where a port is set. ``ca_directory`` has the CRLs of the site's
    CA. Raises ConfigInvalid."""
    if not settings.port:
        yield
        return
    certificates = await asyncio.to_thread(SiteCertificates, bus.ca, ca_directory)
    config = uvicorn.Config(
        WebSeed(images_dir, seeder, certificates=certificates, requests=settings.requests),
        http=_Connection,
        ssl_certfile=str(bus.cert),
        ssl_keyfile=str(bus.key),
        ssl_ca_certs=str(bus.ca),
        ssl_cert_reqs=ssl.CERT_REQUIRED,
        log_config=None,
        access_log=False,
        lifespan="off",
        server_header=False,
        timeout_graceful_shutdown=2,
    )
    try:
        config.load()
        listener = socket.create_server((settings.address, settings.port), backlog=512)
    except (OSError, ssl.SSLError) as error:
        raise ConfigInvalid(
            f"web.address = {settings.address}, web.port = {settings.port}: {error}",
            hint="another program may listen there; bus.cert and bus.key are shown to nodes",
        ) from None
    with closing(listener):
        server = _Server(config)
        task = asyncio.create_task(server.serve(sockets=[listener]), name="web seed")
        log.info("web-seed-listening", address=settings.address, port=settings.port)
        try:
            yield
        finally:
            server.should_exit = True
            await task
