"""A rate that several share: each takes what it is about to use, and waits for its turn."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from typing import Final

BURST_S: Final = 0.25
"""What was not used in so long may be used at once; before that it is lost."""

LOOK_S: Final = 0.25
"""A rate that was changed meanwhile counts for who waits so soon."""


class Pace:
    """``rate_bps`` is asked at each turn, bytes per second; 0: no limit. First come, first go."""

    def __init__(self, rate_bps: Callable[[], int]) -> None:
        self._rate_bps = rate_bps
        self._turn = asyncio.Lock()
        self._owed_bytes = 0.0
        self._seen_s = float("-inf")

    async def take(self, size_bytes: int) -> None:
        """Wait until what was taken before is within the rate, then take so many bytes."""
        async with self._turn:
            while (owed_s := self._owed_s()) > 0:  # noqa: ASYNC110 - time is what is awaited
                await asyncio.sleep(min(owed_s, LOOK_S))
            self._owed_bytes += size_bytes

    def _owed_s(self) -> float:
        now_s, rate_bps = asyncio.get_running_loop().time(), self._rate_bps()
        passed_s, self._seen_s = now_s - self._seen_s, now_s
        if rate_bps <= 0:
            self._owed_bytes = 0.0
            return 0.0
        self._owed_bytes = max(self._owed_bytes - passed_s * rate_bps, -BURST_S * rate_bps)
        return self._owed_bytes / rate_bps
