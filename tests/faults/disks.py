"""Changing bytes below whoever holds them."""

from __future__ import annotations

import mmap
import os
import re
import subprocess
from pathlib import Path

_BLOCK, _SECTOR = 4096, 512


def flip_on_a_disk(disk: Path, at: int) -> None:
    """Flip a bit of a file or device, past its page cache where it has O_DIRECT."""
    fd = _open(disk)
    try:
        block = at - at % _BLOCK
        with mmap.mmap(-1, _BLOCK) as buffer:
            os.preadv(fd, [buffer], block)
            buffer[at - block] ^= 1
            os.pwrite(fd, buffer, block)
        os.fsync(fd)
    finally:
        os.close(fd)


def flip_below_a_file(path: Path, at: int, disk: Path) -> None:
    """Flip a bit of a file in the disk image under its file system: what memory has of the file
    stays as it was."""
    told = subprocess.run(
        ["filefrag", f"-b{_SECTOR}", "-e", "-s", str(path)],
        capture_output=True,
        text=True,
        check=True,
    ).stdout
    for line in told.splitlines():
        found = re.match(r"\s*\d+:\s*(\d+)\.\.\s*(\d+):\s*(\d+)\.\.", line)
        if found is None:
            continue
        first, last, physical = map(int, found.groups())
        if first <= at // _SECTOR <= last:
            flip_on_a_disk(disk, (physical - first) * _SECTOR + at)
            return
    raise AssertionError(f"byte {at} of {path} is nowhere: {told}")


def _open(disk: Path) -> int:
    try:
        return os.open(disk, os.O_RDWR | os.O_DIRECT | os.O_CLOEXEC)
    except OSError:
        return os.open(disk, os.O_RDWR | os.O_CLOEXEC)
