"""The file of an image, fetched from where its list says, and checked on the way.

What has come stays when a try fails, and the next one asks for the rest (RFC 9110, 14.2: ``Range``,
with ``If-Range`` and what the server called the file). A server that ignores that, or has another
file meanwhile, is read from the start. Size and SHA-512 hold over the whole: at the first byte too
many, and at the last one.
"""

from __future__ import annotations

import asyncio
import hashlib
import json
import os
import re
import stat
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, BinaryIO
from urllib.parse import urlsplit

import httpx

from distrib.catalogue.conversion import RESERVE_BYTES
from distrib.catalogue.digest import sha512_state
from distrib.catalogue.fetching import path_of
from distrib.catalogue.preparation import NOTE_FILE, PART_FILE, make_room, mismatch
from distrib.catalogue.quarantine import complete
from distrib.catalogue.store import named_faults, write_atomically
from distrib.catalogue.web import OK, PART, is_file_url, opened, web_client
from distrib.db.models import Image
from distrib.db.references import image_name
from distrib.errors import (
    ConfigInvalid,
    Forbidden,
    ImageError,
    NetworkError,
    NoSpace,
    NotFound,
    TimedOut,
)

if TYPE_CHECKING:
    from hashlib import _Hash

_BATCH_BYTES = 1 << 20
BATCH_S = 300.0
#: Well above the time for connecting: who is cancelled in a TLS handshake leaves a socket open.
ANSWER_S = 300.0
_CONTENT_RANGE = re.compile(r"bytes (\d{1,18})-(\d{1,18})/(\d{1,18}|\*)")
_NAME_MAX_CHARS = 512

Progress = Callable[[int], Awaitable[None]]
"""Told how many bytes there are; what it raises ends the download."""


@dataclass(frozen=True)
class Access:
    """How to get at a server: user name and password for ``host`` only, a CA file of its own."""

    host: str = ""
    auth: tuple[str, str] | None = None
    ca_file: Path | None = None

    def auth_for(self, url: str) -> tuple[str, str] | None:
        """User name and password, if they are for that URL's host."""
        return self.auth if host_of(url) == self.host else None


@dataclass(frozen=True)
class _Note:
    """Of what file the part is: kept beside it."""

    url: str
    sha512: str
    name: str = ""


class _StartAgain(NetworkError):
    """What is here does not fit what the server has."""


@dataclass(frozen=True)
class Download:
    """``file_roots``: folders that ``file:`` URLs may lead into."""

    file_roots: tuple[Path, ...] = ()

    async def fetch(self, row: Image, folder: Path, *, access: Access, progress: Progress) -> None:
        """Bring the file into ``folder``, whole and checked.

        Raises DigestMismatch (nothing stays), NoSpace (nothing stays), NetworkError, TimedOut,
        NotFound, Forbidden, ConfigInvalid, StorageFailed (what has come stays for the next try).
        """
        try:
            await self._fetch(row, folder, access, progress)
        except (ImageError, NoSpace, _StartAgain):
            for name in (PART_FILE, NOTE_FILE):
                (folder / name).unlink(missing_ok=True)
            raise
        await asyncio.to_thread(complete, folder)

    async def _fetch(self, row: Image, folder: Path, access: Access, progress: Progress) -> None:
        await asyncio.to_thread(make_room, row, folder, have_bytes=row.endorsed_size_bytes)
        part = folder / PART_FILE
        note, have_bytes = await asyncio.to_thread(_here, row, folder)
        await asyncio.to_thread(
            make_room, row, folder, have_bytes=have_bytes, reserve_bytes=RESERVE_BYTES
        )
        with named_faults(part):
            digest = await sha512_state(part, limit_bytes=have_bytes) if have_bytes else None
        resumed = have_bytes > 0
        if have_bytes < row.endorsed_size_bytes:
            async with self._opened(row, access, note, have_bytes) as (start, name, chunks):
                resumed = start > 0
                if not resumed:
                    digest = None
                fresh = _Note(row.source, row.endorsed_sha512, name)
                text = json.dumps(asdict(fresh)).encode()
                await asyncio.to_thread(write_atomically, folder / NOTE_FILE, text, mode=0o600)
                state = digest or hashlib.sha512()
                digest = await _stream(row, part, (start, state), chunks, progress)
        if digest is None or digest.hexdigest() != row.endorsed_sha512:
            if resumed:
                raise _StartAgain(
                    f"image {image_name(row)}: its file changed while it was fetched",
                    hint="it is fetched from the start",
                    image=image_name(row),
                )
            raise mismatch(row, "it has another SHA-512")

    @asynccontextmanager
    async def _opened(
        self, row: Image, access: Access, note: _Note, have_bytes: int
    ) -> AsyncIterator[tuple[int, str, AsyncIterator[bytes]]]:
        """(offset from which it comes, the server's name of it, the bytes)."""
        if is_file_url(row.source):
            # In a thread: its file system may be slow, or gone.
            file = await asyncio.to_thread(_local, row.source, self.file_roots)
            with file:
                yield 0, "", _chunks_of(file.fileno(), row)
            return
        headers = {}
        if have_bytes:
            headers["Range"] = f"bytes={have_bytes}-"
            if note.name:
                headers["If-Range"] = note.name
        # Reading the CAs of a system takes tens of milliseconds.
        client = await asyncio.to_thread(web_client, ca_file=access.ca_file)
        auth = access.auth_for(row.source)
        async with client, AsyncExitStack() as stack:
            answer = opened(client, row.source, auth=auth, headers=headers)
            try:
                async with asyncio.timeout(ANSWER_S):
                    response = await stack.enter_async_context(answer)
            except TimeoutError:
                raise TimedOut(
                    f"{row.source}: no answer in {ANSWER_S:g} s",
                    hint="is the server overloaded, or the line?",
                ) from None
            start, name = _begins(row, response, have_bytes, note)
            yield start, name, response.aiter_raw(_BATCH_BYTES)


def _here(row: Image, folder: Path) -> tuple[_Note, int]:
    """What there is of the file, if it is of this file."""
    part = folder / PART_FILE
    try:
        note = _Note(**json.loads((folder / NOTE_FILE).read_bytes()))
        have_bytes = part.stat().st_size
    except (OSError, ValueError, TypeError):
        return _Note(row.source, row.endorsed_sha512), 0
    fits = (note.url, note.sha512) == (row.source, row.endorsed_sha512)
    if not fits or have_bytes > row.endorsed_size_bytes:
        return _Note(row.source, row.endorsed_sha512), 0
    return note, have_bytes


def _begins(row: Image, response: httpx.Response, have_bytes: int, note: _Note) -> tuple[int, str]:
    """Where the answer begins, and what the server calls the file. Refuses another size."""
    name = _name_of(response)
    if response.status_code == OK:
        _check_length(row, response.headers.get("content-length", ""), 0)
        return 0, name
    if response.status_code != PART or not have_bytes:
        raise NetworkError(f"{row.source}: HTTP {response.status_code}", hint="ask who runs it")
    told = _CONTENT_RANGE.fullmatch(response.headers.get("content-range", ""))
    if told is None or int(told[1]) != have_bytes or (note.name and name and name != note.name):
        raise _StartAgain(
            f"{row.source}: another part, or another file, than was asked for",
            hint="it is fetched from the start",
        )
    if told[3] != "*" and int(told[3]) != row.endorsed_size_bytes:
        raise mismatch(row, f"{told[3]} bytes, {row.endorsed_size_bytes} are endorsed")
    _check_length(row, response.headers.get("content-length", ""), have_bytes)
    return have_bytes, name


def _check_length(row: Image, declared: str, start: int) -> None:
    if declared.isdigit() and int(declared) != row.endorsed_size_bytes - start:
        whole = int(declared) + start
        raise mismatch(row, f"{whole} bytes, {row.endorsed_size_bytes} are endorsed")


def _name_of(response: httpx.Response) -> str:
    """A validator for ``If-Range``: a strong ETag, else the date (RFC 9110, 13.1.5)."""
    tag = str(response.headers.get("etag", ""))
    date = str(response.headers.get("last-modified", ""))
    name = tag if tag.startswith('"') else date
    return name if len(name) <= _NAME_MAX_CHARS and name.isascii() and name.isprintable() else ""


async def _stream(
    row: Image,
    part: Path,
    begun: tuple[int, _Hash],
    chunks: AsyncIterator[bytes],
    progress: Progress,
) -> _Hash:
    start, running = begun
    have_bytes = start
    with named_faults(part), part.open("r+b" if start else "wb") as file:
        file.truncate(start)
        file.seek(start)

        def write(data: bytes) -> None:
            running.update(data)
            file.write(data)
            file.flush()

        while (chunk := await _next(chunks, row)) is not None:
            have_bytes += len(chunk)
            if have_bytes > row.endorsed_size_bytes:
                raise mismatch(row, f"more than the {row.endorsed_size_bytes} bytes endorsed")
            await asyncio.to_thread(write, chunk)
            await progress(have_bytes)
    if have_bytes < row.endorsed_size_bytes:
        raise NetworkError(
            f"{row.source}: ended after {have_bytes} of {row.endorsed_size_bytes} bytes",
            hint="the next try asks for the rest",
        )
    return running


async def _next(chunks: AsyncIterator[bytes], row: Image) -> bytes | None:
    """A server that sends a byte now and then is no server: a batch has its time."""
    try:
        async with asyncio.timeout(BATCH_S):
            return await anext(chunks, None)
    except TimeoutError:
        raise TimedOut(
            f"{row.source}: less than {_BATCH_BYTES} bytes in {BATCH_S:g} s",
            hint="is the server overloaded, or the line?",
        ) from None


def _local(url: str, roots: tuple[Path, ...]) -> BinaryIO:
    """The file that a ``file:`` URL names, in one of the folders that the site allows; opened."""
    given = path_of(url)
    try:
        path = given.resolve(strict=True)
        allowed = any(path.is_relative_to(root.resolve()) for root in roots)
        if not allowed:
            raise Forbidden(
                f"{given}: images are not taken from there", hint="setting intake.file_roots"
            )
        # Not blocking, no link: what is there now need not be what was resolved.
        descriptor = os.open(path, os.O_RDONLY | os.O_NONBLOCK | os.O_NOFOLLOW | os.O_CLOEXEC)
    except OSError as error:
        raise NotFound(f"{given}: {error.strerror}", hint="a path on the head") from None
    if not stat.S_ISREG(os.fstat(descriptor).st_mode):
        os.close(descriptor)
        raise ConfigInvalid(f"{given} is no regular file", hint="name an image file")
    return os.fdopen(descriptor, "rb")


async def _chunks_of(descriptor: int, row: Image) -> AsyncIterator[bytes]:
    size_bytes = os.fstat(descriptor).st_size
    if size_bytes != row.endorsed_size_bytes:
        raise mismatch(row, f"{size_bytes} bytes, {row.endorsed_size_bytes} are endorsed")
    while chunk := await asyncio.to_thread(os.read, descriptor, _BATCH_BYTES):
        yield chunk


def host_of(url: str) -> str:
    """Host and port of an https URL, as ``Access.host`` has it; empty for any other."""
    try:
        parts = urlsplit(url)
        port = parts.port or 443
    except ValueError:
        return ""
    return f"{parts.hostname}:{port}" if parts.scheme == "https" else ""
