"""Sources that can be read anywhere: a mounted directory, and a seeder's web seed over HTTPS.

Both have images as the head's store has them: ``<infohash>/image.raw``, and beside it
``image.torrent`` with the piece hashes. What is read is offered to the verified store, which hashes
it: a wrong piece is named, left, and tried again later.
"""

from __future__ import annotations

import asyncio
import os
import ssl
from collections.abc import Awaitable, Callable, Collection, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Final, Protocol

import httpx
import structlog

from agent.pull.further import Pulled
from agent.pull.source import PieceSink, Source
from distrib.bus.certificates import SiteCertificates, common_name
from distrib.errors import DigestMismatch, NetworkError, StorageFailed
from distrib.swarm import IMAGE_FILE, TORRENT_FILE
from distrib.swarm.pieces import piece_hashes

log = structlog.get_logger(__name__)

BAD_MAX: Final = 3
TORRENT_MAX_BYTES: Final = 64 << 20
HTTP_LIMIT_S: Final = 30.0


class Readable(Protocol):
    """One image somewhere. ``where`` is for people."""

    @property
    def where(self) -> str: ...

    async def read(self, offset: int, size: int) -> bytes:
        """So many bytes from there. Raises NetworkError or StorageFailed."""
        ...

    async def torrent(self) -> bytes:
        """The torrent file beside the image. Raises as ``read``."""
        ...


class Ranges:
    """Reads what is missing, one piece after another."""

    def __init__(
        self,
        name: str,
        image: Readable,
        pulled: Pulled | None = None,
    ) -> None:
        self.name = name
        self._image = image
        self._pulled = pulled

    async def bring(self, sink: PieceSink) -> None:
        """See ``Source.bring``. Raises NetworkError, StorageFailed; DigestMismatch where what is
        there are other bytes."""
        pulled = self._pulled
        if pulled is not None and not pulled.knows_hashes():
            torrent = await self._image.torrent()
            piece_hashes(torrent, pulled.info)
            await pulled.learn(torrent)
            await sink.complete()
            return
        bad, last = 0, -1
        # Looked at before each piece: others bring some meanwhile.
        while missing := sink.missing():
            last = next((index for index in missing if index > last), missing[0])
            offset = last * sink.piece_bytes
            size = min(sink.piece_bytes, sink.size_bytes - offset)
            if await sink.offer(last, await self._image.read(offset, size)):
                continue
            bad += 1
            if bad == BAD_MAX:
                raise DigestMismatch(
                    f"{self._image.where}: {bad} pieces failed their hash",
                    hint="other bytes lie there under this info-hash",
                    infohash=sink.infohash,
                )
        await sink.complete()


@dataclass(frozen=True)
class MountedImage:
    """An image in a directory."""

    directory: Path

    @property
    def where(self) -> str:
        return str(self.directory)

    async def read(self, offset: int, size: int) -> bytes:
        """See ``Readable.read``."""
        return await asyncio.to_thread(self._read, offset, size)

    async def torrent(self) -> bytes:
        """See ``Readable.torrent``."""
        return await asyncio.to_thread(self._torrent)

    def _read(self, offset: int, size: int) -> bytes:
        path = self.directory / IMAGE_FILE
        try:
            with path.open("rb") as file:
                data = os.pread(file.fileno(), size, offset)
        except OSError as error:
            raise _unreadable(path, error.strerror) from None
        if len(data) != size:
            raise _unreadable(path, "shorter than the image")
        return data

    def _torrent(self) -> bytes:
        path = self.directory / TORRENT_FILE
        try:
            if path.stat().st_size > TORRENT_MAX_BYTES:
                raise _unreadable(path, "too large")
            return path.read_bytes()
        except OSError as error:
            raise _unreadable(path, error.strerror) from None


@dataclass(frozen=True)
class WebImage:
    """An image at a URL that answers to ranges; ``client`` proves us to the seeder, ``fault`` says
    why the certificate that it shows is not to be believed (DER; empty where it is)."""

    url: str
    client: Callable[[], httpx.AsyncClient]
    fault: Callable[[bytes], Awaitable[str]]

    @property
    def where(self) -> str:
        return self.url

    async def read(self, offset: int, size: int) -> bytes:
        """See ``Readable.read``."""
        last = offset + size - 1
        data = await self._get(self.url, {"Range": f"bytes={offset}-{last}"}, size)
        if len(data) != size:
            raise NetworkError(f"{self.url}: {len(data)} bytes of {size}", hint="see the seeder")
        return data

    async def torrent(self) -> bytes:
        """See ``Readable.torrent``."""
        beside = f"{self.url.rpartition('/')[0]}/{TORRENT_FILE}"
        return await self._get(beside, {}, TORRENT_MAX_BYTES)

    async def _get(self, url: str, headers: dict[str, str], most: int) -> bytes:
        wanted = httpx.codes.PARTIAL_CONTENT if headers else httpx.codes.OK
        data = bytearray()
        try:
            async with self.client().stream("GET", url, headers=headers) as answer:
                await self._check(answer)
                if answer.status_code != wanted:
                    raise NetworkError(
                        f"{url}: HTTP {answer.status_code}", hint="the seeder's log says why"
                    )
                async for block in answer.aiter_raw():
                    data += block
                    if len(data) > most:
                        raise NetworkError(f"{url}: more than was asked for", hint="ignored")
        except (httpx.HTTPError, ssl.SSLError, OSError) as error:
            raise NetworkError(
                f"{url}: {error or type(error).__name__}", hint="is the seeder there?"
            ) from None
        return bytes(data)

    async def _check(self, answer: httpx.Response) -> None:
        stream = answer.extensions.get("network_stream")
        connection = stream.get_extra_info("ssl_object") if stream is not None else None
        if connection is not None:
            why = await self.fault(connection.getpeercert(binary_form=True))
        else:
            # Without TLS there is nobody to know: a cache of the site, of which pieces are hashed.
            why = "shows no certificate" if self.url.startswith("https:") else ""
        if why:
            raise NetworkError(f"{self.url}: {why}", hint="look at the seeder's certificate")


@dataclass(frozen=True)
class PathMaker:
    """From the first of ``directories`` that has the image."""

    directories: Sequence[Path]
    name: str = "path"

    def make(self, pulled: Pulled) -> Source | None:
        """See ``SourceMaker``. Nothing is looked at: a dead mount would block."""
        return _First(
            self.name,
            [MountedImage(one / pulled.info.infohash) for one in self.directories],
            pulled,
        )

    async def close(self) -> None:
        """See ``SourceMaker``. Nothing is kept open."""


class HttpMaker:
    """From the web seeds that the site names; the node's certificate proves it there.

    ``seeders`` are the CNs that are taken for seeders; ``ca_directory`` has the site's CRLs."""

    name = "http"

    def __init__(
        self,
        *,
        ca: Path,
        cert: Path,
        key: Path,
        ca_directory: Path,
        seeders: Collection[str] = ("seeder",),
    ) -> None:
        self._files = (ca, cert, key)
        self._ca_directory = ca_directory
        self._certificates: SiteCertificates | None = None
        self._seeders = frozenset(seeders)
        self._client: httpx.AsyncClient | None = None

    def make(self, pulled: Pulled) -> Source | None:
        """See ``SourceMaker``."""
        seeds = pulled.means().web_seeds
        images = [WebImage(url, self._connected, self._fault) for url in seeds]
        return _First(self.name, images, pulled) if images else None

    async def close(self) -> None:
        """End the connections."""
        if self._client is not None:
            await self._client.aclose()
            self._client = None

    async def _fault(self, certificate: bytes) -> str:
        name = common_name(certificate)
        if name not in self._seeders:
            return f"{name or 'no name'} answers there, who is no seeder (sources.seeders)"
        if self._certificates is None:
            ca = self._files[0]
            self._certificates = await asyncio.to_thread(SiteCertificates, ca, self._ca_directory)
        return await self._certificates.fault(certificate)

    def _connected(self) -> httpx.AsyncClient:
        if self._client is None:
            ca, cert, key = self._files
            context = ssl.create_default_context(cafile=str(ca))
            # A seeder's certificate is of its name, which is looked at with each answer; and it is
            # asked by address.
            context.check_hostname = False
            context.load_cert_chain(cert, key)
            self._client = httpx.AsyncClient(verify=context, timeout=HTTP_LIMIT_S, trust_env=False)
        return self._client


class _First:
    """The first of several that does not fail."""

    def __init__(self, name: str, images: Sequence[Readable], pulled: Pulled) -> None:
        self.name = name
        self._images = images
        self._pulled = pulled

    async def bring(self, sink: PieceSink) -> None:
        """See ``Source.bring``. Raises what the last one says."""
        for number, image in enumerate(self._images, start=1):
            try:
                await Ranges(self.name, image, self._pulled).bring(sink)
            except (NetworkError, StorageFailed, DigestMismatch) as error:
                if number == len(self._images):
                    raise
                log.info("source-passed-over", where=image.where, why=error.message)
            else:
                return


def _unreadable(path: Path, why: str | None) -> StorageFailed:
    return StorageFailed(f"{path}: {why}", hint="is it mounted, and are images there?")
