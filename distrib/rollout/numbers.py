"""The numbers of what nodes are sent: generations and sequences, which never fall.

``max(last + 1, unix time)``: so that a head that was set back does not go back (docs/formats).
"""

from __future__ import annotations

from dataclasses import replace
from datetime import datetime

from distrib.rollout.records import IssuedNumbers


class Numbers:
    """The last numbers of every node that was ever told anything."""

    def __init__(self) -> None:
        self.issued: dict[str, IssuedNumbers] = {}

    def generation(self, node: str) -> int:
        """The last one."""
        return self.issued.get(node, IssuedNumbers()).generation

    def at_least(self, node: str, generation: int) -> None:
        """The node was sent this one: where it is higher than ours, the database is an old copy."""
        before = self.issued.get(node, IssuedNumbers())
        self.issued[node] = replace(before, generation=max(before.generation, generation))

    def next_generation(self, node: str, now: datetime) -> IssuedNumbers:
        """For a desired state."""
        before = self.issued.get(node, IssuedNumbers())
        generation = max(before.generation + 1, int(now.timestamp()))
        self.issued[node] = replace(before, generation=generation)
        return self.issued[node]

    def next_sequence(self, node: str, now: datetime) -> IssuedNumbers:
        """For orders."""
        before = self.issued.get(node, IssuedNumbers())
        self.issued[node] = replace(before, sequence=max(before.sequence + 1, int(now.timestamp())))
        return self.issued[node]
