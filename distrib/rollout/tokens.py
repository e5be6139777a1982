"""Leave to fetch otherwise than by the swarm: how much of it is given, and to whom first. Pure.

A farm that loses its swarm must not storm the seeder. So only what may come *from a seeder* costs
something: it is taken from one bucket for the whole farm, which fills at a set rate. Who may ask
other nodes alone costs nothing. Who waits is answered in the order of asking.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace
from datetime import datetime, timedelta

GRANT_BYTES = 256 << 20
"""What is given at once at most: who wants more asks again."""

FORGET = timedelta(seconds=30)
"""Who has not asked again for so long does not wait any more (nodes ask every 5 s)."""

BURST_S = 4.0
"""The bucket holds what fills it in so many seconds, and one grant at least."""


@dataclass(frozen=True)
class Asked:
    """A node's wish. ``costs``: it would be answered with leave to ask a seeder."""

    node: str
    infohash: str
    pieces: int
    piece_bytes: int
    costs: bool
    at: datetime


@dataclass(frozen=True)
class Granted:
    """Leave to fetch ``pieces``."""

    asked: Asked
    pieces: int


@dataclass(frozen=True)
class Bucket:
    """What may be given: ``left_bytes`` at the time ``at``; it may be overdrawn by one grant."""

    rate_bps: int
    left_bytes: float = 0.0
    at: datetime | None = None

    def filled(self, now: datetime) -> Bucket:
        """The same, later. Full at first."""
        most = max(self.rate_bps * BURST_S, 1.0)
        if self.at is None:
            return replace(self, left_bytes=most, at=now)
        passed_s = max(0.0, (now - self.at).total_seconds())
        return replace(
            self, left_bytes=min(most, self.left_bytes + passed_s * self.rate_bps), at=now
        )

    def without(self, taken_bytes: int) -> Bucket:
        """What is left."""
        return replace(self, left_bytes=self.left_bytes - taken_bytes)


@dataclass(frozen=True)
class Queue:
    """Who waits, in the order of first asking, and the bucket."""

    bucket: Bucket
    waiting: tuple[Asked, ...] = ()

    def with_asked(self, asked: Asked) -> Queue:
        """Take a wish in. A repeated one keeps its place."""
        key = (asked.node, asked.infohash)
        if any((one.node, one.infohash) == key for one in self.waiting):
            kept = (asked if (one.node, one.infohash) == key else one for one in self.waiting)
            return replace(self, waiting=tuple(kept))
        return replace(self, waiting=(*self.waiting, asked))

    def served(self, now: datetime) -> tuple[Queue, tuple[Granted, ...]]:
        """Give what there is."""
        bucket, granted, left = self.bucket.filled(now), [], []
        for one in self._heard_of(now):
            pieces = min(one.pieces, max(1, GRANT_BYTES // one.piece_bytes))
            if one.costs and bucket.left_bytes <= 0:
                left.append(one)
                continue
            if one.costs:
                bucket = bucket.without(pieces * one.piece_bytes)
            granted.append(Granted(one, pieces if one.costs else one.pieces))
        return replace(self, bucket=bucket, waiting=tuple(left)), tuple(granted)

    def _heard_of(self, now: datetime) -> Iterator[Asked]:
        return (one for one in self.waiting if now - one.at <= FORGET)
