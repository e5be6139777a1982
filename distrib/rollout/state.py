"""All that the rollout service knows, and the step that makes it true outside: ``settle``.

Changes are made in memory and leave marks: torrents to plan anew, nodes to tell, rows to write.
``settle`` works the marks off. It writes to the database first and gives back what is to be
published; where writing fails the marks stay, and the next ``settle`` does it all.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Iterable, Mapping
from dataclasses import replace
from datetime import datetime

from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

from distrib.bus.messages import (
    Cancel,
    Desired,
    Event,
    ParentLost,
    Presence,
    Report,
    SeederPresence,
)
from distrib.bus.topics import Topics
from distrib.db.session import Database
from distrib.rollout import machine, records
from distrib.rollout.desired import Assigned, Wanted, report_interval_s, seal_desired, wanted_of
from distrib.rollout.ending import Ending, Endings
from distrib.rollout.ending_records import load_endings, note_ended
from distrib.rollout.fleet import Fleet, complete_in, place_of, reach_of, source_of
from distrib.rollout.granting import Granting
from distrib.rollout.numbers import Numbers
from distrib.rollout.orders import OrderBook, Outbox
from distrib.rollout.plan import InventoryNode, parse_selector
from distrib.rollout.planner import Planner
from distrib.rollout.records import CONTROLLER, IssuedNumbers, RolloutRecord


class State:
    """Changed by the rollout service's task alone; its attributes may be read between awaits."""

    def __init__(
        self,
        topics: Topics,
        *,
        database: Database,
        key: Ed25519PrivateKey,
        clock: Callable[[], datetime],
    ) -> None:
        self.fleet = Fleet(topics)
        self.rollouts: dict[str, RolloutRecord] = {}
        self.assigned: dict[str, tuple[Assigned, ...]] = {}
        self.sent: dict[str, bytes] = {}
        self._database = database
        self._key = key
        self._clock = clock
        self.planner = Planner(self.fleet)
        self.granting = Granting(self.fleet, self.planner, clock=clock)
        self._endings = Endings()
        self._holders: dict[str, set[str]] = {}
        self._sizes: dict[str, int] = {}
        self._numbers = Numbers()
        self._published: dict[str, Wanted] = {}
        # Marks: what settle has to do.
        self._torrents: set[str] = set()
        self._nodes: set[str] = set()
        self._rows: dict[str, set[str]] = {}
        self._unsent: set[tuple[str, str]] = set()
        self._ended: set[str] = set()
        self._changed: set[str] = set()
        self._orders = OrderBook()
        self._time_passed = False

    # -- beginning ------------------------------------------------------------------------------

    def load(self, silent_s: float) -> None:
        """Read the database. Before anything else; in a thread."""
        with self._database.reading() as session:
            self.fleet.inventory = records.load_inventory(session)
            self._numbers.issued = records.load_numbers(session)
            self.rollouts = records.load_live(session, silent_s=silent_s)
            assigned = records.load_assignments(session)
            self._endings.replace(load_endings(session, self._clock()))
        self.replace_assignments(assigned)
        for name, kept in self.rollouts.items():
            rows = kept.rollout.targets.values()
            self._unsent |= {(name, target.node) for target in rows if target.generation is None}

    def adopt(self, own: Mapping[str, Desired], raw: Mapping[str, bytes]) -> None:
        """Take up what nodes were told by the controller before us, from its retained messages."""
        for node, desired in own.items():
            if node not in self.fleet.inventory:
                continue
            self._published[node] = Wanted.of(desired)
            self.sent[node] = raw[node]
            self._numbers.at_least(node, desired.generation)
        self.planner.adopt(self._published)
        self._torrents |= self._holders.keys()
        self._nodes |= self.assigned.keys() | self._published.keys()

    def listening(self) -> None:
        """Everything that was retained has arrived: at first, and after each lost connection."""
        now = self._clock()
        for name, kept in list(self.rollouts.items()):
            rollout = kept.rollout
            for node in list(rollout.targets):
                if node not in self.fleet.inventory:
                    self._move(name, machine.left(rollout, node), node)
                else:
                    self._look_at(name, node, now)
                rollout = self.rollouts[name].rollout
            self.rollouts[name] = kept.moved(machine.listening(rollout, now))

    # -- what happens ---------------------------------------------------------------------------

    def time_passed(self, *, clocks: bool = True) -> None:
        """Look at who is slower than its place and, with ``clocks``, at those of all rollouts."""
        self._time_passed |= clocks
        self._torrents |= self.planner.find_slow(self._clock(), yields=self._yields)

    def presence_changed(self, node: str, before: object) -> None:
        """The node came, went, or says something else of itself."""
        now = self._clock()
        for name in self.rollouts:
            self._look_at(name, node, now)
        after = self.fleet.presences.get(node)
        if reach_of(before if isinstance(before, Presence) else None) != reach_of(after):
            self._torrents |= {one.infohash for one in self.assigned.get(node, ())}

    def report_changed(self, node: str, before: object) -> None:
        """The node has a newer report."""
        now = self._clock()
        for name in self.rollouts:
            self._look_at(name, node, now)
        finished = complete_in(self.fleet.reports.get(node))
        if isinstance(before, Report):
            finished -= complete_in(before)
        # With a seeder, who finishes moves nobody.
        self._torrents |= {
            infohash
            for infohash in finished & self._holders.keys()
            if not self.fleet.seeders_of(infohash)
        }

    def seeder_changed(self, after: SeederPresence, before: object) -> None:
        """A seeder came, went, or has other torrents."""
        known = before if isinstance(before, SeederPresence) else None
        if known is not None and source_of(known) == source_of(after):
            return
        moved = set(after.infohashes) | set(known.infohashes if known else ())
        for infohash in moved & self._holders.keys():
            self._torrents.add(infohash)
            self._nodes |= self._holders[infohash]

    def parent_lost(self, lost: ParentLost, *, child: str) -> None:
        """A node gets nothing from its parent."""
        if self.planner.parent_lost(lost, child=child, now=self._clock()):
            self._torrents.add(lost.infohash)

    def add_rollout(self, kept: RolloutRecord, wanted: Mapping[str, tuple[Assigned, ...]]) -> None:
        """A rollout was accepted, and is in the database."""
        name = kept.rollout.id
        self.rollouts[name] = kept
        self._unsent |= {(name, node) for node in kept.rollout.targets}
        for node, held in wanted.items():
            self.assign(node, held)
        self._drop_settled_rollouts()

    def abort(self, ended: RolloutRecord, wanted: Mapping[str, tuple[Assigned, ...]]) -> None:
        """A rollout was aborted: these nodes stop pulling."""
        name, infohash = ended.rollout.id, ended.rollout.image.infohash
        self.rollouts[name] = ended
        self._changed.add(name)
        self._unsent = {mark for mark in self._unsent if mark[0] != name}
        for node, held in wanted.items():
            self.assign(node, held)
            still_wanted = any(one.infohash == infohash for one in held)
            if self.fleet.is_online(node) and not still_wanted:
                self._orders.add(node, Cancel(infohash=infohash))

    def set_endings(self, endings: Iterable[Ending]) -> None:
        """What runs from these images is to be ended, wherever it is found."""
        self._endings.replace(endings)

    def forget(self, node: str) -> None:
        """The node was taken off the inventory."""
        self.assign(node, ())
        self.fleet.forget(node)
        for marks in (self._published, self.sent):
            marks.pop(node, None)
        self._orders.drop(node)
        self._nodes.discard(node)
        for name, kept in list(self.rollouts.items()):
            self._move(name, machine.left(kept.rollout, node), node)

    def set_inventory(
        self, node: str, inventory: Mapping[str, InventoryNode]
    ) -> list[RolloutRecord]:
        """``node`` has changed in the inventory; the rollouts that it matches and was not in."""
        before = self.fleet.inventory.get(node)
        self.fleet.inventory = dict(inventory)
        after = inventory.get(node)
        if after is None:
            return []
        if before is not None and place_of(before) != place_of(after):
            self._torrents |= {one.infohash for one in self.assigned.get(node, ())}
        newest: dict[str, RolloutRecord] = {}
        for kept in sorted(self.rollouts.values(), key=lambda kept: kept.rollout.accepted_at):
            image = kept.rollout.image
            if (
                kept.rollout.phase in {machine.Phase.RUNNING, machine.Phase.DONE}
                and image.infohash in self._holders
                and parse_selector(kept.selector).matches(after)
            ):
                newest[image.identifier] = kept
        joined = [kept for kept in newest.values() if node not in kept.rollout.targets]
        if before is not None and before.transport != after.transport:
            self._nodes.add(node)
        online, now = self.fleet.is_online(node), self._clock()
        for kept in joined:
            name = kept.rollout.id
            self._move(name, machine.joined(kept.rollout, node, online=online, now=now), node)
            self._unsent.add((name, node))
        return joined

    def assign(self, node: str, held: tuple[Assigned, ...]) -> None:
        """Other images are wanted on the node, or other ones are active."""
        before = self.assigned.get(node, ())
        if before == held:
            return
        if held:
            self.assigned[node] = held
        else:
            self.assigned.pop(node, None)
        old, new = {one.infohash for one in before}, {one.infohash for one in held}
        for infohash in old - new:
            self._holders[infohash].discard(node)
            if not self._holders[infohash]:
                del self._holders[infohash]
        for infohash in new - old:
            self._holders.setdefault(infohash, set()).add(node)
        self._sizes |= {one.infohash: one.size_bytes for one in held}
        self._torrents |= old ^ new
        self._nodes.add(node)

    def replace_assignments(self, assigned: Mapping[str, tuple[Assigned, ...]]) -> None:
        """What is wanted was read anew: images may have come or gone."""
        for node in self.assigned.keys() | assigned.keys():
            self.assign(node, assigned.get(node, ()))

    # -- making it true -------------------------------------------------------------------------

    async def settle(self, events: Iterable[Event]) -> Outbox:
        """Work the marks off. Raises DistribError where the database cannot be written."""
        now = self._clock()
        told = self._told()
        numbers: dict[str, IssuedNumbers] = {}
        for node in told:
            numbers[node] = self._numbers.next_generation(node, now)
        for node, ends in self._endings.look(self.fleet, now).items():
            self._orders.add(node, *ends)
        for node, grant in self.granting.due(now):
            self._orders.add(node, grant)
        for node in self._orders.nodes:
            numbers[node] = self._numbers.next_sequence(node, now)
        self._mark_issued(told, now)
        self._advance(now)
        await self._save(numbers, list(events), now)
        desired = {
            node: seal_desired(
                node, wanted, generation=numbers[node].generation, now=now, key=self._key
            )
            for node, wanted in told.items()
        }
        orders = self._orders.sealed(numbers, now=now, key=self._key)
        outbox = Outbox(desired, orders, frozenset(self._changed))
        self._published |= told
        self.sent |= desired
        for marks in (self._nodes, self._rows, self._ended, self._changed):
            marks.clear()
        self._orders.clear()
        self._endings.unsaved.clear()
        return outbox

    def _told(self) -> dict[str, Wanted]:
        """Plan what needs it; who is to be told what."""
        for infohash in self._torrents:
            holders = self._holders.get(infohash)
            if holders:
                size_bytes = self._sizes[infohash]
                self._nodes |= self.planner.plan(infohash, holders, size_bytes=size_bytes)
            else:
                self.planner.drop(infohash)
        self._torrents.clear()
        interval_s = report_interval_s(len(self.fleet.inventory))
        told: dict[str, Wanted] = {}
        for node in self._nodes & self.fleet.inventory.keys():
            held = self.assigned.get(node, ())
            links = {one.infohash: self.planner.links(node, one.infohash) for one in held}
            wanted = wanted_of(
                held,
                links,
                interval_s=interval_s,
                transport=self.fleet.inventory[node].transport,
                web_seeds=self.fleet.web_seeds_of,
            )
            before = self._published.get(node)
            if wanted.images if before is None else wanted.is_news_after(before):
                told[node] = wanted
        return told

    def _mark_issued(self, told: Mapping[str, Wanted], now: datetime) -> None:
        for name, node in list(self._unsent):
            kept, wanted = self.rollouts.get(name), told.get(node) or self._published.get(node)
            if kept is None:
                self._unsent.discard((name, node))
            elif wanted is not None and wanted.names(kept.rollout.image.infohash):
                sent = self._numbers.generation(node)
                self._move(name, machine.issued(kept.rollout, node, sent, now), node)
                self._unsent.discard((name, node))

    def _advance(self, now: datetime) -> None:
        moved = self.rollouts.keys() if self._time_passed else self._changed
        self._time_passed = False
        for name in list(moved):
            before = self.rollouts[name].rollout
            after = machine.advanced(before, now)
            if after is before:
                continue
            for node, target in after.targets.items():
                if target is not before.targets.get(node):
                    self._rows.setdefault(name, set()).add(node)
            self.rollouts[name] = self.rollouts[name].moved(after)
            self._changed.add(name)
            if not after.is_running:
                self._ended.add(name)

    async def _save(
        self, numbers: Mapping[str, IssuedNumbers], events: list[Event], now: datetime
    ) -> None:
        if not (numbers or events or self._rows or self._ended or self._endings.unsaved):
            return

        def save() -> None:
            with self._database.transaction() as session:
                records.save_numbers(session, numbers)
                for name, nodes in self._rows.items():
                    records.save_targets(session, self.rollouts[name].rollout, nodes)
                for name in self._ended:
                    records.end_rollout(session, self.rollouts[name], actor=CONTROLLER)
                records.add_events(session, events, now=now)
                note_ended(session, self._endings.unsaved, now=now)

        await asyncio.to_thread(save)

    def _yields(self, node: str, infohash: str) -> bool:
        held = self.assigned.get(node, ())
        return any(one.traffic == "background" for one in held if one.infohash == infohash)

    # -- rollouts -------------------------------------------------------------------------------

    def _look_at(self, name: str, node: str, now: datetime) -> None:
        """Hold the node's presence and newest report against its row."""
        rollout = self.rollouts[name].rollout
        if node not in rollout.targets:
            return
        rollout = machine.seen(rollout, node, online=self.fleet.is_online(node), now=now)
        report = self.fleet.reports.get(node)
        if report is not None:
            rollout = machine.reported(
                rollout,
                node,
                generation=report.generation,
                claim=self.fleet.claim(node, rollout.image),
                now=now,
            )
        self._move(name, rollout, node)

    def _move(self, name: str, rollout: machine.Rollout, node: str) -> None:
        kept = self.rollouts[name]
        before, after = kept.rollout.targets.get(node), rollout.targets.get(node)
        self.rollouts[name] = kept.moved(rollout)
        if _seen(before) != _seen(after):
            self._changed.add(name)
        if records.worth_a_write(before) != records.worth_a_write(after):
            self._rows.setdefault(name, set()).add(node)

    def _drop_settled_rollouts(self) -> None:
        """Those that have ended, and whose image no node holds because of them."""
        wanted = {one.rollout for held in self.assigned.values() for one in held}
        for name, kept in list(self.rollouts.items()):
            if not kept.rollout.is_running and name not in wanted and name not in self._changed:
                del self.rollouts[name]


def _seen(target: machine.Target | None) -> object:
    """What a watcher sees of a row."""
    return target and replace(target, heard_at=None, issued_at=None)
