"""Two trees over the same nodes, each of which carries half of the pieces: shallow, and nobody
sends more than the image once.

A chain is as deep as it is long. A plain tree is shallow, but who feeds two sends everything twice.
So the pieces are two *stripes* (even and odd indices), each stripe has a tree of its own in which a
node feeds at most two, and a node that feeds in one tree is a leaf in the other: it receives two
halves and sends two halves. (The idea is SplitStream's: Castro et al., SOSP 2003.)

The shape is a function of the place in a row and the length of the row, such that

- the row grows at its end: at most two of those who stand in it get another parent;
- who leaves is replaced by the last in the row: few get another parent (``MOVED_BY_ONE_CHANGE``);
- the depth is about log2 of the length.

A *block* is a row of nodes that stand together (a rack, or a part of one). It is entered once a
stripe, and feeds two other blocks in one stripe (its *wide* one): places 0, 2, 4, ... feed in the
wide stripe, places 1, 3, 5, ... in the other. Blocks form two trees in the same way.

Pure arithmetic. Places and slots count from 0.
"""

from __future__ import annotations

from functools import lru_cache

STRIPES = 2
MOVED_BY_ONE_CHANGE = 10
"""Nodes that get another parent when one comes or goes, at most."""

OUTSIDE = -1
"""The parent of a row's entrance: who feeds the block."""


def wide_parent(place: int, length: int) -> int:
    """The place that feeds ``place`` in the block's wide stripe; OUTSIDE for place 0.

    Who feeds: place 0 one of the block (and another block), place 2 the same, places 4, 6, ... two
    each. That is one short where ``length`` is even: the last, who feeds one in the other stripe,
    then feeds place 1.
    """
    feeding = (length + 1) // 2
    if place == 0:
        return OUTSIDE
    if place == 1:
        if length == 2:
            return 0
        return length - 1
    slot = place // 2 - 1 if place % 2 == 0 else _sunk(place - 2, feeding - 1, step=0)
    return 2 * _feeder_of(slot)


def narrow_parent(place: int, length: int) -> int:
    """The place that feeds ``place`` in the other stripe; OUTSIDE for its entrance.

    The entrance is place 1, in a block of one place 0.
    """
    feeding = length // 2
    slot = place // 2 if place % 2 else _sunk(place, feeding, step=1)
    return OUTSIDE if slot == 0 else 2 * ((slot - 1) // 2) + 1


def entrance(length: int, *, wide: bool) -> int:
    """The place that is fed from outside, in the block's wide or in its other stripe."""
    return 0 if wide else min(1, length - 1)


def exits(length: int) -> tuple[int, int]:
    """The places that feed other blocks, in the wide stripe."""
    if length == 1:
        return (0, 0)
    return (0, 1) if length == 2 else (0, 2)


def block_parent(block: int, blocks: int, stripe: int) -> tuple[int, int]:
    """Which block feeds ``block`` in ``stripe``, and by which of its two exits.

    (OUTSIDE, 0) for the entrance. Even blocks are wide in stripe 0, odd ones in stripe 1.
    """
    feeding = (blocks + 1 - stripe) // 2
    if block % 2 == stripe:
        slot = block // 2
    else:
        first = 2 * (block // 2) + (2 if stripe == 0 else 0)
        slot = _sunk(first, feeding, step=1)
    if slot == 0:
        return OUTSIDE, 0
    return 2 * ((slot - 1) // 2) + stripe, (slot - 1) % 2


@lru_cache(maxsize=512)
def block_shape(length: int) -> tuple[tuple[int, int], ...]:
    """By place, the parents in the wide and in the other stripe."""
    return tuple((wide_parent(p, length), narrow_parent(p, length)) for p in range(length))


def _sunk(slot: int, taken: int, *, step: int) -> int:
    """Where a leaf stands: a feeder that takes its slot takes it as a child of its own."""
    while slot < taken:
        slot = 2 * slot + step
    return slot


def _feeder_of(slot: int) -> int:
    """The feeder (counted among the even places) above a slot of the wide stripe."""
    return slot if slot < 2 else slot // 2 + 1
