"""Reading what a guest writes, as it grows: QEMU appends a port's bytes to a file.

A file keeps what was written when guest, QEMU or agent dies; a socket would lose it. Its price is
room on the disk, so every channel has a bound.
"""

from __future__ import annotations

import asyncio
import os
from collections.abc import Awaitable, Callable
from pathlib import Path

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
    offset: int = 0,
) -> None:
    """Pass on what is appended to ``path``, from ``offset`` to ``limit_bytes``, until ``ended`` is
    set and nothing is left. Raises whatever ``sink`` raises."""
    with path.open("rb", buffering=0) as file:
        file.seek(offset)
        while offset < limit_bytes:
            # Looked at before reading: what came before the end is read after it.
            last = ended.is_set()
            data = await asyncio.to_thread(file.read, min(CHUNK_BYTES, limit_bytes - offset))
            if data:
                offset += len(data)
                await sink(data)
            elif last:
                return
            else:
                await set_or_after(ended, poll_s)


async def set_or_after(event: asyncio.Event, limit_s: float) -> None:
    """Return once ``event`` is set, or ``limit_s`` later."""
    try:
        async with asyncio.timeout(limit_s):
            await event.wait()
    except TimeoutError:
        return
