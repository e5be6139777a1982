"""Reading what a guest writes, as it grows: QEMU appends a port's bytes to a file.

A file keeps what was written when guest, QEMU or agent dies; a socket would lose it. Its price is
room on the disk, so every channel has a bound.
"""

from __future__ import annotations

import asyncio
import os
from collections.abc import Awaitable, Callable
from pathlib import Path

from distrib.errors import LaunchFailed

CHUNK_BYTES = 256 << 10


def create(path: Path) -> None:
    """Make the empty file before QEMU opens it, readable by its owner alone."""
    os.close(os.open(path, os.O_CREAT | os.O_EXCL | os.O_WRONLY | os.O_CLOEXEC, 0o600))


async def pump(
    path: Path,
    sink: Callable[[bytes], Awaitable[None]],
    *,
    ended: asyncio.Event,
    poll_s: float,
    limit_bytes: int,
) -> None:
    """Pass on what is appended to ``path`` until ``ended`` is set and nothing is left.

    Raises LaunchFailed past ``limit_bytes``, and whatever ``sink`` raises."""
    total_bytes = 0
    with path.open("rb", buffering=0) as file:
        while True:
            # Looked at before reading: what came before the end is read after it.
            last = ended.is_set()
            data = file.read(CHUNK_BYTES)
            if data:
                total_bytes += len(data)
                if total_bytes > limit_bytes:
                    raise LaunchFailed(
                        f"the guest wrote more than {limit_bytes} bytes to {path.name}",
                        hint="the job may write large results to its scratch disk or to storage",
                    )
                await sink(data)
            elif last:
                return
            else:
                await _sleep_or_ended(ended, poll_s)


async def _sleep_or_ended(ended: asyncio.Event, delay_s: float) -> None:
    try:
        async with asyncio.timeout(delay_s):
            await ended.wait()
    except TimeoutError:
        return
