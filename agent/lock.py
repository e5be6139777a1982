"""One agent per directory: two would sweep away each other's work."""

from __future__ import annotations

import fcntl
import os
from pathlib import Path

from agent.cache import durable
from distrib.errors import OperatorError

LOCK_FILE = ".agent.lock"


def hold(directory: Path) -> int:
    """Lock ``directory`` for the life of this process; the descriptor that holds the lock.

    Raises OperatorError when another process has it. The kernel lets go at any kind of end."""
    durable.make_directory(directory)
    fd = os.open(directory / LOCK_FILE, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
    try:
        fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError:
        os.close(fd)
        raise OperatorError(
            f"{directory}: another agent works here", hint="one agent per directory and node"
        ) from None
    return fd
