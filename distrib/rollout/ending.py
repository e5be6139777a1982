"""Ending what runs from denied images: which node is to be told so now, and who was ended.

An ending is in force until ``until``, or until the denial is taken back. Whatever node's newest
report has leases of the image while it is online is told to end them, and told again until the
report has none: after ``FIRST_WAIT``, then twice that each time, up to ``LONGEST_WAIT``. A node
that was away is told when it returns. So it is bounded in time and rate, and safe to repeat.

Pure: fleet and time are given.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field, replace
from datetime import datetime, timedelta
from typing import Protocol

from distrib.bus.messages import EndUses, ImageReport, LeaseHolder

FIRST_WAIT = timedelta(seconds=5)
LONGEST_WAIT = timedelta(minutes=5)
IN_FORCE = timedelta(days=30)


class Reports(Protocol):
    """What is known of the nodes."""

    def online(self) -> set[str]:
        """The nodes that are connected."""
        ...

    def held(self, node: str, infohash: str) -> ImageReport | None:
        """What the node's newest report says of the torrent."""
        ...


@dataclass(frozen=True)
class Ending:
    """All uses of an image version are to be ended."""

    identifier: str
    version: str
    infohash: str
    text: str
    asked_by: str
    until: datetime

    @property
    def image(self) -> str:
        """``UUID@VERSION``."""
        return f"{self.identifier}@{self.version}"


@dataclass(frozen=True)
class Ordered:
    """A node that was told. ``holders``: whom it had when it was told first, by lease."""

    tries: int
    next_at: datetime
    holders: Mapping[str, LeaseHolder]
    leases: int


@dataclass(frozen=True)
class EndedUses:
    """What a node has ended, for the audit. ``leases`` may be more than ``holders``."""

    node: str
    ending: Ending
    leases: int
    holders: tuple[LeaseHolder, ...]


@dataclass
class Endings:
    """Those in force, by ``UUID@VERSION``, and what was told to whom.

    ``unsaved``: what nodes have ended since its owner has cleared it."""

    in_force: dict[str, Ending] = field(default_factory=dict)
    unsaved: list[EndedUses] = field(default_factory=list)
    _ordered: dict[tuple[str, str], Ordered] = field(default_factory=dict)

    def replace(self, endings: Iterable[Ending]) -> None:
        """These are in force from now on."""
        self.in_force = {one.image: one for one in endings}
        self._ordered = {key: one for key, one in self._ordered.items() if key[1] in self.in_force}

    def look(self, fleet: Reports, now: datetime) -> dict[str, tuple[EndUses, ...]]:
        """Who is to be told now. What it gives is taken as said."""
        self.unsaved += self._ended(fleet)
        orders: dict[str, tuple[EndUses, ...]] = {}
        if not self._still(now):
            return orders
        for node in fleet.online():
            for image, ending in self.in_force.items():
                held = _in_use(fleet, node, ending)
                told = self._ordered.get((node, image))
                if held is None or (told is not None and now < told.next_at):
                    continue
                self._ordered[node, image] = _told(told, held, now)
                order = EndUses(infohash=ending.infohash, text=ending.text)
                orders[node] = (*orders.get(node, ()), order)
        return orders

    def _ended(self, fleet: Reports) -> list[EndedUses]:
        """The nodes that were told and have nothing left; each is given once."""
        found: list[EndedUses] = []
        online = fleet.online() if self._ordered else set()
        for (node, image), told in list(self._ordered.items()):
            ending = self.in_force.get(image)
            if ending is None or node not in online or _in_use(fleet, node, ending) is not None:
                continue
            del self._ordered[node, image]
            found.append(EndedUses(node, ending, told.leases, tuple(told.holders.values())))
        return found

    def _still(self, now: datetime) -> bool:
        self.replace(one for one in list(self.in_force.values()) if now < one.until)
        return bool(self.in_force)


def _in_use(fleet: Reports, node: str, ending: Ending) -> ImageReport | None:
    held = fleet.held(node, ending.infohash)
    if held is None or held.leases == 0:
        return None
    named = (held.identifier, held.version) == (ending.identifier, ending.version)
    return held if named else None


def _told(before: Ordered | None, held: ImageReport, now: datetime) -> Ordered:
    holders = {one.lease: one for one in held.holders}
    if before is None:
        return Ordered(1, now + FIRST_WAIT, holders, held.leases)
    wait = min(FIRST_WAIT * 2 ** min(before.tries, 10), LONGEST_WAIT)
    return replace(
        before,
        tries=before.tries + 1,
        next_at=now + wait,
        holders={**before.holders, **holders},
        leases=max(before.leases, held.leases),
    )
