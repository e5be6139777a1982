"""The relay plan: from whom each node fetches an image, so that a source sends each piece once.

``relay_layout`` says where each node stands, ``relay_trees`` who feeds whom there, ``relay_cost``
when a chain is shallow enough. This turns a layout into what nodes are told:

- ``parents`` are asked first: one in a chain, one a stripe in trees.
- ``fallbacks`` (the parents' parents, two seeders) and ``neighbours`` (near in the block) are for a
  parent that stalls; a wrong plan costs speed, never completion.
- Only blocks are worked out anew in which, or above which, something has changed.

Pure and deterministic.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from itertools import count

from distrib.swarm.relay_cost import Shape
from distrib.swarm.relay_groups import Block, Group, Layout
from distrib.swarm.relay_peers import Links, Member, RelayPeer
from distrib.swarm.relay_trees import STRIPES, block_parent, block_shape, entrance, exits

OPENS_LATER_MS = 120
"""The two sides of a link open so long after one another, or more: they get their orders in the
same tens of milliseconds, and each would close what the other opens just then."""

MAX_NEIGHBOURS = 8
MAX_FALLBACK_SEEDERS = 2

_UPSTREAM = 5

Peers = tuple[RelayPeer, ...]
Entry = tuple[Peers, Peers]
"""Who feeds a block, one or one a stripe; and who feeds those."""

_NOBODY: Entry = ((), ())

Below = tuple[tuple[int, int, RelayPeer], ...]
"""Who is fed from a block, and in which stripe by which place of its row."""


@dataclass(frozen=True)
class PlannedBlock:
    """A block's links, and all that they follow from."""

    key: tuple[object, ...]
    links: Mapping[str, Links]


@dataclass(frozen=True)
class RelayPlan:
    """The links of every node; ``changed`` are those that have others than in the plan before."""

    links: Mapping[str, Links] = field(default_factory=dict)
    changed: frozenset[str] = frozenset()
    blocks: Mapping[tuple[int, int], PlannedBlock] = field(default_factory=dict)


def plan_relay(
    layout: Layout,
    members: Mapping[str, Member],
    seeders: Iterable[Member],
    previous: RelayPlan | None = None,
) -> RelayPlan:
    """Parents, fallbacks and neighbours of every member.

    ``layout`` comes from ``lay_out`` with the same members. Following parents from any node ends at
    a seeder or at a node that has the whole image, if there is any.
    """
    before = previous or RelayPlan()
    sources = sorted((s for s in seeders if s.serves), key=lambda seeder: seeder.node)
    work = _Work(members, sources, before)
    for group in sorted(layout, key=lambda group: group.key):
        work.add(group)
    work.add_the_others(layout)
    gone = before.links.keys() - work.links.keys()
    return RelayPlan(work.links, frozenset(work.changed | gone), work.blocks)


class _Work:
    """One call of ``plan_relay``."""

    def __init__(
        self, members: Mapping[str, Member], sources: Sequence[Member], before: RelayPlan
    ) -> None:
        self.links: dict[str, Links] = {}
        self.changed: set[str] = set()
        self.blocks: dict[tuple[int, int], PlannedBlock] = {}
        self._members = members
        self._seeders = {source.node: source for source in sources}
        self._seeder_peers = tuple(source.peer for source in sources[:MAX_FALLBACK_SEEDERS])
        self._before = before
        self._ends: dict[int, Entry] = {}
        self._opens: dict[str, int] = {}
        self._striped: set[int] = set()

    def add(self, group: Group) -> None:
        """The links of a group; those above it come first."""
        entry = self._entry(group)
        if group.shape is Shape.TREES:
            self._striped.add(group.key)
            self._add_trees(group, entry)
            return
        # Below trees everything comes in stripes: each port there serves one.
        striped = group.under in self._striped
        if striped:
            self._striped.add(group.key)
        blocks = [self._rows(block, striped=striped) for block in group.blocks]
        for place, (block, rows) in enumerate(zip(group.blocks, blocks, strict=True)):
            after = blocks[place + 1] if place + 1 < len(blocks) else ()
            last = len(block.nodes) - 1
            below = tuple((stripe, last, row[0]) for stripe, row in enumerate(after))
            self._add_block(group, place, rows, entry, below)
            above = tuple(row[-2] for row in rows) if len(block.nodes) > 1 else entry[0]
            entry = (tuple(row[-1] for row in rows), above)
        self._ends[group.key] = entry

    def add_the_others(self, layout: Layout) -> None:
        """Who stands nowhere: it has the image, or nobody can fetch from it."""
        host = next((group.key for group in layout if not group.slow), 0)
        end = self._ends.get(host, _NOBODY)[0]
        stripes = STRIPES if host in self._striped else 1
        sources = self._seeder_peers
        holds = Links(parents=sources[:1], fallbacks=sources[1:])
        rest = tuple(peer for peer in sources if peer not in end)
        fetches = Links(end, rest, stripes=stripes) if end else holds
        for name, member in self._members.items():
            if name not in self.links:
                links = fetches
                if member.has_all:
                    links = holds
                elif not end and not sources:
                    links = self._from_a_holder(name)
                self._set(name, links)

    def _from_a_holder(self, name: str) -> Links:
        others = (m for m in self._members.values() if m.has_all and m.serves and m.node != name)
        holder = min(others, key=lambda member: member.node, default=None)
        return Links() if holder is None else Links(parents=(holder.peer,))

    def _entry(self, group: Group) -> Entry:
        if group.under is not None:
            return self._ends.get(group.under, _NOBODY)
        feed = self._seeders.get(group.feed) or self._members.get(group.feed)
        return _NOBODY if feed is None else ((feed.peer,), ())

    def _add_trees(self, group: Group, entry: Entry) -> None:
        rows = [self._rows(block, striped=True) for block in group.blocks]
        feeds: list[list[RelayPeer]] = [[] for _ in rows]
        below: list[list[tuple[int, int, RelayPeer]]] = [[] for _ in rows]
        for place, own in enumerate(rows):
            for stripe in range(STRIPES):
                above, way = block_parent(place, len(rows), stripe)
                if above < 0:
                    feeds[place] += filter(None, [_of_stripe(entry[0], stripe)])
                    continue
                row = rows[above][stripe]
                at = exits(len(row))[way]
                feeds[place].append(row[at])
                fed = own[stripe][entrance(len(own[stripe]), wide=stripe == place % 2)]
                below[above].append((stripe, at, fed))
        for place, own in enumerate(rows):
            self._add_block(group, place, own, (tuple(feeds[place]), ()), tuple(below[place]))
        last = rows[-1]
        ways = exits(len(last[0]))
        self._ends[group.key] = (tuple(last[i][ways[i]] for i in range(STRIPES)), ())

    def _rows(self, block: Block, *, striped: bool) -> tuple[Peers, ...]:
        """Where the nodes serve: one row, or one a stripe."""
        members = [self._members[name] for name in block.nodes]
        if not striped:
            return (tuple(member.peer for member in members),)
        return tuple(
            tuple(member.stripe_peer(stripe) for member in members) for stripe in range(STRIPES)
        )

    def _add_block(
        self,
        group: Group,
        place: int,
        rows: tuple[Peers, ...],
        entry: Entry,
        below: Below,
    ) -> None:
        key = (group.shape, place % 2, rows, entry, below, self._seeder_peers)
        known = self._before.blocks.get((group.key, place))
        if known is None or known.key != key:
            if group.shape is Shape.CHAIN:
                links = _chain_links(rows, entry, below, self._seeder_peers)
            else:
                links = _tree_links(rows, place % 2, entry[0], below, self._seeder_peers)
            known = PlannedBlock(key, {name: self._opened(name, o) for name, o in links.items()})
            for name, own in known.links.items():
                self._set(name, own)
        else:
            self.links.update(known.links)
            self._opens |= {name: own.opens_after_ms for name, own in known.links.items()}
        self.blocks[group.key, place] = known

    def _opened(self, name: str, links: Links) -> Links:
        """The links, opened at another moment than those of all whom the node is linked with."""
        around = (*links.parents, *links.children, *links.second_children)
        taken = {self._opens.get(peer.node) for peer in around}
        after_ms = next(ms for ms in count(0, OPENS_LATER_MS) if ms not in taken)
        self._opens[name] = after_ms
        return replace(links, opens_after_ms=after_ms)

    def _set(self, name: str, links: Links) -> None:
        self.links[name] = links
        if self._before.links.get(name) != links:
            self.changed.add(name)


def _chain_links(
    rows: tuple[Peers, ...], entry: Entry, below: Below, seeders: Peers
) -> dict[str, Links]:
    links = {}
    row = rows[0]
    fed = {stripe: (peer,) for stripe, _, peer in below}
    for place, peer in enumerate(row):
        parents = tuple(of[place - 1] for of in rows) if place else entry[0]
        above = entry[1]
        if place:
            above = tuple(of[place - 2] for of in rows) if place > 1 else entry[0]
        taken = {peer.node, *(parent.node for parent in parents)}
        fallbacks = _others((*above, *seeders), taken)
        near = _near(row, place, taken, behind=2)
        children = [of[place + 1 : place + 2] or fed.get(i, ()) for i, of in enumerate(rows)]
        first, second = (*children, ())[:STRIPES]
        links[peer.node] = Links(parents, fallbacks, near, len(rows), first, second)
    return links


def _tree_links(
    rows: tuple[Peers, ...], wide: int, entry: Peers, below: Below, seeders: Peers
) -> dict[str, Links]:
    shape = block_shape(len(rows[0]))
    fed: dict[tuple[int, int], Peers] = {}
    inside = (
        (stripe, above[stripe != wide], rows[stripe][place])
        for stripe in range(STRIPES)
        for place, above in enumerate(shape)
    )
    for stripe, at, peer in (*inside, *below):
        fed[stripe, at] = (*fed.get((stripe, at), ()), peer)
    links = {}
    for place, own in enumerate(rows[0]):
        parents, above = [], []
        for stripe in range(STRIPES):
            kind = 0 if stripe == wide else 1
            at = shape[place][kind]
            parent = rows[stripe][at] if at >= 0 else _of_stripe(entry, stripe)
            if parent is not None:
                parents.append(parent)
            if at >= 0:
                over = shape[at][kind]
                upper = rows[stripe][over] if over >= 0 else _of_stripe(entry, stripe)
                if upper is not None:
                    above.append(upper)
        if len(set(parents)) == 1:
            parents = parents[:1]
        taken = {own.node, *(parent.node for parent in parents)}
        fallbacks = _others((*above, *seeders), taken)
        near = _near(rows[0], place, taken, behind=1)
        first, second = (fed.get((stripe, place), ()) for stripe in range(STRIPES))
        links[own.node] = Links(tuple(parents), fallbacks, near, STRIPES, first, second)
    return links


def _of_stripe(entry: Peers, stripe: int) -> RelayPeer | None:
    return entry[stripe % len(entry)] if entry else None


def _others(peers: Iterable[RelayPeer], taken: set[str]) -> Peers:
    """Those that are not taken, each once; they are taken then."""
    found = []
    for peer in peers:
        if peer.node not in taken:
            taken.add(peer.node)
            found.append(peer)
    return tuple(found)


def _near(row: Peers, place: int, taken: set[str], *, behind: int) -> Peers:
    """The nearest in the block, more of those before ``place``; from ``behind`` after it."""
    reach = MAX_NEIGHBOURS + len(taken)
    upstream = reversed(row[max(place - reach, 0) : place])
    before = [other for other in upstream if other.node not in taken][:_UPSTREAM]
    downstream = row[place + behind : place + behind + reach]
    after = [other for other in downstream if other.node not in taken]
    return tuple((before + after)[:MAX_NEIGHBOURS])
