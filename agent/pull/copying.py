"""Copies pieces of older versions into a volume that is being pulled.

Blocks are shared where the file system can (FICLONERANGE: XFS, btrfs), else the bytes are copied.
What is copied counts as held because its hash in the piece layers says so; the bytes themselves are
looked at by the pull's SHA-512.
"""

from __future__ import annotations

import asyncio
import errno
import fcntl
import os
import struct
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Final

import structlog

from agent.finishing import to_the_end
from agent.pull.delta import Run
from agent.pull.source import PieceSink
from distrib.swarm.torrent import TorrentInfo

log = structlog.get_logger(__name__)

STEP_BYTES: Final = 8 << 20
"""Copied at a time: the pull can end between two steps."""

_FICLONERANGE: Final = 0x4020940D  # linux/fs.h
_RANGE: Final = struct.Struct("=qQQQ")
_CANNOT_SHARE: Final = frozenset(
    {errno.EOPNOTSUPP, errno.EXDEV, errno.EINVAL, errno.ENOTTY, errno.ENOSYS, errno.EPERM}
)


@dataclass
class DiskRate:
    """Bytes per second that copying goes at: assumed, until copies were timed."""

    bps: float
    _timed: bool = field(default=False, repr=False)

    def note(self, copied_bytes: int, took_s: float) -> None:
        """A copy of so many bytes took so long; short ones say nothing."""
        if copied_bytes < STEP_BYTES or took_s <= 0:
            return
        bps = copied_bytes / took_s
        self.bps = (self.bps + bps) / 2 if self._timed else bps
        self._timed = True


def share_range(source_fd: int, source_at: int, length: int, target_fd: int, at: int) -> bool:
    """Make a range of one file stand in another without moving bytes; False where that is
    impossible. Raises OSError for faults."""
    try:
        fcntl.ioctl(target_fd, _FICLONERANGE, _RANGE.pack(source_fd, source_at, length, at))
    except OSError as error:
        if error.errno in _CANNOT_SHARE:
            return False
        raise
    return True


class Copying:
    """A source of a pull: brings the pieces of ``runs`` from the volumes at ``paths``.

    Their bytes are not offered to the sink but written to ``target_fd``; ``on_copied`` hears of
    each step: first piece and count. It never ends a pull: what it cannot copy is fetched."""

    name = "previous-version"

    def __init__(
        self,
        info: TorrentInfo,
        runs: tuple[Run, ...],
        paths: Mapping[str, Path],
        target_fd: int,
        *,
        on_copied: Callable[[int, int], None],
        disk: DiskRate,
    ) -> None:
        self._info = info
        self._runs = runs
        self._paths = paths
        self._target_fd = target_fd
        self._on_copied = on_copied
        self._disk = disk
        self._can_share = True

    async def bring(self, sink: PieceSink) -> None:
        """See ``Source.bring``; ends early, with a warning, when copying fails."""
        moved_bytes, began_s = 0, time.monotonic()
        fds: dict[str, int] = {}
        try:
            for base, path in self._paths.items():
                fds[base] = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
            for run in self._steps():
                # A thread cannot be cancelled, and it uses the descriptors.
                moved_bytes += await to_the_end(asyncio.to_thread(self._copy, run, fds[run.base]))
                self._on_copied(run.piece, run.count)
            if moved_bytes:
                # Else the rate would be that of the page cache.
                await to_the_end(asyncio.to_thread(os.fdatasync, self._target_fd))
        except OSError as error:
            log.warning("copy-ended", infohash=sink.infohash, why=error.strerror)
        finally:
            for fd in fds.values():
                os.close(fd)
        self._disk.note(moved_bytes, time.monotonic() - began_s)

    def _steps(self) -> list[Run]:
        most = max(STEP_BYTES // self._info.piece_bytes, 1)
        return [
            Run(run.base, run.base_piece + at, run.piece + at, min(most, run.count - at))
            for run in self._runs
            for at in range(0, run.count, most)
        ]

    def _copy(self, run: Run, source_fd: int) -> int:
        """Bytes that had to be moved."""
        piece_bytes = self._info.piece_bytes
        source_at, at = run.base_piece * piece_bytes, run.piece * piece_bytes
        length = sum(self._info.piece_size(i) for i in range(run.piece, run.piece + run.count))
        if self._can_share:
            if share_range(source_fd, source_at, length, self._target_fd, at):
                return 0
            # The end of an image need not be the end of a block: only whole pieces tell.
            self._can_share = length % piece_bytes != 0
        left = length
        while left:
            data = os.pread(source_fd, left, source_at)
            if not data:
                raise OSError(errno.EIO, "the older volume ends early")
            written = os.pwrite(self._target_fd, data, at)
            source_at, at, left = source_at + written, at + written, left - written
        return length
