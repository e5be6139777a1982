"""The relay plans of all torrents over the fleet, kept from one change to the next."""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping
from datetime import UTC, datetime, timedelta
from functools import partial

import structlog

from distrib.bus.messages import ImageReport, NodeReason, ParentLost, State
from distrib.rollout.desired import Wanted, report_interval_s
from distrib.rollout.fleet import Fleet
from distrib.swarm.relay import RelayPlan, plan_relay
from distrib.swarm.relay_cost import Terms
from distrib.swarm.relay_groups import Layout, chains_of, is_last, moved_behind
from distrib.swarm.relay_layout import lay_out, typical_link_bps
from distrib.swarm.relay_pace import FAR_HOLD_S, HOLD_S, METER_S, Meter, Pace, Pull, judge
from distrib.swarm.relay_peers import Links
from distrib.swarm.torrent import piece_bytes_for

log = structlog.get_logger(__name__)

DEMOTE_AGAIN = timedelta(seconds=10)
"""A node is moved to the end of a line at most this often, however many complain of it."""

COMPLAINTS = 3
COMPLAINTS_AGE = timedelta(seconds=60)
"""One node's complaints move so many others in that time: who accuses one after another may lie, or
is itself what it complains of. Its own agent goes to fallbacks without us."""

HOLD_REPORTS = 2.5
"""A node is slow only after so many of its reports have said so."""

FAR_HOLD_REPORTS = 0.7
"""The same for one that is far slower: the next report."""

LOOK_REPORTS = 0.4
"""Not sooner than that after the last look has much been reported."""

FRESH_REPORTS = 1.8
"""A report is not news any more after so many others should have come."""

SETTLE_S = 2.5
"""Whose peers have changed is not judged for so long: libtorrent connects once a second, and what
has to be asked for anew takes its time."""

METER_PIECES = 8
"""So many pieces should come between two reports, or what comes says nothing of the rate."""


class Planner:
    """Who fetches from whom, by torrent. Only the rollout service's loop changes it."""

    def __init__(self, fleet: Fleet) -> None:
        self._fleet = fleet
        self._layouts: dict[str, Layout] = {}
        self._plans: dict[str, RelayPlan] = {}
        self._links: dict[str, Mapping[str, Links]] = {}
        self._paces: dict[str, Pace] = {}
        self._meters: dict[str, dict[str, Meter]] = {}
        self._unsettled: dict[str, set[str]] = {}
        self._settling_until_s: dict[str, dict[str, float]] = {}
        self._demoted_at: dict[tuple[str, str], datetime] = {}
        self._complaints: dict[tuple[str, str], list[datetime]] = {}
        self._looked_at = datetime.min.replace(tzinfo=UTC)

    def adopt(self, published: Mapping[str, Wanted]) -> None:
        """Take up the chains that nodes were told by the controller before us."""
        parents: dict[str, dict[str, list[str]]] = {}
        for node, wanted in published.items():
            for image in wanted.images:
                told = [peer.node for peer in image.parents]
                parents.setdefault(image.infohash, {})[node] = told
        racks = {name: entry.rack for name, entry in self._fleet.inventory.items()}
        self._layouts = {infohash: chains_of(of, racks) for infohash, of in parents.items()}

    def plan(self, infohash: str, nodes: Collection[str], *, size_bytes: int = 0) -> set[str]:
        """Plan one torrent anew for ``nodes``; those whose peers are others now."""
        fleet = self._fleet
        seeders = fleet.seeders_of(infohash)
        members = {node: fleet.member(node, infohash) for node in nodes if fleet.is_online(node)}
        serving = {node: member for node, member in members.items() if member.serves}
        terms = Terms(
            size_bytes=size_bytes,
            piece_bytes=piece_bytes_for(size_bytes),
            link_bps=typical_link_bps(serving.values(), seeders),
            trees=all(member.stripe_ports for member in serving.values()),
        )
        layout = lay_out(self._layouts.get(infohash, ()), serving, seeders, terms)
        plan = plan_relay(layout, members, seeders, self._plans.get(infohash))
        # Who is offline comes back to the seeders, and gets its place when it is here.
        ordered = sorted(seeders, key=lambda seeder: seeder.node)
        sources = tuple(seeder.peer for seeder in ordered if seeder.serves)
        away = Links(parents=sources[:1], fallbacks=sources[1:3])
        links = dict(plan.links)
        links |= {node: away for node in nodes if node not in links}
        before = self._links.get(infohash, {})
        self._layouts[infohash], self._plans[infohash] = layout, plan
        self._links[infohash] = links
        # In a block that is as it was they are the very same.
        changed = {
            node
            for node, own in links.items()
            if (known := before.get(node)) is not own and known != own
        }
        self._unsettled.setdefault(infohash, set()).update(
            node for node in changed if _parents(before.get(node)) != _parents(links[node])
        )
        return changed

    def drop(self, infohash: str) -> None:
        """Nobody wants the torrent any more."""
        for kept in (
            self._layouts,
            self._plans,
            self._links,
            self._paces,
            self._meters,
            self._unsettled,
            self._settling_until_s,
        ):
            kept.pop(infohash, None)
        for by_node in (self._demoted_at, self._complaints):
            for key in [key for key in by_node if key[0] == infohash]:
                del by_node[key]

    def links(self, node: str, infohash: str) -> Links:
        """The peers of a node, as planned last."""
        return self._links.get(infohash, {}).get(node, Links())

    def planned(self, infohash: str) -> Mapping[str, Links]:
        """The peers of all nodes that want a torrent, as planned last."""
        return self._links.get(infohash, {})

    def parent_lost(self, lost: ParentLost, *, child: str, now: datetime) -> bool:
        """``child`` gets nothing from its parent; whether the plan has to change.

        The parent goes to the end, unless it has no more than the child itself: then it waits for
        a parent of its own, and whoever is at fault is named by another. One that spoils what it
        sends goes there however much it has. Not by one node's word alone, again and again.
        """
        infohash, parent = lost.infohash, lost.parent
        told = [peer.node for peer in self.links(child, infohash).parents]
        if parent not in told:
            return False
        # Its word excuses a node once at a time: else who complains all the while is never judged.
        if child not in self._settling_until_s.get(infohash, {}):
            self._unsettled.setdefault(infohash, set()).add(child)
        spoils = lost.reason is NodeReason.HASH_FAILED
        if not spoils and {parent, child} <= self._fleet.inventory.keys():
            has = self._fleet.member(parent, infohash).progress
            if has < 1.0 and has <= self._fleet.member(child, infohash).progress:
                return False
        recent = [
            at for at in self._complaints.get((infohash, child), ()) if now - at < COMPLAINTS_AGE
        ]
        if len(recent) >= COMPLAINTS or not self._move_behind(infohash, parent, now):
            return False
        self._complaints[infohash, child] = [*recent, now]
        return True

    def find_slow(
        self, now: datetime, *, yields: Callable[[str, str], bool] = lambda _node, _infohash: False
    ) -> set[str]:
        """Move who is slower than its place; the torrents that are to be planned anew.

        A torrent is left alone while a node that ``yields`` fetches it: beside a job it is slow by
        design, and so is who is fed by it."""
        interval_s = report_interval_s(len(self._fleet.inventory))
        moved = set[str]()
        if 0 <= (now - self._looked_at).total_seconds() < LOOK_REPORTS * interval_s:
            return moved
        self._looked_at = now
        for infohash in self._plans:
            pulls = self._pulls(infohash, now.timestamp(), interval_s)
            if not pulls or any(yields(node, infohash) for node in pulls):
                self._paces.pop(infohash, None)
                continue
            self._paces[infohash], guilty = judge(
                self._paces.get(infohash, Pace()),
                pulls,
                now_s=now.timestamp(),
                hold_s=max(HOLD_S, HOLD_REPORTS * interval_s),
                far_hold_s=max(FAR_HOLD_S, FAR_HOLD_REPORTS * interval_s),
                movable=partial(self._is_movable, infohash, now=now),
            )
            for node in sorted(guilty):
                if self._move_behind(infohash, node, now):
                    log.info("slow-node-moved", node=node, infohash=infohash)
                    moved.add(infohash)
        return moved

    def _pulls(self, infohash: str, now_s: float, interval_s: float) -> dict[str, Pull]:
        """Who fetches, and how fast: what came between two reports, where that says something."""
        before, meters = self._meters.get(infohash, {}), dict[str, Meter]()
        settling = self._settle(infohash, now_s)
        fetching = {}
        for node in self._plans[infohash].links:
            held = self._fleet.held(node, infohash)
            if held is None or held.state is not State.PULLING or not held.bytes_total:
                continue
            # Who copies most of it from an older version fetches little: it is not slow.
            if not held.copied_bytes:
                fetching[node] = held
                sent_at_s = self._fleet.reports[node].sent_at.timestamp()
                begun = Meter(held.bytes_done, sent_at_s, now_s)
                known = begun if node in settling else before.get(node, begun)
                meters[node] = known.read(held.bytes_done, sent_at_s, now_s=now_s)
        self._meters[infohash] = meters
        rates = {node: _rate_bps(meters[node], held) for node, held in fetching.items()}
        best_bps = max(rates.values(), default=0)
        pulls = {}
        for node, held in fetching.items():
            links, meter = self._plans[infohash].links[node], meters[node]
            parents = _parents(links)
            # The median would not do: a node that is slow early in a line slows most of all others.
            due_bps = min((rates.get(parent, best_bps) for parent in parents), default=0)
            pieces_bytes = METER_PIECES * piece_bytes_for(held.bytes_total)
            enough = max(due_bps, rates[node]) * METER_S >= pieces_bytes
            new = now_s - meter.heard_s <= FRESH_REPORTS * interval_s
            metered = meter.rate_bps if enough and new else None
            pulls[node] = Pull(
                rate_bps=held.rate_bps if metered is None else metered,
                progress=held.bytes_done / held.bytes_total,
                parents=parents,
                settling=node in settling,
                metered_at_s=None if metered is None else meter.sent_at_s,
            )
        return pulls

    def _settle(self, infohash: str, now_s: float) -> Mapping[str, float]:
        """Whose peers have changed so lately that its rate says nothing, and until when."""
        until_s = {n: s for n, s in self._settling_until_s.get(infohash, {}).items() if s > now_s}
        until_s |= dict.fromkeys(self._unsettled.pop(infohash, ()), now_s + SETTLE_S)
        self._settling_until_s[infohash] = until_s
        return until_s

    def _is_movable(self, infohash: str, node: str, *, now: datetime) -> bool:
        last = self._demoted_at.get((infohash, node))
        recent = last is not None and now - last < DEMOTE_AGAIN
        return not recent and not is_last(self._layouts.get(infohash, ()), node)

    def _move_behind(self, infohash: str, node: str, now: datetime) -> bool:
        if not self._is_movable(infohash, node, now=now):
            return False
        layout = self._layouts.get(infohash, ())
        moved = moved_behind(layout, node)
        if moved == layout:
            return False
        self._demoted_at[infohash, node] = now
        self._layouts[infohash] = moved
        return True


def _parents(links: Links | None) -> tuple[str, ...]:
    return tuple(dict.fromkeys(peer.node for peer in links.parents)) if links else ()


def _rate_bps(meter: Meter, held: ImageReport) -> int:
    return held.rate_bps if meter.rate_bps is None else meter.rate_bps
