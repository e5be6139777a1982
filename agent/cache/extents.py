"""How much of a file is its own: what a reflink copy does not share (fiemap, linux/fiemap.h)."""

from __future__ import annotations

import fcntl
import os
import struct
from pathlib import Path
from typing import Final

_FS_IOC_FIEMAP: Final = 0xC020660B
_SYNC: Final = 0x1
_LAST: Final = 0x1
_SHARED: Final = 0x2000
_HEADER: Final = struct.Struct("=QQIIII")
_EXTENT: Final = struct.Struct("=QQQQQIIII")
_BATCH: Final = 512


def own_bytes(path: Path) -> int:
    """The bytes in extents that no other file shares. What was written and is not on the disk
    yet is flushed first. Raises OSError, also where the file system does not tell."""
    fd = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
    try:
        return _own_bytes(fd)
    finally:
        os.close(fd)


def _own_bytes(fd: int) -> int:
    own = start = 0
    while True:
        asked = bytearray(_HEADER.size + _BATCH * _EXTENT.size)
        _HEADER.pack_into(asked, 0, start, (1 << 64) - 1 - start, _SYNC, 0, _BATCH, 0)
        fcntl.ioctl(fd, _FS_IOC_FIEMAP, asked)
        count = _HEADER.unpack_from(asked)[3]
        if not count:
            return own
        for index in range(count):
            logical, _, length, _, _, flags, *_ = _EXTENT.unpack_from(
                asked, _HEADER.size + index * _EXTENT.size
            )
            own += 0 if flags & _SHARED else length
            start = logical + length
            if flags & _LAST:
                return own
