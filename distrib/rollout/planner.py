"""The relay plans of all torrents over the fleet, kept from one change to the next."""

from __future__ import annotations

from collections.abc import Collection, Mapping
from datetime import datetime, timedelta

from distrib.rollout.desired import Wanted
from distrib.rollout.fleet import Fleet
from distrib.swarm.relay import Links, demoted, line_of, line_up, plan_relay

DEMOTE_AGAIN = timedelta(seconds=10)
"""A node is moved to the end of a line at most this often, however many complain of it."""


class Planner:
    """Who fetches from whom, by torrent. Only the rollout service's loop changes it."""

    def __init__(self, fleet: Fleet) -> None:
        self._fleet = fleet
        self._lines: dict[str, tuple[str, ...]] = {}
        self._links: dict[str, dict[str, Links]] = {}
        self._demoted_at: dict[tuple[str, str], datetime] = {}

    def adopt(self, published: Mapping[str, Wanted]) -> None:
        """Take up the lines that nodes were told by the controller before us."""
        parents: dict[str, dict[str, str]] = {}
        for node, wanted in published.items():
            for image in wanted.images:
                parent = wanted.parent_of(image.infohash) or ""
                parents.setdefault(image.infohash, {})[node] = parent
        self._lines = {infohash: line_of(of) for infohash, of in parents.items()}

    def plan(self, infohash: str, nodes: Collection[str]) -> set[str]:
        """Plan one torrent anew for ``nodes``; those whose peers are others now."""
        fleet = self._fleet
        seeders = fleet.seeders_of(infohash)
        members = [fleet.member(node, infohash) for node in nodes if fleet.is_online(node)]
        line = line_up(self._lines.get(infohash, ()), members)
        links = plan_relay(line, members, seeders)
        # Who is offline comes back to the seeders, and gets its place in the line when it is here.
        ordered = sorted(seeders, key=lambda seeder: seeder.node)
        sources = tuple(seeder.peer for seeder in ordered if seeder.serves)
        away = Links(parents=sources[:1], fallbacks=sources[1:3])
        links |= {node: away for node in nodes if node not in links}
        before = self._links.get(infohash, {})
        self._lines[infohash], self._links[infohash] = line, links
        return {node for node, own in links.items() if before.get(node) != own}

    def drop(self, infohash: str) -> None:
        """Nobody wants the torrent any more."""
        self._lines.pop(infohash, None)
        self._links.pop(infohash, None)
        for key in [key for key in self._demoted_at if key[0] == infohash]:
            del self._demoted_at[key]

    def links(self, node: str, infohash: str) -> Links:
        """The peers of a node, as planned last."""
        return self._links.get(infohash, {}).get(node, Links())

    def parent_lost(self, infohash: str, *, child: str, parent: str, now: datetime) -> bool:
        """``child`` gets nothing from ``parent``; whether the line has changed.

        The parent goes to the end of the line, unless it has no more than the child itself: then
        it waits for a parent of its own, and whoever is at fault is named by another.
        """
        line = self._lines.get(infohash, ())
        told = [peer.node for peer in self.links(child, infohash).parents]
        if parent not in line or parent not in told or line[-1] == parent:
            return False
        last = self._demoted_at.get((infohash, parent))
        if last is not None and now - last < DEMOTE_AGAIN:
            return False
        if parent in self._fleet.inventory and child in self._fleet.inventory:
            has = self._fleet.member(parent, infohash).progress
            if has < 1.0 and has <= self._fleet.member(child, infohash).progress:
                return False
        self._demoted_at[infohash, parent] = now
        self._lines[infohash] = demoted(line, parent)
        return True
