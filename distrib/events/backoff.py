"""When a delivery that failed is tried again, and when no more. Pure.

The end is a sum of waits, not a date: neither a controller that was down nor a clock that jumps
makes an event be given up untried.
"""

from __future__ import annotations

from dataclasses import dataclass

JITTER = 0.25
_DOUBLINGS_MAX = 60


@dataclass(frozen=True)
class Backoff:
    """Doubles from ``first_s`` up to ``longest_s``, until the waits add up to ``give_up_s``."""

    first_s: float
    longest_s: float
    give_up_s: float

    def wait_s(self, failures: int) -> float:
        """Seconds to wait after so many failures (1 or more), without jitter."""
        doubled = self.first_s * 2.0 ** min(failures - 1, _DOUBLINGS_MAX)
        return min(doubled, max(self.first_s, self.longest_s))

    def jittered_s(self, failures: int, dice: float) -> float:
        """The same, up to a quarter shorter or longer; ``dice`` is in [0, 1)."""
        return self.wait_s(failures) * (1 - JITTER + 2 * JITTER * dice)

    def is_over(self, failures: int) -> bool:
        """Whether to give up after so many failures."""
        waited, failed = 0.0, 0
        longest = max(self.first_s, self.longest_s)
        while failed + 1 < failures and waited < self.give_up_s:
            failed += 1
            wait = self.wait_s(failed)
            if wait >= longest:
                return waited + longest * (failures - failed) >= self.give_up_s
            waited += wait
        return waited >= self.give_up_s
