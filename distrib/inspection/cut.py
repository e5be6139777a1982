"""A range of a disk as a file of its own, for tools that know no offsets."""

from __future__ import annotations

import os
from pathlib import Path
from typing import BinaryIO
from uuid import uuid4

from distrib.inspection.readers.tree import NotReadable

_STEP_BYTES = 16 << 20


def cut_out(descriptor: int, offset: int, size_bytes: int, *, folder: Path, mode: int) -> BinaryIO:
    """A sparse copy that has no name: it goes when it is closed. Raises NotReadable.

    ``folder`` must be ours alone; ``mode`` is for the tool's user. Where the file system can, the
    kernel shares the blocks instead of copying them (copy_file_range(2)).
    """
    if offset + size_bytes > os.fstat(descriptor).st_size:
        raise NotReadable("it reaches past the end of the disk")
    place = folder / f".cut-{uuid4().hex}"
    try:
        file = place.open("x+b")
    except OSError as error:
        raise NotReadable(f"it cannot be cut out: {error.strerror}") from None
    try:
        place.unlink()
        os.fchmod(file.fileno(), mode)
        file.truncate(size_bytes)
        _copy(descriptor, file.fileno(), offset, offset + size_bytes)
    except OSError as error:
        file.close()
        raise NotReadable(f"it cannot be cut out: {error.strerror}") from None
    return file


def _copy(source: int, target: int, first: int, end: int) -> None:
    position = first
    while (start := _data_from(source, position, end)) < end:
        hole = min(os.lseek(source, start, os.SEEK_HOLE), end)
        while start < hole:
            count = min(_STEP_BYTES, hole - start)
            start += os.copy_file_range(source, target, count, start, start - first)
        position = hole


def _data_from(descriptor: int, position: int, end: int) -> int:
    if position >= end:
        return end
    try:
        return os.lseek(descriptor, position, os.SEEK_DATA)
    except OSError:
        return end  # ENXIO: holes only
