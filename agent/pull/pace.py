"""A rate that several share: each takes what it is about to use, and waits for its turn."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from typing import Final

BURST_S: Final = 0.25
"""What was not used in so long may be used at once; before that it is lost."""


class Pace:
    """``rate_bps`` is asked at each turn, bytes per second; 0: no limit."""

    def __init__(self, rate_bps: Callable[[], int]) -> None:
        self._rate_bps = rate_bps
        self._free_s = float("-inf")

    async def take(self, size_bytes: int) -> None:
        """Wait until so many bytes are within the rate."""
        rate_bps = self._rate_bps()
        if rate_bps <= 0:
            return
        now_s = asyncio.get_running_loop().time()
        self._free_s = max(self._free_s, now_s - BURST_S) + size_bytes / rate_bps
        await asyncio.sleep(max(0.0, self._free_s - now_s))
