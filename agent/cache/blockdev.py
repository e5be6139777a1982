"""What Linux lets one ask and tell a block device (linux/fs.h); needs root for most of it."""

from __future__ import annotations

import errno
import fcntl
import os
import stat
import struct
from pathlib import Path
from typing import Final

from agent.cache import durable
from distrib.errors import ConfigInvalid, StorageFailed

_BLKROSET: Final = 0x125D
_BLKROGET: Final = 0x125E
_BLKZEROOUT: Final = 0x127F
_BLKSSZGET: Final = 0x1268
_BLKGETSIZE64: Final = 0x80081272


def open_device(device: Path, *, write: bool = False, alone: bool = False) -> int:
    """Open a block device. ``alone`` (O_EXCL) fails while it is mounted or belongs to a RAID, to
    LVM or to swap, and keeps those off while open; plain opens, as QEMU's, are not in its way.

    Raises StorageFailed."""
    flags = os.O_CLOEXEC | (os.O_RDWR if write else os.O_RDONLY) | (os.O_EXCL if alone else 0)
    try:
        fd = os.open(device, flags)
    except OSError as error:
        if error.errno == errno.EBUSY:
            raise StorageFailed(
                f"{device} is in use: mounted, or part of RAID, LVM or swap",
                hint="see `lsblk`; unmount it, or take it out of the pool",
                path=str(device),
            ) from error
        raise StorageFailed(
            f"opening {device}: {error.strerror}",
            hint="see `lsblk` and the kernel's log",
            path=str(device),
        ) from error
    if not stat.S_ISBLK(os.fstat(fd).st_mode):
        os.close(fd)
        raise ConfigInvalid(
            f"{device} is not a block device", hint="name whole devices", path=str(device)
        )
    return fd


def number(device: Path) -> str:
    """A device's ``major:minor``. Raises StorageFailed."""
    with durable.storage_errors("looking at", device):
        found = device.stat().st_rdev
    return f"{os.major(found)}:{os.minor(found)}"


def size_bytes(fd: int) -> int:
    """The size of a device."""
    (size,) = struct.unpack("Q", fcntl.ioctl(fd, _BLKGETSIZE64, bytes(8)))
    return int(size)


def is_read_only(fd: int) -> bool:
    """Whether the kernel refuses writes to the device."""
    (flag,) = struct.unpack("i", fcntl.ioctl(fd, _BLKROGET, bytes(4)))
    return bool(flag)


def set_read_only(device: Path, read_only: bool) -> None:
    """Make the kernel refuse writes to a device, or allow them again, until the next boot.

    Depending on the kernel the opening for writing is refused (EACCES) or only the write (EPERM).
    On a loop device the flag outlives the detaching. Raises StorageFailed."""
    fd = open_device(device)
    try:
        with durable.storage_errors("changing the read-only flag of", device):
            if is_read_only(fd) != read_only:
                fcntl.ioctl(fd, _BLKROSET, struct.pack("i", read_only))
    finally:
        os.close(fd)


def zero_tail(fd: int, start_byte: int) -> None:
    """Write zeros from ``start_byte`` to the end of a device: by hand to the next sector, from
    there by the device itself where it can. Raises OSError."""
    end = size_bytes(fd)
    (sector,) = struct.unpack("i", fcntl.ioctl(fd, _BLKSSZGET, bytes(4)))
    aligned = min(end, -(-start_byte // sector) * sector)
    if aligned > start_byte:
        os.pwrite(fd, bytes(aligned - start_byte), start_byte)
    if end > aligned:
        # What the page cache still has to write must not come after the zeros.
        os.fsync(fd)
        fcntl.ioctl(fd, _BLKZEROOUT, struct.pack("QQ", aligned, end - aligned))
