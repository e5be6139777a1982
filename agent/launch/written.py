"""When a file that a guest writes to has grown, and whether anybody can still write to it.

QEMU holds the files of a guest's ports open until it ends, when all its disks are closed: so a file
that nobody has open for writing is a QEMU that is gone. libvirt says so up to 200 ms later: it
looks that often whether a process that it ended is there still.
"""

from __future__ import annotations

import asyncio
import ctypes
import fcntl
import os
import signal
from collections.abc import Callable
from pathlib import Path
from types import TracebackType
from typing import Final, Self

# linux/inotify.h
_IN_MODIFY: Final = 0x2
_IN_CLOSE_WRITE: Final = 0x8
_EVENTS_BYTES: Final = 64 << 10


def is_let_go(path: Path) -> bool:
    """Whether nobody has ``path`` open for writing. False where that cannot be told (a file system
    without leases, a file of another account), and when there is no such file."""
    try:
        descriptor = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
    except OSError:
        return False
    try:
        # A read lease is given only on a file that nobody writes (fcntl(2)). Whoever opens it
        # meanwhile has a signal sent to us, and that of leases would end the agent.
        fcntl.fcntl(descriptor, fcntl.F_SETSIG, signal.SIGURG)
        fcntl.fcntl(descriptor, fcntl.F_SETLEASE, fcntl.F_RDLCK)
        fcntl.fcntl(descriptor, fcntl.F_SETLEASE, fcntl.F_UNLCK)
    except OSError:
        return False
    finally:
        os.close(descriptor)
    return True


class Written:
    """Calls ``on_change`` on the event loop when ``path`` was written to or let go, once for each
    ``arm``: whoever writes all the time must not keep the loop busy. A hint only: where the kernel
    gives no watch (inotify(7)), nothing is called."""

    def __init__(self, path: Path, on_change: Callable[[], object]) -> None:
        self._path = path
        self._on_change = on_change
        self._descriptor = -1
        self._armed = False

    def __enter__(self) -> Self:
        # No binding in the standard library.
        libc = ctypes.CDLL(None, use_errno=True)
        self._descriptor = libc.inotify_init1(os.O_NONBLOCK | os.O_CLOEXEC)
        if self._descriptor < 0:
            return self
        mask = _IN_MODIFY | _IN_CLOSE_WRITE
        if libc.inotify_add_watch(self._descriptor, os.fsencode(self._path), mask) < 0:
            self._close()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self._disarm()
        self._close()

    def arm(self) -> None:
        """Tell of the next change, and of those since the last one was told of."""
        if self._descriptor >= 0 and not self._armed:
            asyncio.get_running_loop().add_reader(self._descriptor, self._changed)
            self._armed = True

    def _changed(self) -> None:
        self._disarm()
        try:
            os.read(self._descriptor, _EVENTS_BYTES)
        except BlockingIOError:
            return
        self._on_change()

    def _disarm(self) -> None:
        if self._armed:
            asyncio.get_running_loop().remove_reader(self._descriptor)
            self._armed = False

    def _close(self) -> None:
        if self._descriptor >= 0:
            os.close(self._descriptor)
            self._descriptor = -1
