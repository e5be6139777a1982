"""A power cut at any moment: what dm-log-writes has recorded, replayed to a part of it.

The kernel's module logs every write to a device in the order in which it became durable. Format,
all little-endian: drivers/md/dm-log-writes.c and Documentation/admin-guide/device-mapper/
log-writes.rst of the kernel. A superblock in the first sector (magic, version, number of entries,
sector size), then for each entry one sector (sector, length in sectors, flags, length of private
data) and after it the bytes that were written; a discard has none, a mark has its text in the
entry's own sector.

A write is only logged with the first FLUSH that was issued after it completed, FUA writes at once.
So all before a FLUSH that is in the log is on the disk; what follows the last one may be there or
not, each write for itself: ``cut`` loses any of them.
"""

from __future__ import annotations

import os
import random
import struct
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from tests.uml.disks import run

FLUSH, FUA, DISCARD, MARK = 1, 2, 4, 8
MAGIC = 0x6A736677736872
SECTOR = 512
CHUNK = 1 << 20

_SUPER = struct.Struct("<QQQI")
_ENTRY = struct.Struct("<QQQQ")


@dataclass(frozen=True)
class Entry:
    """``at`` and ``length`` in bytes; ``data_at``: where in the log its bytes are."""

    at: int
    length: int
    flags: int
    data_at: int
    mark: str = ""


@contextmanager
def logged(name: str, origin: Path, log: Path, size_bytes: int) -> Iterator[Path]:
    """A device over ``origin`` whose writes are recorded in ``log``; both begin as zeros."""
    for disk, size in ((origin, size_bytes), (log, SECTOR)):
        zero(disk, size)
    table = f"0 {size_bytes // SECTOR} log-writes {origin} {log}"
    run("modprobe", "dm-log-writes")
    run("dmsetup", "create", name, "--table", table)
    run("dmsetup", "mknodes")
    try:
        yield Path("/dev/mapper") / name
    finally:
        run("dmsetup", "remove", "--retry", name)


def mark(name: str, text: str) -> None:
    """Put a word into the log: all that was durable before is before it."""
    subprocess.run(["dmsetup", "message", name, "0", "mark", text], check=True)


def entries(log: Path) -> list[Entry]:
    """What was recorded, in order."""
    found = []
    with log.open("rb", buffering=0) as file:
        os.posix_fadvise(file.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)
        magic, version, count, sector = _SUPER.unpack(file.read(_SUPER.size))
        assert (magic, version) == (MAGIC, 1), "not a log of dm-log-writes"
        place = sector
        for _ in range(count):
            file.seek(place)
            raw = file.read(sector)
            at, length, flags, data_len = _ENTRY.unpack_from(raw)
            text = raw[_ENTRY.size : _ENTRY.size + data_len].rstrip(b"\0").decode()
            place += sector
            has_data = not flags & (DISCARD | MARK)
            found.append(
                Entry(at * sector, length * sector, flags, place, text if flags & MARK else "")
            )
            place += length * sector if has_data else 0
    return found


def cut(
    log: Path,
    found: list[Entry],
    upto: int,
    target: Path,
    *,
    size_bytes: int,
    lose: random.Random,
    in_order: range = range(0),
) -> int:
    """Write to ``target`` what a power cut after ``upto`` entries leaves: all that was flushed, and
    of the rest what chance leaves; but what lies at ``in_order`` is lost in order only. How many
    entries were lost."""
    zero(target, size_bytes)
    flushed = max((n for n in range(upto) if found[n].flags & FLUSH), default=0)
    share = lose.choice((0.0, 0.0, 0.3, 0.7, 1.0))
    lost = 0
    with log.open("rb", buffering=0) as source, target.open("r+b", buffering=0) as disk:
        for number, entry in enumerate(found[:upto]):
            if entry.flags & MARK or not entry.length:
                continue
            durable = number < flushed or entry.flags & FUA or entry.at in in_order
            if not durable and lose.random() < share:
                lost += 1
                continue
            data = bytes(entry.length)
            if not entry.flags & DISCARD:
                source.seek(entry.data_at)
                data = source.read(entry.length)
            disk.seek(entry.at)
            disk.write(data)
        os.fsync(disk.fileno())
    return lost


def zero(disk: Path, size_bytes: int) -> None:
    with disk.open("r+b", buffering=0) as device:
        for start in range(0, size_bytes, CHUNK):
            device.write(bytes(min(CHUNK, size_bytes - start)))
        os.fsync(device.fileno())
