"""One process per directory: two would undo each other's work."""

from __future__ import annotations

import fcntl
import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from distrib.errors import Conflict, StorageFailed


def hold(file: Path, *, who: str, hint: str) -> int:
    """Lock ``file`` for the life of this process; the descriptor that holds the lock.

    ``who``: what may run there only once. Raises Conflict when another process has the lock, and
    StorageFailed where the directory cannot be written to; the kernel lets go at any kind of
    end."""
    try:
        file.parent.mkdir(parents=True, exist_ok=True)
        fd = os.open(file, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
    except OSError as error:
        raise StorageFailed(
            f"{who}: {file.parent} cannot be written to: {error.strerror}",
            hint="look at its owner, its mode, and whether its file system is mounted read-only",
            path=str(file.parent),
        ) from error
    try:
        fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        os.close(fd)
        raise Conflict(
            f"another {who} runs on {file.parent}", hint=hint, path=str(file.parent)
        ) from None
    return fd


@contextmanager
def alone(file: Path, *, who: str, hint: str) -> Iterator[None]:
    """Hold the lock while the block runs. Raises Conflict."""
    fd = hold(file, who=who, hint=hint)
    try:
        yield
    finally:
        os.close(fd)
