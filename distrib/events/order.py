"""Which of the deliveries that a handler still has to get is next. Pure.

Deliveries have the order of their events. One that waits for its next try is passed by others, but
never by a later event of the same image (any version of the UUID), nor by the ``ProcessPostfix`` of
its run; and nothing of a run goes before the run's ``ProcessPrefix``.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from datetime import datetime, timedelta

_FIRST, _LAST = "ProcessPrefix", "ProcessPostfix"


@dataclass(frozen=True)
class Waiting:
    """A delivery that is queued; ``next_at`` None: not tried yet."""

    event: int
    type: str
    subject: str
    run: str
    next_at: datetime | None

    @property
    def image(self) -> str:
        """The UUID that it is about; empty for none."""
        identifier, at, _version = self.subject.partition("@")
        return identifier if at else ""


def next_of(queue: Iterable[Waiting], now: datetime, *, longest: timedelta) -> Waiting | None:
    """The first that is due and that nothing before it holds; ``queue`` is in order of events.

    A time further ahead than ``longest`` is of a clock that was wrong: it is due.
    """
    images: set[str] = set()
    runs: set[str] = set()
    begun: set[str] = set()
    for one in queue:
        held = one.run in begun or one.image in images or (one.type == _LAST and one.run in runs)
        if not held and _is_due(one, now, longest):
            return one
        if one.image:
            images.add(one.image)
        runs.add(one.run)
        if one.type == _FIRST:
            begun.add(one.run)
    return None


def _is_due(one: Waiting, now: datetime, longest: timedelta) -> bool:
    return one.next_at is None or not now < one.next_at <= now + longest
