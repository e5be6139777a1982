"""The block devices that a node gives to the cache, and which of them suits an image."""

from __future__ import annotations

import hashlib
import os
from collections.abc import Collection, Sequence
from pathlib import Path
from typing import Final

from agent.cache import blockdev
from distrib.errors import ConfigInvalid, NoSpace, TargetTooSmall

_SAMPLES: Final = 16
_SAMPLE_BYTES: Final = 4096


class DevicePool:
    """Whole devices, by the names that they were given; ``sizes`` in bytes."""

    def __init__(self, devices: Sequence[Path]) -> None:
        """Raises ConfigInvalid for what is no device or is named twice, StorageFailed for a
        device that others use."""
        self.sizes = _measure(devices)

    def choose(self, size_bytes: int, taken: Collection[Path]) -> Path:
        """The smallest free device that is large enough. Raises TargetTooSmall or NoSpace."""
        largest = max(self.sizes.values(), default=0)
        if size_bytes > largest:
            raise TargetTooSmall(
                f"{size_bytes} bytes are needed, the largest device of the pool has {largest}",
                hint="add a larger device to the pool",
                need_bytes=size_bytes,
                free_bytes=0,
            )
        free = {d: size for d, size in self.sizes.items() if d not in taken}
        enough = [(size, d) for d, size in free.items() if size >= size_bytes]
        if not enough:
            raise NoSpace(
                f"{size_bytes} bytes are needed, and every device that is large enough is taken "
                f"({len(taken)} of {len(self.sizes)})",
                hint="add a device to the pool, unpin or evict images, or end jobs",
                need_bytes=size_bytes,
                free_bytes=max(free.values(), default=0),
            )
        return min(enough)[1]


def _measure(devices: Sequence[Path]) -> dict[Path, int]:
    sizes: dict[Path, int] = {}
    numbers: dict[int, Path] = {}
    for device in devices:
        if not device.is_absolute():
            raise ConfigInvalid(f"device {device}: not an absolute path", hint="/dev/…")
        fd = blockdev.open_device(device, alone=True)
        try:
            twin = numbers.setdefault(os.fstat(fd).st_rdev, device)
            sizes[device] = blockdev.size_bytes(fd)
        finally:
            os.close(fd)
        if twin is not device:
            raise ConfigInvalid(f"{twin} and {device} are one device", hint="name each device once")
    return sizes


def sample(device: Path, size_bytes: int) -> str:
    """A digest of evenly spread blocks, the first and the last among them.

    Raises OSError."""
    digest = hashlib.sha256()
    last = max(0, size_bytes - _SAMPLE_BYTES)
    fd = os.open(device, os.O_RDONLY | os.O_CLOEXEC)
    try:
        for index in range(_SAMPLES):
            digest.update(os.pread(fd, _SAMPLE_BYTES, last * index // (_SAMPLES - 1)))
    finally:
        os.close(fd)
    return digest.hexdigest()
