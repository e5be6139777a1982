"""Signed documents as commands take them: a file, standard input, or an https URL; bounded."""

from __future__ import annotations

import asyncio
import sys
from pathlib import Path

from distrib.catalogue.web import named_web_faults, opened, web_client
from distrib.errors import ConfigInvalid, NotFound, TimedOut

#: From the first packet to the last.
FETCH_S = 60.0
STDIN = "-"


def read_document(source: str, *, max_bytes: int, ca_file: Path | None = None) -> bytes:
    """What ``source`` holds (a path, ``-`` or ``https://…``), cut at one byte more than allowed.

    The byte too many lets the verifier say "too-large". Raises NotFound, ConfigInvalid, TimedOut,
    NetworkError.
    """
    if source == STDIN:
        return sys.stdin.buffer.read(max_bytes + 1)
    if "://" in source:
        return asyncio.run(_fetch(source, max_bytes=max_bytes, ca_file=ca_file))
    return read_file(Path(source), max_bytes=max_bytes)


def read_file(path: Path, *, max_bytes: int) -> bytes:
    """The file, cut at one byte more than allowed."""
    try:
        with path.open("rb") as file:
            return file.read(max_bytes + 1)
    except OSError as error:
        raise NotFound(
            f"{path}: {error.strerror}", hint="check the path and its permissions", path=str(path)
        ) from None


def replace_file(path: Path, data: bytes) -> None:
    """Readers see the old file or the new one, whole."""
    partial = path.with_name(f".{path.name}.new")
    try:
        partial.write_bytes(data)
        partial.replace(path)
    except OSError as error:
        raise ConfigInvalid(
            f"{path} cannot be written: {error.strerror}",
            hint="check the directory and its permissions",
            path=str(path),
        ) from None


async def _fetch(url: str, *, max_bytes: int, ca_file: Path | None) -> bytes:
    data = bytearray()
    try:
        async with (
            asyncio.timeout(FETCH_S),
            web_client(ca_file=ca_file) as client,
            opened(client, url) as response,
        ):
            with named_web_faults(url):
                async for chunk in response.aiter_raw():
                    data += chunk
                    if len(data) > max_bytes:
                        break
    except TimeoutError:
        raise TimedOut(
            f"{url}: not read within {FETCH_S:.0f} s", hint="is the server slow?"
        ) from None
    return bytes(data[: max_bytes + 1])
