"""The relay plan: from whom each node fetches an image, so that a source sends each piece once.

The nodes stand in one line; each has the node before it as parent, the first one the seeder. Such
a chain came to 1.10 of the bound where an unplanned swarm takes 1.4 to 2.3. Rules:

- A new line is sorted by rack, and within a rack the nodes that hold the image come first: they
  are sources, so each begins a chain of its own, and a rack is entered once.
- A line, once made, stays: who leaves is taken out, and only its successor gets a new parent; who
  finishes changes nothing. A line that was re-sorted would send nodes to peers that have less.
- Who comes later stands behind its rack while the node after it has no more than it has, else at
  the end: a parent with less than its child stalls the child.
- Every further seeder heads the chain of one rack, chosen by rendezvous hash, so that a seeder
  that comes or goes moves one node.
- ``parents`` are asked first. ``fallbacks`` (the parent's parent, the seeders) and ``neighbours``
  (near in the line) are for a parent that stalls; a wrong plan costs speed, never completion.

Pure and deterministic.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from itertools import groupby

MAX_NEIGHBOURS = 8
MAX_FALLBACK_SEEDERS = 2
LEAD_FRACTION = 0.02
"""A child may be this part of the image ahead of a new parent: reports are seconds old."""

_UPSTREAM = 5


@dataclass(frozen=True)
class RelayPeer:
    """Where a node or a seeder answers to BitTorrent."""

    node: str
    address: str
    port: int


@dataclass(frozen=True)
class Member:
    """A node that wants or holds the image; with ``port`` 0 nobody can fetch from it."""

    node: str
    address: str
    port: int
    rack: str = ""
    has_all: bool = False
    progress: float = 0.0
    """Part of the image that it holds, 0 to 1."""

    @property
    def peer(self) -> RelayPeer:
        return RelayPeer(self.node, self.address, self.port)

    @property
    def serves(self) -> bool:
        return self.port > 0 and self.address != ""


@dataclass(frozen=True)
class Links:
    """What one node is told of its peers."""

    parents: tuple[RelayPeer, ...] = ()
    fallbacks: tuple[RelayPeer, ...] = ()
    neighbours: tuple[RelayPeer, ...] = ()


def line_up(previous: Sequence[str], members: Iterable[Member]) -> tuple[str, ...]:
    """The order of the line: ``previous`` without who left, and with who came (see above)."""
    by_name = {member.node: member for member in members if member.serves}
    line = [by_name[name] for name in dict.fromkeys(previous) if name in by_name]
    standing = {member.node for member in line}
    newcomers = sorted((m for m in by_name.values() if m.node not in standing), key=_rack_order)
    for rack, group in groupby(newcomers, key=lambda member: member.rack):
        _insert(line, rack, list(group))
    return tuple(member.node for member in line)


def demoted(line: Sequence[str], node: str) -> tuple[str, ...]:
    """The line with ``node`` at its end, where nobody waits for it: its child found it slow."""
    if node not in line:
        return tuple(line)
    return (*(name for name in line if name != node), node)


def line_of(parents: Mapping[str, str]) -> tuple[str, ...]:
    """A line in which every node stands behind its parent: the old one, from what nodes were told.

    ``parents`` maps a node to its parent, which may be a seeder (it is then not in the line).
    """
    children: dict[str, list[str]] = {}
    for node in sorted(parents):
        children.setdefault(parents[node], []).append(node)
    heads = [node for node in sorted(parents) if parents[node] not in parents]
    line: dict[str, None] = {}
    stack = list(reversed(heads))
    while stack:
        node = stack.pop()
        if node not in line:
            line[node] = None
            stack.extend(reversed(children.get(node, [])))
    # What is left stands in a ring, which no plan of ours makes: any order will do.
    return (*line, *(node for node in sorted(parents) if node not in line))


def plan_relay(
    line: Sequence[str], members: Iterable[Member], seeders: Iterable[Member]
) -> dict[str, Links]:
    """Parents, fallbacks and neighbours of every member.

    ``line`` comes from ``line_up`` with the same members. Following first parents from any node
    ends at a seeder or at a node that has the whole image, if there is any.
    """
    by_name = {member.node: member for member in members}
    sources = sorted((s for s in seeders if s.serves), key=lambda seeder: seeder.node)
    standing = [by_name[name] for name in line]
    heads = _heads(standing, sources)
    plan = {
        member.node: _links(standing, place, heads, sources)
        for place, member in enumerate(standing)
    }
    for member in by_name.values():
        if member.node not in plan:
            plan[member.node] = _links([*standing, member], len(standing), {}, sources)
    return plan


def _rack_order(member: Member) -> tuple[str, bool, str]:
    return (member.rack, not member.has_all, member.node)


def _insert(line: list[Member], rack: str, newcomers: Sequence[Member]) -> None:
    places = [place for place, other in enumerate(line) if other.rack == rack]
    if not places:
        line.extend(newcomers)
        return
    successor = line[places[-1] + 1] if places[-1] + 1 < len(line) else None
    here: list[Member] = []
    last: list[Member] = []
    for member in newcomers:
        if member.has_all:
            continue
        ahead = 0.0 if successor is None or successor.has_all else successor.progress
        (last if ahead > member.progress + LEAD_FRACTION else here).append(member)
    line[places[-1] + 1 : places[-1] + 1] = here
    # A source before its rack feeds the rack.
    line[places[0] : places[0]] = [member for member in newcomers if member.has_all]
    line.extend(last)


def _heads(line: Sequence[Member], sources: Sequence[Member]) -> dict[str, Member]:
    """The nodes whose parent is a seeder."""
    if not line or not sources:
        return {}
    first_of_rack: dict[str, str] = {}
    for member in line:
        first_of_rack.setdefault(member.rack, member.node)
    heads: dict[str, Member] = {}
    for seeder in sources[1:]:
        rack = max(first_of_rack, key=lambda rack: _weight(seeder.node, rack))
        heads.setdefault(first_of_rack[rack], seeder)
    heads[line[0].node] = sources[0]
    return heads


def _weight(seeder: str, rack: str) -> bytes:
    return hashlib.sha256(f"{seeder}\n{rack}".encode()).digest()


def _links(
    line: Sequence[Member], place: int, heads: Mapping[str, Member], sources: Sequence[Member]
) -> Links:
    member = line[place]
    parent = heads.get(member.node) or _before(line, place) or next(iter(sources), None)
    if parent is None:
        return Links(neighbours=_near(line, place, {member.node}))
    upstream = [other for other in reversed(line[max(place - 2, 0) : place]) if other != parent]
    names = {member.node, parent.node}
    fallbacks = [
        other.peer
        for other in (*upstream[:1], *sources[:MAX_FALLBACK_SEEDERS])
        if other.node not in names
    ]
    names.update(peer.node for peer in fallbacks)
    return Links((parent.peer,), tuple(fallbacks), _near(line, place, names))


def _before(line: Sequence[Member], place: int) -> Member | None:
    if place > 0:
        return line[place - 1]
    # No seeder: whoever has everything feeds the head of the line.
    if line[0].has_all:
        return None
    return next((other for other in line if other.has_all), None)


def _near(line: Sequence[Member], place: int, taken: set[str]) -> tuple[RelayPeer, ...]:
    """The nearest in the line, more of them before ``place``: those have more than it has."""
    reach = MAX_NEIGHBOURS + len(taken)
    upstream = reversed(line[max(place - reach, 0) : place])
    before = [other for other in upstream if other.node not in taken][:_UPSTREAM]
    # The direct successor connects to us by itself.
    downstream = line[place + 2 : place + 2 + reach]
    after = [other for other in downstream if other.node not in taken]
    return tuple(other.peer for other in (before + after)[:MAX_NEIGHBOURS])
