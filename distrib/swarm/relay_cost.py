"""What a relay plan costs, and the shape that is chosen by it.

Store and forward: a piece passes on when it is whole. So the last node of a path of ``hops`` is
later than the first by ``hops`` x (what a hop takes + a piece at the rate of the path). Constants
were measured on chains of libtorrent peers (docs/decisions/0024-relay-shapes.md). Pure.
"""

from __future__ import annotations

from dataclasses import dataclass
from enum import StrEnum

from distrib.swarm.relay_trees import STRIPES, block_parent, block_shape, exits

HOP_S = 0.040
"""From a piece's last byte in to its first byte out, without the piece itself."""

FIRST_PIECE_S = 0.65
"""Connections, hashes, and the first piece from the source."""

TREES_START_S = 3.0
"""What trees cost beside their hops: a node's links to both parents stand later, and each stripe
ends by itself."""

WIRE = 1.056
"""Bytes on the wire for one byte of an image: headers of Ethernet, IP, TCP, BitTorrent."""

DELAY_SHARE = 0.05
"""The delay from first to last node may be this part of what one link needs for the image."""

DELAY_FLOOR_S = 1.0
"""A delay that is nobody's concern, however small the image."""

GIGABIT_BPS = 125_000_000
BLOCK_NODES = 64
"""Nodes of one block at most: a larger rack is several blocks, each of which is entered."""


class Shape(StrEnum):
    """How the nodes of a group stand."""

    CHAIN = "chain"
    TREES = "trees"


@dataclass(frozen=True)
class Terms:
    """What the shape depends on. Sizes in bytes, the rate in bytes per second.

    ``link_bps`` is the rate that most links have; ``trees``: whether the nodes can fetch stripes
    from two parents.
    """

    size_bytes: int = 0
    piece_bytes: int = 64 * 1024
    link_bps: int = GIGABIT_BPS
    trees: bool = False

    @property
    def once_s(self) -> float:
        """What one link needs to carry the image once: the bound, F/R."""
        return self.size_bytes / self.link_bps

    @property
    def hop_s(self) -> float:
        """What a hop of a chain costs."""
        return HOP_S + self.piece_bytes / self.link_bps

    @property
    def tree_hop_s(self) -> float:
        """What a hop of a tree costs: its pieces come at a part of the link's rate."""
        return HOP_S + STRIPES * self.piece_bytes / self.link_bps

    @property
    def chain_hops(self) -> int:
        """The longest chain whose delay is within DELAY_SHARE, or DELAY_FLOOR_S; at least two."""
        return max(int(max(DELAY_SHARE * self.once_s, DELAY_FLOOR_S) / self.hop_s), 2)


def choose(nodes: int, terms: Terms) -> Shape:
    """The shape for a group of ``nodes``: a chain while it is short enough, else trees where they
    are sooner done."""
    if not terms.trees or nodes <= terms.chain_hops:
        return Shape.CHAIN
    blocks = -(-nodes // BLOCK_NODES)
    delay_s = TREES_START_S + tree_hops(blocks, -(-nodes // blocks)) * terms.tree_hop_s
    return Shape.TREES if delay_s < nodes * terms.hop_s else Shape.CHAIN


def tree_hops(blocks: int, length: int) -> int:
    """Hops from the source to the last node, through ``blocks`` blocks of ``length`` nodes."""
    inside = max(_depths(length))
    way_out = max(_depths(length)[place] for place in exits(length)) + 1
    deepest = 0
    for stripe in range(STRIPES):
        depths: dict[int, int] = {}
        for block in range(blocks):
            passed = []
            at = block
            while at >= 0 and at not in depths:
                passed.append(at)
                at = block_parent(at, blocks, stripe)[0]
            depth = depths.get(at, -1)
            for one in reversed(passed):
                depth += 1
                depths[one] = depth
        deepest = max(deepest, *depths.values())
    return deepest * way_out + inside + 1


def _depths(length: int) -> list[int]:
    """By place, hops from the block's entrance, in the deeper of its stripes."""
    shape = block_shape(length)
    depths = []
    for place in range(length):
        hops = []
        for kind in range(STRIPES):
            at, count = shape[place][kind], 0
            while at >= 0:
                at, count = shape[at][kind], count + 1
            hops.append(count)
        depths.append(max(hops))
    return depths
