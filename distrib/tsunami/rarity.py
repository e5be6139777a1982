"""Which pieces are rarest: sets of pieces as integers, one bit a piece, grouped by copies.

Picking the rarest of any set costs one AND per number of copies that occurs, not one step a piece.
"""

from __future__ import annotations

from bisect import bisect_left, insort
from collections.abc import Iterator
from random import Random


def pieces_of(mask: int) -> Iterator[int]:
    """The pieces in a set, ascending."""
    while mask:
        low = mask & -mask
        yield low.bit_length() - 1
        mask ^= low


class Rarity:
    """Copies of each piece, counting those on their way."""

    def __init__(self, pieces: int, random: Random) -> None:
        self._pieces = pieces
        self._random = random
        self._copies = [0] * pieces
        self._levels = {0: (1 << pieces) - 1}
        self._order = [0]

    def add(self, piece: int) -> None:
        """One copy more, or on its way."""
        self._move(piece, 1)

    def remove(self, piece: int) -> None:
        """One copy less."""
        self._move(piece, -1)

    def rarest(self, among: int) -> tuple[int, int]:
        """A rarest piece of a set that is not empty, any of them, and how many copies it has."""
        for copies in self._order:
            level = among & self._levels[copies]
            if level:
                return self._any(level), copies
        raise ValueError("no piece to choose from")

    def _any(self, mask: int) -> int:
        """Any one: the first at or after a random place, around the end."""
        later = mask >> (start := self._random.randrange(self._pieces))
        if later:
            return start + (later & -later).bit_length() - 1
        return (mask & -mask).bit_length() - 1

    def _move(self, piece: int, by: int) -> None:
        before = self._copies[piece]
        after = self._copies[piece] = before + by
        bit = 1 << piece
        left = self._levels[before] ^ bit
        if left:
            self._levels[before] = left
        else:
            del self._levels[before]
            del self._order[bisect_left(self._order, before)]
        if after in self._levels:
            self._levels[after] |= bit
        else:
            self._levels[after] = bit
            insort(self._order, after)
