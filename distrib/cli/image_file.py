"""The image files that commands read."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator
from pathlib import Path

import click

from distrib.cli.progress import Advance
from distrib.errors import ImageError, NotFound, OperatorError

FILE = click.Path(path_type=Path)
_CHUNK_BYTES = 1 << 20


def size_of(file: Path) -> int:
    """In bytes. Raises OperatorError, NotFound, ImageError (it is empty)."""
    try:
        size_bytes = file.stat().st_size
        if not file.is_file():
            raise OperatorError(f"{file}: not a file", hint="name an image file")
    except OSError as error:
        raise NotFound(f"{file}: {error.strerror}", hint="check the path") from None
    if size_bytes == 0:
        raise ImageError(f"{file}: empty file", hint="an image has at least one byte")
    return size_bytes


def chunks_of(file: Path, advance: Advance) -> Iterator[bytes]:
    """All of it, in order. Raises NotFound."""
    done = 0
    try:
        with file.open("rb") as stream:
            while chunk := stream.read(_CHUNK_BYTES):
                yield chunk
                done += len(chunk)
                advance(done)
    except OSError as error:
        raise NotFound(f"{file}: {error.strerror}", hint="check the path") from None


def sha512_of(file: Path, advance: Advance) -> str:
    """In hex. Raises NotFound."""
    digest = hashlib.sha512()
    for chunk in chunks_of(file, advance):
        digest.update(chunk)
    return digest.hexdigest()
