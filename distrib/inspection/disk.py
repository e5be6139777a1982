"""Where on a raw disk there are file systems: by its partition table, and by their magic.

What a partition table calls a partition says nothing of what a kernel would find in it, so every
region is told by its bytes. Sources of the magics: libblkid's superblock probes.
"""

from __future__ import annotations

import json
import os
from dataclasses import dataclass
from enum import StrEnum
from itertools import pairwise

from distrib.inspection.sandbox import Limits, Sandbox, fd_path
from distrib.printable import printable

_HEAD_BYTES = 72 << 10
_UNTOLD = "something unknown"
_SCAN_BYTES = 64 << 20
_SCAN_STEP_BYTES = 1 << 20
_PARTITIONS_MAX = 128
_BOOT_CODE_BYTES = 16 << 20
_EXTENDED = frozenset({"5", "f", "85"})
_PROTECTIVE = "ee"
_BOOT_CODE = frozenset({"21686148-6449-6E6F-744E-656564454649", "da"})


class Content(StrEnum):
    """What is in a region."""

    EXT = "ext"
    XFS = "xfs"
    FAT = "fat"
    SWAP = "swap"
    BOOT_CODE = "boot code"
    NOTHING = "nothing"
    UNKNOWN = "unknown"


@dataclass(frozen=True)
class Region:
    """A range of the disk. ``told`` is what is in it, for people; ``content`` for us."""

    name: str
    offset: int
    size_bytes: int
    content: Content
    told: str


@dataclass(frozen=True)
class Layout:
    """``label`` is the kind of partition table, None: none; ``faults`` are those of the table."""

    label: str | None
    faults: tuple[str, ...]
    regions: tuple[Region, ...]


# (offset, magic, what): those that no reader here knows.
_UNREAD = (
    (0x10040, b"_BHRfS_M", "btrfs"),
    (0, b"LUKS\xba\xbe", "LUKS"),
    (0, b"hsqs", "squashfs"),
    (0, b"\xe2\xe1\xf5\xe0", "erofs"),
    (1024, b"\xe2\xe1\xf5\xe0", "erofs"),
    (32769, b"CD001", "ISO 9660"),
    (3, b"NTFS    ", "NTFS"),
    (3, b"EXFAT   ", "exFAT"),
    (0x10034, b"ReIsEr", "reiserfs"),
    (0x8000, b"JFS1", "JFS"),
    (1024, b"\x10\x20\xf5\xf2", "f2fs"),
    (0, b"-FVE-FS-", "BitLocker"),
    (4096, b"\xfc\x4e\x2b\xa9", "Linux RAID"),
    (0, b"\xfc\x4e\x2b\xa9", "Linux RAID"),
    (4096, b"\xc6\x85\x73\xf6\x4e\x1a\x45\xca", "bcache"),
    *((512 * sector, b"LABELONE", "LVM") for sector in range(4)),
)


async def layout_of(descriptor: int, sandbox: Sandbox) -> Layout:
    """The layout of a raw disk. Raises ToolFailed where sfdisk runs into a limit."""
    disk_bytes = os.fstat(descriptor).st_size
    ran = await sandbox.run(
        ["sfdisk", "--json", fd_path(descriptor)], fds=(descriptor,), limits=Limits(file_bytes=0)
    )
    label, rows, faults = _table(ran.stdout) if ran.status == 0 else (None, [], [])
    whole = _region("the disk", descriptor, 0, disk_bytes)
    regions: list[Region] = []
    for number, start, size, kind in rows[:_PARTITIONS_MAX]:
        name = f"partition {number}"
        if start < 0 or size <= 0 or start + size > disk_bytes:
            faults.append(f"{name} reaches past the end of the disk")
            regions.append(Region(name, start, size, Content.UNKNOWN, "out of the disk"))
        elif label == "dos" and kind.lower() == _PROTECTIVE:
            faults.append("the GPT that its protective MBR speaks of cannot be read")
            regions.append(Region(name, start, size, Content.UNKNOWN, "a lost GPT"))
        elif kind.lower() not in _EXTENDED:
            regions.append(_region(name, descriptor, start, size, kind=kind))
    if len(rows) > _PARTITIONS_MAX:
        faults.append(f"more than {_PARTITIONS_MAX} partitions")
        # Nobody looks into the rest: a region that no reader knows keeps every check from passing.
        rest = f"{len(rows) - _PARTITIONS_MAX} more partitions"
        regions.append(Region(rest, disk_bytes, 0, Content.UNKNOWN, "not looked at"))
    faults += _overlaps(regions)
    # Whoever mounts the disk as a whole gets what begins where the table is.
    if not rows or whole.told != _UNTOLD:
        regions.insert(0, whole)
    return Layout(label if rows else None, tuple(faults), tuple(regions))


def _table(told: bytes) -> tuple[str | None, list[tuple[str, int, int, str]], list[str]]:
    """Label, (number, start, size, type) of the partitions, faults."""
    try:
        table = json.loads(told)["partitiontable"]
        sector_bytes = int(table.get("sectorsize", 512))
        found = table.get("partitions", [])
        rows = [
            (
                _digits(str(one.get("node", ""))) or str(index),
                int(one["start"]) * sector_bytes,
                int(one["size"]) * sector_bytes,
                str(one.get("type", "")),
            )
            for index, one in enumerate(found, 1)
        ]
        label = printable(str(table.get("label", "")))[:16]
    except (ValueError, KeyError, TypeError, AttributeError):
        return None, [], ["sfdisk told something that cannot be read"]
    return label, rows, []


def _digits(node: str) -> str:
    """sfdisk names a partition by the disk's path and its number: ``/proc/self/fd/7p2``."""
    return node.rpartition("p")[2] if node.rpartition("p")[2].isdigit() else ""


def _overlaps(regions: list[Region]) -> list[str]:
    ordered = sorted(regions, key=lambda region: region.offset)
    return [
        f"{one.name} and {other.name} overlap"
        for one, other in pairwise(ordered)
        if one.offset + one.size_bytes > other.offset
    ]


def _region(name: str, descriptor: int, offset: int, size_bytes: int, *, kind: str = "") -> Region:
    head = os.pread(descriptor, min(_HEAD_BYTES, size_bytes), offset)
    signs = _signs(head)
    read = [sign for sign in signs if isinstance(sign, Content)]
    if len(signs) == 1:
        content = read[0] if read else Content.UNKNOWN
        return Region(name, offset, size_bytes, content, str(signs[0]))
    if signs:
        told = " and ".join(str(sign) for sign in signs)
        return Region(name, offset, size_bytes, Content.UNKNOWN, f"several at once: {told}")
    if kind.upper() in {code.upper() for code in _BOOT_CODE} and size_bytes <= _BOOT_CODE_BYTES:
        return Region(name, offset, size_bytes, Content.BOOT_CODE, "boot code")
    if _is_empty(descriptor, offset, size_bytes):
        return Region(name, offset, size_bytes, Content.NOTHING, "nothing")
    return Region(name, offset, size_bytes, Content.UNKNOWN, _UNTOLD)


def _signs(head: bytes) -> list[Content | str]:
    """What the first bytes look like; more than one thing is a disk that wants to be two."""
    found: list[Content | str] = []
    if head[1080:1082] == b"\x53\xef":
        found.append(Content.EXT)
    if head.startswith(b"XFSB"):
        found.append(Content.XFS)
    if _is_fat(head):
        found.append(Content.FAT)
    if head[4086:4096] in {b"SWAPSPACE2", b"SWAP-SPACE"}:
        found.append(Content.SWAP)
    for offset, magic, what in _UNREAD:
        if head[offset : offset + len(magic)] == magic and what not in found:
            found.append(what)
    return found


def _is_fat(head: bytes) -> bool:
    """By the parameter block that mtools and kernels go by; the text "FAT" in it is a comment."""
    if len(head) < 512 or head[510:512] != b"\x55\xaa":
        return False
    sector_bytes = int.from_bytes(head[11:13], "little")
    return (
        sector_bytes in {512, 1024, 2048, 4096}
        and head[13] in {1, 2, 4, 8, 16, 32, 64, 128}
        and int.from_bytes(head[14:16], "little") > 0
        and head[16] in {1, 2}
        and head[21] in {0xF0, *range(0xF8, 0x100)}
    )


def _is_empty(descriptor: int, offset: int, size_bytes: int) -> bool:
    """Zeros from end to end; of a region with a lot of data we say no without looking further."""
    end, scanned = offset + size_bytes, 0
    while offset < end:
        try:
            offset = os.lseek(descriptor, offset, os.SEEK_DATA)
        except OSError:
            return True  # ENXIO: holes only, up to the end of the file
        count = min(_SCAN_STEP_BYTES, end - offset)
        if count <= 0:
            return True
        if scanned >= _SCAN_BYTES or any(os.pread(descriptor, count, offset)):
            return False
        offset, scanned = offset + count, scanned + count
    return True
