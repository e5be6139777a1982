"""Reading a sealed volume again, as the disk has it: for `verify` and for the scrub.

The page cache may hold good bytes over bad ones of the disk, so reads go past it: with O_DIRECT,
and where a file system has none (hostfs, some network file systems) by dropping the piece's pages
first. O_DIRECT leaves in memory what jobs have there, and puts nothing in its place.
"""

from __future__ import annotations

import errno
import mmap
import os
from collections.abc import Sequence
from pathlib import Path
from typing import Final

from distrib.swarm.merkle import piece_hash
from distrib.swarm.pieces import piece_leaves
from distrib.swarm.torrent import TorrentInfo

_ALIGN: Final = 4096
_NO_DIRECT: Final = frozenset({errno.EINVAL, errno.EOPNOTSUPP, errno.ENOTBLK})


class Rereading:
    """A volume's pieces against their hashes. Opened anew for each piece: what is open could not
    be evicted. Not for two threads at once."""

    def __init__(self, path: Path, hashes: Sequence[bytes], info: TorrentInfo) -> None:
        """``hashes`` of all pieces, checked against the info dictionary."""
        self._path = path
        self._hashes = hashes
        self._info = info
        self._buffer = mmap.mmap(-1, -(-info.piece_bytes // _ALIGN) * _ALIGN)
        self._direct = True

    def is_good(self, index: int) -> bool:
        """Whether the disk holds piece ``index``. A piece that cannot be read is not good. Raises
        FileNotFoundError when the volume is not there any more."""
        try:
            data = self._read(index)
        except FileNotFoundError:
            raise
        except OSError:
            return False
        return piece_hash(data, leaves=piece_leaves(self._info)) == self._hashes[index]

    def close(self) -> None:
        self._buffer.close()

    def _read(self, index: int) -> bytes:
        start, length = index * self._info.piece_bytes, self._info.piece_size(index)
        if self._direct:
            try:
                return self._read_direct(start, length)
            except OSError as error:
                if error.errno not in _NO_DIRECT:
                    raise
                self._direct = False
        return self._read_dropped(start, length)

    def _read_direct(self, start: int, length: int) -> bytes:
        fd = os.open(self._path, os.O_RDONLY | os.O_DIRECT | os.O_CLOEXEC)
        try:
            # The end of a file may lie inside a block; what is read past it is not there.
            wanted = -(-length // _ALIGN) * _ALIGN
            with memoryview(self._buffer) as view, view[:wanted] as whole:
                got = os.preadv(fd, [whole], start)
            return self._buffer[: min(got, length)]
        finally:
            os.close(fd)

    def _read_dropped(self, start: int, length: int) -> bytes:
        fd = os.open(self._path, os.O_RDONLY | os.O_CLOEXEC)
        try:
            os.posix_fadvise(fd, start, length, os.POSIX_FADV_DONTNEED)
            return os.pread(fd, length, start)
        finally:
            os.close(fd)
