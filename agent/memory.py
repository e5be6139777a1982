"""Give memory back to the node: a pull's buffers are gone, glibc keeps their pages."""

from __future__ import annotations

import ctypes


def give_back() -> None:
    """malloc_trim(3): return free pages of all arenas to the kernel. Blocks for milliseconds.

    Nothing where the C library has no such call."""
    trim = getattr(ctypes.CDLL(None), "malloc_trim", None)
    if trim is not None:
        trim(0)
