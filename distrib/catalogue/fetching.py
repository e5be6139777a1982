"""Fetching a signed list: over https, or from a file of the head; bounded in size and time."""

from __future__ import annotations

import asyncio
import os
import stat
from dataclasses import dataclass
from pathlib import Path
from urllib.parse import unquote, urlsplit

from distrib.catalogue.web import (
    CONNECT_S,
    NOT_MODIFIED,
    OK,
    is_file_url,
    opened,
    web_client,
    web_url,
)
from distrib.errors import (
    ConfigInvalid,
    DistribError,
    NetworkError,
    NotFound,
    StorageFailed,
    TimedOut,
)
from distrib.trust.reasons import Reason, ReasonCode, refusal
from distrib.trust.signature import MAX_MESSAGE_BYTES

FETCH_S = 120.0
_ETAG_MAX_CHARS = 512
_HINT = "is the server overloaded, or the line?"


@dataclass(frozen=True)
class Origin:
    """Where a list is fetched. ``etag`` is that of the message that is here already."""

    url: str
    auth: tuple[str, str] | None = None
    ca_file: Path | None = None
    etag: str | None = None


@dataclass(frozen=True)
class Fetched:
    """``message`` is None where the server says that it is the one of ``Origin.etag``."""

    message: bytes | None
    etag: str | None


def check_url(url: str) -> None:
    """Raises ConfigInvalid for what is neither ``https:`` nor a ``file:`` of the head."""
    if is_file_url(url):
        path_of(url)
    else:
        web_url(url)


class Fetcher:
    """Fetches lists; ``limit_s`` is for all of one, ``limit_bytes`` for its body."""

    def __init__(self, *, limit_s: float = FETCH_S, limit_bytes: int = MAX_MESSAGE_BYTES) -> None:
        self._limit_s = limit_s
        self._limit_bytes = limit_bytes
        self._reading: set[Path] = set()

    async def fetch(self, origin: Origin) -> Fetched:
        """The message at ``origin``.

        Raises TrustRefused (``too-large``), TimedOut, NetworkError, NotFound, Forbidden,
        ConfigInvalid (URL or CA file).
        """
        try:
            async with asyncio.timeout(self._limit_s):
                if is_file_url(origin.url):
                    return await self._from_file(path_of(origin.url))
                return await self._from_web(origin)
        except TimeoutError:
            raise TimedOut(
                f"{origin.url}: not all of it in {self._limit_s:g} s", hint=_HINT
            ) from None

    async def _from_web(self, origin: Origin) -> Fetched:
        connect_s = min(CONNECT_S, self._limit_s / 2)
        # Reading the CAs of a system takes tens of milliseconds.
        client = await asyncio.to_thread(web_client, ca_file=origin.ca_file, connect_s=connect_s)
        headers = {"If-None-Match": origin.etag} if origin.etag else {}
        async with (
            client,
            opened(client, origin.url, auth=origin.auth, headers=headers) as response,
        ):
            etag = _usable_etag(response.headers.get("etag"))
            if response.status_code == NOT_MODIFIED:
                if not origin.etag:
                    raise NetworkError(
                        f"{origin.url}: HTTP 304, and nothing was asked", hint="ask who runs it"
                    )
                return Fetched(None, origin.etag)
            if response.status_code != OK:
                raise NetworkError(
                    f"{origin.url}: HTTP {response.status_code}", hint="ask who runs it"
                )
            declared = response.headers.get("content-length", "")
            if declared.isdigit() and int(declared) > self._limit_bytes:
                raise self._too_large(origin.url)
            message = bytearray()
            async for chunk in response.aiter_raw(1 << 16):
                message += chunk
                if len(message) > self._limit_bytes:
                    raise self._too_large(origin.url)
            return Fetched(bytes(message), etag)

    async def _from_file(self, path: Path) -> Fetched:
        # A thread that hangs in a dead file system cannot be ended: at least let it stay alone.
        if path in self._reading:
            raise TimedOut(
                f"{path}: an earlier read has not ended yet", hint="is its file system there?"
            )
        self._reading.add(path)

        def read() -> bytes:
            try:
                return self._read(path)
            finally:
                self._reading.discard(path)

        return Fetched(await asyncio.to_thread(read), None)

    def _read(self, path: Path) -> bytes:
        try:
            # Not blocking: opening a pipe would wait for whoever writes to it.
            descriptor = os.open(path, os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC | os.O_NOCTTY)
        except OSError as error:
            raise _no_file(path, error) from None
        try:
            if not stat.S_ISREG(os.fstat(descriptor).st_mode):
                raise ConfigInvalid(
                    f"{path} is no regular file", hint="give the signed list", path=str(path)
                )
            with open(descriptor, "rb", closefd=False) as file:
                message = file.read(self._limit_bytes + 1)
        except OSError as error:
            raise StorageFailed(
                f"{path}: {error.strerror}", hint="check the disk", path=str(path)
            ) from None
        finally:
            os.close(descriptor)
        if len(message) > self._limit_bytes:
            raise self._too_large(f"file:{path}")
        return message

    def _too_large(self, url: str) -> DistribError:
        text = f"{url}: more than {self._limit_bytes} bytes"
        return refusal("image list", [Reason(ReasonCode.TOO_LARGE, text)], hint="is this a list?")


def path_of(url: str) -> Path:
    """The path that a ``file:`` URL names on this head. Raises ConfigInvalid."""
    refused = ConfigInvalid(f"{url[:200]!r} is no file of this head", hint="file:///PATH")
    try:
        parts = urlsplit(url)
    except ValueError:
        raise refused from None
    path = Path(unquote(parts.path))
    if parts.netloc not in {"", "localhost"} or not path.is_absolute() or "\0" in str(path):
        raise refused
    return path


def _no_file(path: Path, error: OSError) -> DistribError:
    if isinstance(error, FileNotFoundError):
        return NotFound(f"{path}: {error.strerror}", hint="a path on the head", path=str(path))
    return ConfigInvalid(
        f"{path}: {error.strerror}", hint="readable for the controller, on the head", path=str(path)
    )


def _usable_etag(etag: str | None) -> str | None:
    """What can be sent back in a header as it is; else it is as if there were none."""
    if etag is None or len(etag) > _ETAG_MAX_CHARS:
        return None
    return etag if etag.isascii() and etag.isprintable() else None
