"""Groups of blocks of nodes: the types of a layout, and the small changes to them.

Pure and deterministic.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import groupby, pairwise

from distrib.swarm.relay_cost import BLOCK_NODES, Shape


@dataclass(frozen=True)
class Block:
    """Nodes of one rack, in their places."""

    rack: str
    nodes: tuple[str, ...]


@dataclass(frozen=True)
class Group:
    """Nodes below one source: ``feed``, or else the end of the group ``under``."""

    key: int
    shape: Shape = Shape.CHAIN
    feed: str = ""
    under: int | None = None
    slow: bool = False
    blocks: tuple[Block, ...] = ()

    @property
    def size(self) -> int:
        return sum(len(block.nodes) for block in self.blocks)

    @property
    def names(self) -> list[str]:
        return [name for block in self.blocks for name in block.nodes]


Layout = tuple[Group, ...]


def moved_behind(layout: Layout, node: str) -> Layout:
    """The layout with ``node`` at the end of the slow, where nobody waits for it."""
    found = next((g for g in layout if any(node in b.nodes for b in g.blocks)), None)
    if found is None:
        return layout
    rack = next(block.rack for block in found.blocks if node in block.nodes)
    kept = [without(group, {node}) if group is found else group for group in layout]
    return tuple(with_slow(dropped_empty(kept), [(rack, node)]))


def is_last(layout: Layout, node: str) -> bool:
    """Whether nobody stands behind the node."""
    for group in layout:
        if group.blocks and group.blocks[-1].nodes[-1] == node:
            behind = any(other.under == group.key for other in layout)
            return group.shape is Shape.CHAIN and not behind
    return False


def chains_of(parents: Mapping[str, Sequence[str]], racks: Mapping[str, str]) -> Layout:
    """The chains that nodes were told of: by node, its parents (none, or one, which may be no
    node). Nothing where somebody has two: trees are made anew."""
    if any(len(of) > 1 for of in parents.values()):
        return ()
    children: dict[str, list[str]] = {}
    for node in sorted(parents):
        children.setdefault(parents[node][0] if parents[node] else "", []).append(node)
    groups: list[Group] = []
    begun = [(n, above, None) for above in sorted(children) if above not in parents
             for n in children[above]]  # fmt: skip
    waiting: list[tuple[str, str, int | None]] = list(begun)
    while waiting:
        node, feed, under = waiting.pop(0)
        key, chain = len(groups) + 1, [node]
        while below := children.get(chain[-1], []):
            waiting += [(other, "", key) for other in below[1:]]
            chain.append(below[0])
        groups.append(Group(key, feed=feed, under=under, blocks=blocks_of(chain, racks)))
    return tuple(groups)


def next_key(groups: Iterable[Group]) -> int:
    return max((group.key for group in groups), default=0) + 1


def cut(row: list[str], most: int) -> list[list[str]]:
    """Parts of about the same length, of at most ``most``."""
    count = -(-len(row) // most)
    bounds = [len(row) * i // count for i in range(count + 1)]
    return [row[a:b] for a, b in pairwise(bounds)]


def blocks_of(names: Iterable[str], racks: Mapping[str, str]) -> tuple[Block, ...]:
    return tuple(
        Block(rack, tuple(row))
        for rack, several in groupby(names, key=lambda name: racks.get(name, ""))
        for row in cut(list(several), BLOCK_NODES)
    )


def without(group: Group, gone: set[str]) -> Group:
    blocks = []
    for block in group.blocks:
        row = list(block.nodes)
        if not gone.isdisjoint(row):
            if group.shape is Shape.CHAIN:
                row = [name for name in row if name not in gone]
            for name in [name for name in row if name in gone]:
                last = row.pop()
                if last != name:
                    row[row.index(name)] = last
        blocks.append(block if len(row) == len(block.nodes) else replace(block, nodes=tuple(row)))
    if group.shape is Shape.CHAIN:
        kept = [block for block in blocks if block.nodes]
    else:
        kept = blocks
        for empty in [block for block in blocks if not block.nodes]:
            last_block = kept.pop()
            if last_block is not empty:
                kept[next(i for i, b in enumerate(kept) if b is empty)] = last_block
    return replace(group, blocks=tuple(kept))


def dropped_empty(groups: Sequence[Group]) -> list[Group]:
    """Without groups that nobody stands in; what hung under them hangs where they did."""
    kept: dict[int, Group] = {}
    gone: dict[int, Group] = {}
    for group in sorted(groups, key=lambda group: group.key):
        one = group
        if one.under in gone:
            above = gone[one.under]
            one = replace(one, under=above.under, feed=above.feed)
        (kept if one.blocks else gone)[one.key] = one
    return list(kept.values())


def with_slow(
    groups: list[Group], row: list[tuple[str, str]], standing: Group | None = None
) -> list[Group]:
    """With the slow nodes: ``row`` as all of ``standing``, or at the end of those there are."""
    fast = [group for group in groups if not group.slow]
    slow = next((group for group in groups if group.slow), None)
    racks = {name: rack for rack, name in row}
    if slow is not None:
        racks |= {name: block.rack for block in slow.blocks for name in block.nodes}
        names = [*slow.names, *(name for _, name in row)]
        blocks = blocks_of(names, racks)
        return [replace(slow, blocks=blocks) if group is slow else group for group in groups]
    blocks = blocks_of([name for _, name in row], racks)
    if standing is not None:
        return [*groups, replace(standing, blocks=blocks)]
    host = fast[0].key if fast else None
    return [*groups, Group(next_key(groups), under=host, slow=True, blocks=blocks)]
