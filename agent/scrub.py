"""When which volume is read again, and how fast: pure.

Each volume is due before ``every_s`` have passed since it was last known to be good, by up to a
quarter of that earlier: a share that follows from the node, the volume and that time, so that a
farm which got an image at one moment does not read it again at one moment.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterable
from dataclasses import dataclass
from datetime import datetime, timedelta
from typing import Final

SPREAD: Final = 0.25


@dataclass(frozen=True)
class Subject:
    """A sealed volume. ``good_at``: when all of it was last known to be good; ``piece``: where a
    pass that was begun goes on, 0 where none was."""

    infohash: str
    good_at: datetime
    piece: int = 0


def due_at(subject: Subject, *, node: str, every_s: float) -> datetime:
    """When a pass over the volume begins."""
    seed = f"{node} {subject.infohash} {subject.good_at.isoformat()}"
    share = int.from_bytes(hashlib.sha256(seed.encode()).digest()[:8]) / 2**64
    return subject.good_at + timedelta(seconds=every_s * (1 - SPREAD * share))


def next_subject(subjects: Iterable[Subject], *, node: str, every_s: float) -> Subject | None:
    """Whose turn is next: a pass that was begun goes on before another begins."""
    return min(
        subjects,
        key=lambda one: (one.piece == 0, due_at(one, node=node, every_s=every_s), one.infohash),
        default=None,
    )


class Pace:
    """A bound on a rate: after ``count`` bytes the next may not come before their time is over.

    What was not used is not saved up: a pause is not followed by a burst."""

    def __init__(self, rate_bps: float) -> None:
        self._rate_bps = rate_bps
        self._free_at_s = 0.0

    def took(self, count: int, *, now_s: float) -> float:
        """So many bytes were read, begun at ``now_s``: when the next may be read."""
        self._free_at_s = max(self._free_at_s, now_s) + count / self._rate_bps
        return self._free_at_s
