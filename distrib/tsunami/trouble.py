"""Who is to blame when a chunk does not arrive: sources set aside, pairs parted, targets given up.

A source is set aside for a minute when a target had wrong bytes from it, unless that target says so
of others too; for an hour when two say so; for a minute after three failures in a row at two
targets. A pair that failed is parted for a while, longer each time. A target that failed eight
times in a row, with at least three sources where there are as many, is given up. The origin is
never set aside: if what it has is wrong, nothing can be right.
"""

from __future__ import annotations

from collections import Counter, defaultdict
from enum import Enum

WRONG_LIMIT = 2
FAILURES_LIMIT = 3
TARGET_LIMIT = 8
PART_FIRST_S = 2.0
PART_LONGEST_S = 60.0
ASIDE_S = 60.0
ASIDE_WRONG_S = 3600.0


class Fault(Enum):
    """How a transfer failed."""

    WRONG = "wrong bytes"
    LOST = "not delivered"


class Trouble:
    """Failures so far, by source, target and pair."""

    def __init__(self) -> None:
        self._wrong: defaultdict[str, set[str]] = defaultdict(set)
        self._accused_by: defaultdict[str, set[str]] = defaultdict(set)
        self._failing: defaultdict[str, Counter[str]] = defaultdict(Counter)
        self._target: defaultdict[str, Counter[str]] = defaultdict(Counter)
        self._pairs: Counter[tuple[str, str]] = Counter()

    def worked(self, source: str, target: str) -> None:
        """A chunk arrived."""
        self._failing.pop(source, None)
        self._target.pop(target, None)
        self._pairs.pop((source, target), None)

    def failed(self, source: str, target: str, fault: Fault) -> float:
        """A chunk did not; for how many seconds the two are kept apart."""
        if fault is Fault.WRONG:
            self._wrong[source].add(target)
            self._accused_by[target].add(source)
        self._failing[source][target] += 1
        self._target[target][source] += 1
        self._pairs[source, target] += 1
        doublings = min(self._pairs[source, target] - 1, 10)
        return float(min(PART_FIRST_S * 2**doublings, PART_LONGEST_S))

    def aside_s(self, source: str) -> float:
        """For how many seconds a source is set aside; 0 while it is not."""
        if len(self._wrong[source]) >= WRONG_LIMIT:
            return ASIDE_WRONG_S
        if any(len(self._accused_by[target]) == 1 for target in self._wrong[source]):
            return ASIDE_S
        failing = self._failing[source]
        if failing.total() >= FAILURES_LIMIT and len(failing) > 1:
            return ASIDE_S
        return 0.0

    def is_hopeless(self, target: str, *, sources: int) -> bool:
        """Whether a target is to be given up, ``sources`` being there."""
        failures = self._target[target]
        return failures.total() >= TARGET_LIMIT and len(failures) >= min(3, sources)

    def forgive(self, source: str) -> None:
        """It gets another chance."""
        self._failing.pop(source, None)
        self._wrong.pop(source, None)
