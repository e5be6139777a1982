"""The images of the model: six versions of three identifiers, each with bytes of its own."""

from __future__ import annotations

from hypothesis import strategies as st

from agent.cache.records import ImageVersion

KIB = 1 << 10
CAPACITY = 1024 * KIB
COW = 64 * KIB

NUMBERS = st.integers(1, 6)


def image(n: int) -> ImageVersion:
    """Six versions of three identifiers, of different sizes."""
    return ImageVersion(
        infohash=f"{n:064x}",
        identifier=f"{n % 3:08x}-0000-4000-8000-000000000000",
        version=f"1.{n}",
        sha512=f"{n:0128x}",
        size_bytes=(96 + 32 * n) * KIB,
        piece_bytes=1 << 14,
    )


def byte(n: int) -> bytes:
    """What every image has at its start; zeros follow."""
    return bytes([n])
