"""Where each node stands: groups of blocks, kept from one change to the next so that little moves.

- A *group* is fed by one source, as a chain or as two trees (``relay_cost.choose``). There are as
  many groups as the sources have links' worth of upload: a seeder on 10 GbE feeds ten groups of
  1 GbE nodes; a node that had the image before feeds one.
- A group's nodes stand in *blocks*: a rack, or at most BLOCK_NODES of one. A block of a chain is
  entered once, one of trees once a stripe.
- Who leaves a chain is taken out; in trees the last of the block takes the place. Who comes goes to
  its rack's block, unless somebody behind it would then wait for it (LEAD_FRACTION); else to the
  end of a chain, or into a group that hangs at the end of another.
- Slow nodes (a known link, ``moved_behind``) stand in a chain of their own, slower ones behind: its
  end is where nobody waits for them.
- A group may only hang under a group of a lower key: there is no ring.

Pure and deterministic.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import replace
from heapq import heappop, heappush
from itertools import groupby
from statistics import median_low

from distrib.swarm.relay_cost import BLOCK_NODES, GIGABIT_BPS, Shape, Terms, choose
from distrib.swarm.relay_groups import (
    Block,
    Group,
    Layout,
    cut,
    dropped_empty,
    next_key,
    with_slow,
    without,
)
from distrib.swarm.relay_peers import Member

LEAD_FRACTION = 0.02
"""A child may be this part of the image ahead of a new parent: reports are seconds old."""

SLOW_SHARE = 0.75
"""A node whose link has less than this part of the others' rate is slow from the start."""

MAX_UNITS = 64
"""Groups of one seeder at most."""

TOO_LONG = 2
"""A chain that has grown to so many times the hops that it may have becomes trees."""


def typical_link_bps(members: Iterable[Member], seeders: Iterable[Member]) -> int:
    """The rate that the plan is for: what most known links have, or the fastest seeder's."""
    known = [member.link_bps for member in members if member.link_bps > 0]
    rate = median_low(known) if known else GIGABIT_BPS
    upstream = [seeder.link_bps for seeder in seeders]
    return min(rate, max(upstream)) if upstream and min(upstream) > 0 else rate


def lay_out(
    previous: Layout, members: Mapping[str, Member], seeders: Sequence[Member], terms: Terms
) -> Layout:
    """The layout without who left, with who came, and fed by whom there is.

    ``members`` are those that serve, by name; nodes that have the image and stand nowhere feed.
    """
    work = _Work(members, seeders, terms)
    groups = work.without_the_gone(previous)
    standing = {name for group in groups for block in group.blocks for name in block.nodes}
    came = [member for name, member in members.items() if name not in standing]
    came = [member for member in came if not member.has_all]
    nobody_has_any = not any(members[name].progress > LEAD_FRACTION for name in standing)
    fast = [group for group in groups if not group.slow]
    if came and fast and nobody_has_any and work.better_anew(fast, came):
        came += [members[name] for group in fast for name in group.names]
        groups = [group for group in groups if group.slow]
    slow = [member for member in came if work.is_slow(member)]
    groups = work.place(groups, [member for member in came if not work.is_slow(member)])
    groups = [work.shortened(group) for group in groups]
    groups = work.place_slow(groups, slow)
    return tuple(work.fed(groups))


class _Work:
    """One call of ``lay_out``."""

    def __init__(
        self, members: Mapping[str, Member], seeders: Sequence[Member], terms: Terms
    ) -> None:
        self._members = members
        self._seeders = sorted((s for s in seeders if s.serves), key=lambda s: s.node)
        self._terms = terms
        self._done: dict[int, bool] = {}

    def is_slow(self, member: Member) -> bool:
        return 0 < member.link_bps < SLOW_SHARE * self._terms.link_bps

    def without_the_gone(self, layout: Layout) -> list[Group]:
        present = self._members.keys()
        groups = []
        for group in layout:
            gone = {n for block in group.blocks for n in block.nodes if n not in present}
            groups.append(without(group, gone) if gone else group)
        return dropped_empty(groups)

    def better_anew(self, fast: Sequence[Group], came: Sequence[Member]) -> bool:
        """Whether chains have become too long, and shorter ones or trees can be had."""
        if any(group.shape is Shape.TREES for group in fast):
            return False
        total = sum(group.size for group in fast) + len(came)
        if total <= len(fast) * self._terms.chain_hops:
            return False
        units = max(len(self._units([])), 1)
        return len(fast) < units or choose(-(-total // units), self._terms) is Shape.TREES

    # -- who comes --------------------------------------------------------------------------

    def place(self, groups: list[Group], came: list[Member]) -> list[Group]:
        came.sort(key=_order)
        if not came:
            return groups
        if not any(not group.slow for group in groups):
            return self._begun(groups, came)
        late: list[Member] = []
        for rack, several in groupby(came, key=lambda member: member.rack):
            late += self._join_rack(groups, rack, list(several))
        if not late:
            return groups
        free = self._free_holders(groups)
        if free:
            return self._begun(groups, late, free)
        return self._at_the_end(groups, late)

    def shortened(self, group: Group) -> Group:
        """As trees where it is a chain that has grown too long."""
        longest = TOO_LONG * self._terms.chain_hops
        if group.slow or group.shape is Shape.TREES or group.size <= longest:
            return group
        return replace(group, shape=choose(group.size, self._terms))

    def _begun(
        self, groups: list[Group], came: list[Member], units: list[Member] | None = None
    ) -> list[Group]:
        """New groups, one for each source's link; racks are cut where they are larger than one."""
        sources = self._units(groups) if units is None else units
        count = min(max(len(sources), 1), len(came))
        target = -(-len(came) // count)
        loads: list[list[tuple[Block, ...]]] = [[] for _ in range(max(len(sources), 1))]
        parts: list[tuple[str, list[str]]] = []
        near = Counter(source.rack for source in sources)
        for rack, several in groupby(came, key=lambda member: member.rack):
            row = [member.node for member in several]
            most = target
            if rack:
                # A rack is entered again for each part: only where it has to be, or from inside.
                whole = min(self._terms.chain_hops, BLOCK_NODES)
                most = max(target, -(-len(row) // near[rack]) if near[rack] else whole)
            parts += [(rack, part) for part in cut(row, most)]
        least = _LeastLoaded([source.rack for source in sources] or [""])
        for rack, part in sorted(parts, key=lambda one: (-len(one[1]), one[0], one[1][0])):
            at = least.take(rack, len(part), max(target, len(part)))
            loads[at].append(tuple(Block(rack, tuple(row)) for row in cut(part, BLOCK_NODES)))
        made, first_key = list(groups), next_key(groups)
        for place, load in enumerate(loads):
            if load:
                blocks = tuple(b for row in sorted(load, key=lambda r: r[0].rack) for b in row)
                feed = sources[place].node if sources else ""
                shape = choose(sum(len(block.nodes) for block in blocks), self._terms)
                made.append(Group(first_key + place, shape, feed, blocks=blocks))
        return made

    def _join_rack(self, groups: list[Group], rack: str, came: list[Member]) -> list[Member]:
        """Into blocks of their rack; who does not fit there."""
        late = []
        for member in came:
            for place, group in enumerate(groups):
                grown = None if group.slow else self._joined(group, rack, member)
                if grown is not None:
                    groups[place] = grown
                    break
            else:
                late.append(member)
        return late

    def _joined(self, group: Group, rack: str, member: Member) -> Group | None:
        places = [i for i, block in enumerate(group.blocks) if block.rack == rack]
        if not places or self._is_done(group):
            return None
        at = places[-1]
        block = group.blocks[at]
        if group.shape is Shape.TREES:
            waiting = group.names if len(block.nodes) < 3 else block.nodes
            fits = len(block.nodes) < BLOCK_NODES
        else:
            behind = group.blocks[at + 1 : at + 2]
            waiting = behind[0].nodes[:1] if behind else ()
            fits = True
        if not fits or any(self._ahead(name, member) for name in waiting):
            return None
        if len(block.nodes) < BLOCK_NODES:
            new: tuple[Block, ...] = (replace(block, nodes=(*block.nodes, member.node)),)
        else:
            new = (block, Block(rack, (member.node,)))
        self._done[group.key] = False
        return replace(group, blocks=(*group.blocks[:at], *new, *group.blocks[at + 1 :]))

    def _at_the_end(self, groups: list[Group], late: list[Member]) -> list[Group]:
        """Behind a chain; of trees, as blocks that feed nobody who has more, else below them."""
        names = {member.node: member for member in late}
        fast = [group for group in groups if not group.slow]
        host = min(fast, key=lambda group: (group.shape is Shape.TREES, group.size, group.key))
        blocks = _rack_blocks(late)
        least = min(names.values(), key=lambda member: member.progress)
        if host.shape is Shape.CHAIN or not any(self._ahead(n, least) for n in host.names):
            grown = replace(host, blocks=(*host.blocks, *blocks))
            self._done[grown.key] = False
            return [grown if group is host else group for group in groups]
        shape = choose(len(late), self._terms)
        below = Group(next_key(groups), shape, under=host.key, blocks=blocks)
        return [*groups, below]

    def place_slow(self, groups: list[Group], came: list[Member]) -> list[Group]:
        came.sort(key=lambda member: (-member.link_bps, member.node))
        standing = next((group for group in groups if group.slow), None)
        row = [] if standing is None else [self._members[name] for name in standing.names]
        for member in came:
            faster = [i for i, other in enumerate(row) if _rate(other) >= member.link_bps]
            at = faster[-1] + 1 if faster else 0
            if at < len(row) and self._ahead(row[at].node, member):
                at = len(row)
            row.insert(at, member)
        if not came:
            return groups
        if standing is not None:
            self._done[standing.key] = False
        kept = [group for group in groups if not group.slow]
        return with_slow(kept, [(m.rack, m.node) for m in row], standing)

    # -- who feeds --------------------------------------------------------------------------

    def fed(self, groups: list[Group]) -> list[Group]:
        """Every group below a source that is there; a new seeder takes the half of a chain that is
        too long."""
        by_key: dict[int, Group] = {}
        for group in sorted(groups, key=lambda group: group.key):
            one = group
            if one.under is not None and one.under not in by_key:
                one = replace(one, under=None)
            if one.under is None and not self._feeds(one.feed):
                one = self._fed_anew(one, list(by_key.values()), groups)
            by_key[one.key] = one
        made = list(by_key.values())
        for source in self._units(made):
            if source.has_all and source in self._seeders:
                made = self._halved(made, source)
        return made

    def _feeds(self, name: str) -> bool:
        if any(seeder.node == name for seeder in self._seeders):
            return True
        member = self._members.get(name)
        return member is not None and member.has_all

    def _fed_anew(self, group: Group, above: list[Group], all_groups: list[Group]) -> Group:
        if group.slow and any(not other.slow for other in above):
            host = next(other for other in above if not other.slow)
            return replace(group, feed="", under=host.key)
        units = self._units([other for other in all_groups if other is not group])
        near = [unit for unit in units if unit.rack and unit.rack == group.blocks[0].rack]
        own = set(group.names)
        if fitting := [unit for unit in near + units if unit.node not in own]:
            return replace(group, feed=fitting[0].node, under=None)
        first = self._members[group.blocks[0].nodes[0]]
        for other in reversed(above):
            end = self._members[other.names[-1]]
            if not other.slow and not self._ahead(first.node, end):
                return replace(group, feed="", under=other.key)
        loads = {seeder.node: 0 for seeder in self._seeders}
        for other in all_groups:
            if other is not group and other.feed in loads:
                loads[other.feed] += 1
        feed = min(loads, key=lambda name: (loads[name], name), default="")
        return replace(group, feed=feed, under=None)

    def _halved(self, groups: list[Group], source: Member) -> list[Group]:
        chains = [
            group
            for group in groups
            if group.shape is Shape.CHAIN
            and not group.slow
            and len(group.blocks) > 1
            and not self._is_done(group)
        ]
        longest = max(chains, key=lambda group: group.size, default=None)
        if longest is None or longest.size <= self._terms.chain_hops:
            return groups
        passed = [sum(len(b.nodes) for b in longest.blocks[:i]) for i in range(len(longest.blocks))]
        cut = min(range(1, len(passed)), key=lambda i: (abs(2 * passed[i] - longest.size), i))
        # What hangs at the end stays there: the half with the end keeps the key.
        front = replace(longest, key=next_key(groups), blocks=longest.blocks[:cut])
        back = replace(longest, feed=source.node, under=None, blocks=longest.blocks[cut:])
        return [*(back if group is longest else group for group in groups), front]

    def _units(self, groups: Sequence[Group]) -> list[Member]:
        """Sources, once for each link's worth of upload that feeds nobody who waits."""
        busy: dict[str, int] = {}
        for group in groups:
            if not group.slow and not self._is_done(group):
                busy[group.feed] = busy.get(group.feed, 0) + 1
        units = []
        for seeder in self._seeders:
            share = seeder.link_bps / self._terms.link_bps if seeder.link_bps else 1.0
            count = min(max(int(share + 0.02), 1), MAX_UNITS)
            units += [seeder] * max(count - busy.get(seeder.node, 0), 0)
        return units + self._free_holders(groups)

    def _free_holders(self, groups: Sequence[Group]) -> list[Member]:
        """Nodes that have the image, and behind whom nobody waits."""
        needed = {name for group in groups if not self._is_done(group) for name in group.names} | {
            group.feed for group in groups if not self._is_done(group)
        }
        free = [m for m in self._members.values() if m.has_all and m.node not in needed]
        return sorted(free, key=lambda member: member.node)

    def _is_done(self, group: Group) -> bool:
        known = self._done.get(group.key)
        if known is None:
            rows = (block.nodes for block in group.blocks)
            known = all(self._members[name].has_all for row in rows for name in row)
            self._done[group.key] = known
        return known

    def _ahead(self, name: str, of: Member) -> bool:
        """Whether ``name`` has so much more that it would wait for the other."""
        other = self._members[name]
        return not other.has_all and other.progress > of.progress + LEAD_FRACTION


class _LeastLoaded:
    """Which source has the least to feed so far, one of the same rack first."""

    def __init__(self, racks: Sequence[str]) -> None:
        self._sizes = [0] * len(racks)
        self._all = [(0, place) for place in range(len(racks))]
        self._near: dict[str, list[tuple[int, int]]] = {}
        for place, rack in enumerate(racks):
            if rack:
                self._near.setdefault(rack, []).append((0, place))

    def take(self, rack: str, count: int, most: int) -> int:
        """The place of a source, which has ``count`` more to feed from now on."""
        near = self._top(self._near.get(rack, []))
        size, at = near if near is not None and near[0] + count <= most else self._least()
        self._sizes[at] = size + count
        return at

    def _least(self) -> tuple[int, int]:
        top = self._top(self._all)
        assert top is not None  # noqa: S101 - the newest entry of each is never dropped
        return top

    def _top(self, heap: list[tuple[int, int]]) -> tuple[int, int] | None:
        while heap and heap[0][0] != self._sizes[heap[0][1]]:
            at = heappop(heap)[1]
            heappush(heap, (self._sizes[at], at))
        return heap[0] if heap else None


def _order(member: Member) -> tuple[str, str]:
    return (member.rack, member.node)


def _rate(member: Member) -> float:
    # Who was found slow stands before the slower ones that are known; its link is not.
    return member.link_bps or float("inf")


def _rack_blocks(members: Sequence[Member]) -> tuple[Block, ...]:
    return tuple(
        Block(rack, tuple(row))
        for rack, several in groupby(members, key=lambda member: member.rack)
        for row in cut([member.node for member in several], BLOCK_NODES)
    )
