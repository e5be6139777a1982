"""Who of a swarm does not move, and why, by what nodes say and what the plan is. Pure.

For each node that wants the image and has not all of it, the first of these that holds:

1. ``offline``: it is not connected to the broker.
2. ``no-report``: it is, and has not said anything for longer than it should.
3. ``no-seeder``: nobody who has the whole image is online.
4. ``behind-slow-node``: its bytes stand still, and so do those of somebody above it in the plan;
   ``by`` is who of those has a reason of his own, else the uppermost.
5. its own reason, as it reports it (``stalled``, ``no-peers``, ``hash-failed``, ``no-space``, ...).
6. ``parent-slow``: its bytes stand still, or all children of its parent are slower than the parent,
   and the parent has what it misses; ``by`` is the parent.
7. ``slow``: it gets less than ``BELOW`` of what its parents get: its own link or disk.
8. ``behind-slow-node``: it gets what its parents get, which is less than ``BELOW`` of the usual;
   ``by`` is who of those above is slow.

Where several parents feed a node, each a stripe, the culprit is looked for above those who gave
nothing for longest: a stripe that still comes, or came to its end later, is not at fault.

What nodes say is a claim; this accuses nobody, it says where to look first.
"""

from __future__ import annotations

from collections.abc import Collection, Iterator, Mapping
from dataclasses import dataclass, field
from math import inf
from statistics import median_low

from distrib.swarm.relay_pace import BELOW

COMPLETE = frozenset({"ready", "leased"})
MOVING = frozenset({"pulling"})
SETTLED = frozenset({"verifying", "evicting", "blocked"})
"""States in which bytes stand still without fault, or for a reason that is told with the state."""


TOGETHER_S = 2.0
"""Who fell silent within so long of each other is as likely as the other to be at fault."""


@dataclass(frozen=True)
class Watched:
    """A node that wants the image: what it said last, and how long ago that was, in seconds.

    ``silent_s``: since its newest report; None: it never reported. ``still_s``: since its verified
    bytes or its state changed. ``dry_s``: since each peer last gave it bytes, by name; who is not
    in it never did."""

    parents: tuple[str, ...] = ()
    online: bool = True
    state: str = ""
    bytes_done: int = 0
    rate_bps: int = 0
    reason: str | None = None
    text: str = ""
    silent_s: float | None = None
    still_s: float = 0.0
    dry_s: Mapping[str, float] = field(default_factory=dict)

    @property
    def is_complete(self) -> bool:
        return self.state in COMPLETE

    @property
    def driest(self) -> tuple[str, ...]:
        """The parents who gave nothing for longest; of one stripe, all of them."""
        dry_s = {parent: self.dry_s.get(parent, inf) for parent in self.parents}
        longest_s = max(dry_s.values(), default=0.0)
        return tuple(parent for parent in self.parents if dry_s[parent] >= longest_s - TOGETHER_S)


@dataclass(frozen=True)
class Stall:
    """Why a node gets on badly. ``by``: the node or seeder at whom to look; "" itself."""

    reason: str
    by: str = ""
    text: str = ""
    since_s: float | None = None


def find_stalls(
    nodes: Mapping[str, Watched], sources: Collection[str], *, patience_s: float
) -> dict[str, Stall]:
    """Who gets on badly, by name. ``sources``: seeders that are online and have the image.

    ``patience_s`` is how long reports and bytes may stay away before it is said.
    """
    is_sourced = bool(sources) or any(n.is_complete and n.online for n in nodes.values())
    found: dict[str, Stall] = {}
    for name, node in nodes.items():
        stall = _own_trouble(node, is_sourced=is_sourced, patience_s=patience_s)
        if stall is not None:
            found[name] = stall
    still = {
        name
        for name, node in nodes.items()
        if not node.is_complete and node.state not in SETTLED and node.still_s > patience_s
    }
    waiting = {name for name in still if _is_waiting(found.get(name))}
    behind = {name: _origin(name, nodes, found, waiting) for name in waiting}
    found |= {
        name: Stall("behind-slow-node", by, since_s=nodes[name].still_s)
        for name, by in behind.items()
        if by
    }
    for name in still - found.keys():
        by = _first_ahead(nodes[name], nodes, sources)
        found[name] = Stall("parent-slow" if by else "stalled", by, since_s=nodes[name].still_s)
    return found | _slow(nodes, found)


def _own_trouble(node: Watched, *, is_sourced: bool, patience_s: float) -> Stall | None:
    if node.is_complete:
        return None
    if not node.online:
        return Stall("offline", since_s=node.silent_s)
    if node.silent_s is None or node.silent_s > patience_s:
        return Stall("no-report", since_s=node.silent_s)
    if not is_sourced and node.state not in SETTLED:
        return Stall("no-seeder", since_s=node.still_s)
    if node.reason is not None and node.reason != "resumed":
        return Stall(node.reason, text=node.text, since_s=node.still_s)
    return None


def _is_waiting(stall: Stall | None) -> bool:
    """Whether what is told of the node may come from above."""
    return stall is None or stall.reason in {"stalled", "no-peers"}


def _origin(
    name: str, nodes: Mapping[str, Watched], known: Mapping[str, Stall], waiting: Collection[str]
) -> str:
    """Who above is in trouble of his own; else the uppermost of those who stand still."""
    uppermost = ""
    for above in _above(name, nodes):
        if above in waiting:
            uppermost = above
        elif above in known:
            return above
    return uppermost


def _above(name: str, nodes: Mapping[str, Watched]) -> Iterator[str]:
    """Parents, their parents, ...: nearest first, each once; of several the driest."""
    seen, row = {name}, list(nodes[name].driest)
    while row:
        above = [parent for parent in dict.fromkeys(row) if parent not in seen]
        seen.update(above)
        yield from above
        row = [over for parent in above if parent in nodes for over in nodes[parent].driest]


def _first_ahead(node: Watched, nodes: Mapping[str, Watched], sources: Collection[str]) -> str:
    """The first parent that has what the node misses."""
    for parent in node.driest:
        known = nodes.get(parent)
        if parent in sources:
            return parent
        if known is not None and (known.is_complete or known.bytes_done > node.bytes_done):
            return parent
    return ""


def _slow(nodes: Mapping[str, Watched], known: Mapping[str, Stall]) -> dict[str, Stall]:
    pulls = {
        name: node
        for name, node in nodes.items()
        if node.state in MOVING and node.rate_bps > 0 and name not in known
    }
    if not pulls:
        return {}
    usual = median_low(node.rate_bps for node in pulls.values())
    children: dict[str, list[str]] = {}
    for name, node in pulls.items():
        for parent in node.parents:
            children.setdefault(parent, []).append(name)

    def gets_less(name: str) -> bool:
        above = [pulls[p].rate_bps if p in pulls else usual for p in pulls[name].parents]
        return bool(above) and pulls[name].rate_bps < BELOW * min(above)

    less = {name for name in pulls if gets_less(name)}
    found: dict[str, Stall] = {}
    for name in less:
        blamed = [
            parent
            for parent in pulls[name].parents
            if len(children[parent]) > 1 and all(child in less for child in children[parent])
        ]
        found[name] = Stall("parent-slow", blamed[0]) if blamed else Stall("slow")
    for name in pulls.keys() - less:
        if pulls[name].rate_bps < BELOW * usual:
            by = next((n for n in _above(name, nodes) if n in less or n in known), "")
            if by:
                found[name] = Stall("behind-slow-node", by)
    return found
