"""Pre-staging: which nodes get an image that queued jobs want, and who asks too often.

Pure: what is known of the nodes, and the time, are given.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Iterable
from dataclasses import dataclass, field
from datetime import datetime, timedelta

WINDOW = timedelta(minutes=1)


@dataclass(frozen=True)
class Wish:
    """What is asked for. ``user``: whose job it is, empty where nobody said; ``nodes``: a selector,
    empty: any that the site allows; ``near``: a node that would rather have it itself."""

    image: str
    job: str
    asked_by: str
    user: str = ""
    nodes: str = ""
    near: str = ""


@dataclass(frozen=True)
class Candidate:
    """A node that may get the image. ``free_bytes`` None: it has not said."""

    node: str
    free_bytes: int | None = None
    leases: int = 0
    failed: bool = False

    def has_room(self, size_bytes: int) -> bool:
        """Whether the image fits without anything going for it."""
        return self.free_bytes is not None and self.free_bytes >= size_bytes


def choose(
    candidates: Iterable[Candidate], *, missing: int, size_bytes: int, near: str = ""
) -> tuple[str, ...]:
    """Up to ``missing`` nodes: where it did not just fail, with room, idle ones first."""
    ordered = sorted(
        candidates,
        key=lambda one: (
            one.failed,
            one.node != near,
            not one.has_room(size_bytes),
            one.leases,
            one.node,
        ),
    )
    return tuple(sorted(one.node for one in ordered[: max(missing, 0)]))


@dataclass
class Rate:
    """Who has asked how often within the last minute. Bounded: who is quiet is forgotten."""

    per_minute: int
    _said: dict[str, deque[datetime]] = field(default_factory=dict)

    def allows(self, who: str, now: datetime) -> bool:
        """Whether ``who`` may ask once more; that is counted."""
        for name in [name for name, said in self._said.items() if said[-1] <= now - WINDOW]:
            del self._said[name]
        said = self._said.setdefault(who, deque())
        while said and said[0] <= now - WINDOW:
            said.popleft()
        if len(said) >= self.per_minute:
            return False
        said.append(now)
        return True
