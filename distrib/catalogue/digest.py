"""SHA-512 of large files, in steps: whoever waits for it can be cancelled between two."""

from __future__ import annotations

import asyncio
import hashlib
import os
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from hashlib import _Hash

_STEP_BYTES = 32 << 20
_CHUNK_BYTES = 1 << 20


async def sha512_state(file: Path, *, limit_bytes: int | None = None) -> _Hash:
    """The state after the bytes of ``file``, or the first ``limit_bytes`` of them.

    Raises OSError.
    """
    digest = hashlib.sha512()
    with file.open("rb") as stream:
        left = os.fstat(stream.fileno()).st_size if limit_bytes is None else limit_bytes

        def step(most: int) -> int:
            done = 0
            while done < most and (chunk := stream.read(min(_CHUNK_BYTES, most - done))):
                digest.update(chunk)
                done += len(chunk)
            return done

        while left > 0 and (done := await asyncio.to_thread(step, min(left, _STEP_BYTES))):
            left -= done
    return digest


async def sha512_of(file: Path) -> str:
    """In hex. Raises OSError."""
    return (await sha512_state(file)).hexdigest()
