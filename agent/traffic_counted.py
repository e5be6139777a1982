"""Bytes that a transfer has moved by its peers' totals, and what they are on the wire. Pure."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Literal

from distrib.swarm.pacing import ASKING, WIRE

Way = Literal["download", "upload"]
WAYS: tuple[Way, ...] = ("download", "upload")


@dataclass(frozen=True)
class Counted:
    """Payload, each way, in bytes."""

    download: int = 0
    upload: int = 0

    def since(self, before: Counted) -> Counted:
        """What was added; a connection that began anew counts from nothing."""
        if self.download < before.download or self.upload < before.upload:
            return self
        return Counted(self.download - before.download, self.upload - before.upload)

    def plus(self, other: Counted) -> Counted:
        """Both together."""
        return Counted(self.download + other.download, self.upload + other.upload)

    def wire(self, way: Way) -> float:
        """What it takes of the link this way."""
        return WIRE * (self.download if way == "download" else self.upload)

    def asking(self, way: Way) -> float:
        """What goes this way so that the payload could go the other."""
        return ASKING * (self.upload if way == "download" else self.download)


def total_of(counts: Iterable[Counted]) -> Counted:
    """All of them together."""
    total = Counted()
    for one in counts:
        total = total.plus(one)
    return total
