"""SHA-512 of a volume, computed while it is still being pulled.

The digest follows the verified prefix: with a relay chain pieces come nearly in order, so that
little is left to hash when the last one arrives. It reads what the volume holds, not what came
over the network.
"""

from __future__ import annotations

import asyncio
import hashlib
import os

from distrib.errors import StorageFailed

CHUNK_BYTES = 4 * 1024 * 1024


class PrefixDigest:
    """SHA-512 over the first ``hashed_bytes`` of a volume open as ``fd``."""

    def __init__(self, fd: int) -> None:
        self._fd = fd
        self._digest = hashlib.sha512()
        self.hashed_bytes = 0

    async def advance(self, to_bytes: int) -> None:
        """Hash on up to ``to_bytes``, in a worker thread. Raises StorageFailed."""
        if to_bytes > self.hashed_bytes:
            await asyncio.to_thread(self._advance, to_bytes)

    def hexdigest(self) -> str:
        return self._digest.hexdigest()

    def _advance(self, to_bytes: int) -> None:
        while self.hashed_bytes < to_bytes:
            length = min(CHUNK_BYTES, to_bytes - self.hashed_bytes)
            try:
                chunk = os.pread(self._fd, length, self.hashed_bytes)
            except OSError as error:
                raise StorageFailed(
                    f"reading the volume at byte {self.hashed_bytes}: {error.strerror}",
                    hint="see the kernel's log for the device",
                ) from None
            if not chunk:
                raise StorageFailed(
                    f"the volume ends at byte {self.hashed_bytes}", hint="it was truncated"
                )
            self._digest.update(chunk)
            self.hashed_bytes += len(chunk)
