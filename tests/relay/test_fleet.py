"""5,000 nodes in the controller's state: what a change costs, and who is told of it.

The nodes are fake: presences and reports as agents send them, and no bytes. State, database, plan
and signatures are the real ones.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from sqlalchemy import insert
from structlog.testing import capture_logs

from distrib.bus.messages import (
    Desired,
    ImageReport,
    NodeReason,
    ParentLost,
    Presence,
    Report,
    SeederPresence,
)
from distrib.bus.messages import State as ImageState
from distrib.bus.schema import encode
from distrib.bus.topics import Topics
from distrib.db import models
from distrib.db.schema import upgrade
from distrib.db.session import Database, sqlite_url
from distrib.rollout.desired import Assigned, open_own
from distrib.rollout.planner import COMPLAINTS_AGE
from distrib.rollout.state import State
from distrib.swarm.relay_trees import MOVED_BY_ONE_CHANGE

IMAGE = "7cb7a2d5-0f0e-4f43-9a11-3a9f5e0f6c11"
INFOHASH = "a1" * 32
SIZE = 10_000_000_000
NODES = 5000
PER_RACK = 40


@dataclass
class FakeFarm:
    """As many nodes as there are rows, and what they say."""

    database: Database
    state: State
    key: Ed25519PrivateKey
    now: datetime
    told: dict[str, Desired]
    names: tuple[str, ...]

    def say(self, node: str, *, online: bool = True, trees: bool = True) -> None:
        ports = (6881, 6882) if trees else ()
        presence = Presence(node=node, online=online, swarm_port=6881, stripe_ports=ports)
        heard = self.state.fleet.hear(f"distrib/v1/node/{node}/presence", encode(presence))
        assert heard is not None
        self.state.presence_changed(node, heard.before)

    def report(
        self,
        node: str,
        *,
        rate_bps: int,
        bytes_done: int,
        state: ImageState = ImageState.PULLING,
    ) -> None:
        image = ImageReport(
            identifier=IMAGE,
            version="1.0.0",
            infohash=INFOHASH,
            state=state,
            bytes_done=bytes_done,
            bytes_total=SIZE,
            rate_bps=rate_bps,
            since=self.now,
        )
        report = Report(node=node, boot_id="b", sent_at=self.now, images=(image,))
        heard = self.state.fleet.hear(f"distrib/v1/node/{node}/report", encode(report))
        assert heard is not None
        self.state.report_changed(node, heard.before)

    def hear_seeder(self) -> SeederPresence:
        seeder = SeederPresence(
            seeder="seeder", online=True, address="192.0.2.1", port=6881, infohashes=(INFOHASH,)
        )
        self.state.fleet.hear("distrib/v1/seeder/seeder/presence", encode(seeder))
        return seeder

    async def settle(self) -> set[str]:
        """Who is told anew."""
        outbox = await self.state.settle(())
        for node, raw in outbox.desired.items():
            opened = open_own(node, raw, self.key)
            assert opened is not None
            self.told[node] = opened
        return set(outbox.desired)

    def parents(self, node: str) -> list[str]:
        (image,) = self.told[node].images
        return [peer.node for peer in image.parents]


MakeFarm = Callable[[int], FakeFarm]


@pytest.fixture
def make_farm(tmp_path: Path) -> Iterator[MakeFarm]:
    """Nodes of a real database, all assigned one image, and a seeder that has it."""
    opened: list[Database] = []

    def make(count: int) -> FakeFarm:
        now = datetime(2026, 3, 1, tzinfo=UTC)
        database = Database(sqlite_url(tmp_path / "distrib.db"))
        opened.append(database)
        upgrade(database)
        names = tuple(f"wn{n:04}" for n in range(count))
        rows = [
            {
                "name": name,
                "address": f"10.0.{n // 250}.{n % 250}",
                "rack": f"R{n // PER_RACK:03}",
                "labels": {},
                "added_at": now,
                "added_by": "t",
            }
            for n, name in enumerate(names)
        ]
        with database.transaction() as session:
            session.execute(insert(models.Node), rows)
        key = Ed25519PrivateKey.generate()
        made: list[FakeFarm] = []

        def clock() -> datetime:
            return made[0].now if made else now

        state = State(Topics("distrib/v1"), database=database, key=key, clock=clock)
        state.load(60.0)
        farm = FakeFarm(database, state, key, now, {}, names)
        made.append(farm)
        farm.hear_seeder()
        for name in names:
            one = Assigned(name, IMAGE, "1.0.0", INFOHASH, size_bytes=SIZE)
            state.assign(name, (one,))
        return farm

    yield make
    for database in opened:
        database.close()


async def test_a_change_among_5000_costs_little_and_is_told_to_few(make_farm: MakeFarm) -> None:
    farm = make_farm(NODES)
    for name in farm.names:
        farm.say(name)
    began_s = time.process_time()
    assert len(await farm.settle()) == NODES
    assert time.process_time() - began_s < 15
    assert len({name for name in farm.names if "seeder" in farm.parents(name)}) == 2
    assert all(image.stripes == 2 for told in farm.told.values() for image in told.images)

    costs = []
    for gone in ("wn2500", "wn0000", "wn4999"):
        before = {name: farm.parents(name) for name in farm.names}
        began_s = time.process_time()
        farm.say(gone, online=False)
        told = await farm.settle()
        costs.append(time.process_time() - began_s)
        moved = {name for name in told if farm.parents(name) != before[name]} - {gone}
        assert 0 < len(moved) <= MOVED_BY_ONE_CHANGE
        assert len(told) <= 200
        assert not any(gone in farm.parents(name) for name in farm.names)
    assert max(costs) < 1.0


async def test_one_old_agent_makes_it_a_chain(make_farm: MakeFarm) -> None:
    farm = make_farm(200)
    for name in farm.names:
        farm.say(name, trees=name != "wn0100")
    await farm.settle()
    assert farm.parents("wn0199") == ["wn0198"]
    assert all(image.stripes == 1 for told in farm.told.values() for image in told.images)


async def test_the_next_controller_tells_nobody_anew_when_to_open(make_farm: MakeFarm) -> None:
    farm = make_farm(200)
    for name in farm.names:
        farm.say(name, trees=False)
    await farm.settle()
    # All after it in the chain would open at other moments if the plan began anew.
    farm.say("wn0003", online=False, trees=False)
    await farm.settle()
    before = farm.state
    farm.state = State(
        Topics("distrib/v1"), database=farm.database, key=farm.key, clock=lambda: farm.now
    )
    farm.state.load(60.0)
    farm.state.adopt(farm.told, before.sent)
    farm.state.seeder_changed(farm.hear_seeder(), None)
    for name in farm.names:
        farm.state.assign(name, before.assigned[name])
        farm.say(name, online=name != "wn0003", trees=False)
    assert not await farm.settle()
    opens = {name: farm.state.planner.links(name, INFOHASH).opens_after_ms for name in farm.names}
    assert any(opens[name] != told.images[0].opens_after_ms for name, told in farm.told.items())


@pytest.mark.parametrize(
    ("usual_bps", "seconds_to_wait"),
    [
        pytest.param(100_000_000, range(2, 3), id="by-what-came-between-reports"),
        pytest.param(12_000_000, range(2, 3), id="although-few-pieces-come-to-most"),
        pytest.param(2_500_000, range(6, 9), id="by-the-mean-where-few-pieces-come"),
    ],
)
async def test_a_node_that_reports_a_slow_pull_is_moved_to_the_end(
    make_farm: MakeFarm, usual_bps: int, seconds_to_wait: range
) -> None:
    farm = make_farm(16)
    for name in farm.names:
        farm.say(name)
    await farm.settle()
    assert farm.parents("wn0006") == ["wn0005"]
    done = dict.fromkeys(farm.names, 0)

    async def a_second_at(rates_bps: Mapping[str, int]) -> set[str]:
        for name, rate_bps in rates_bps.items():
            done[name] += rate_bps
            farm.report(name, rate_bps=rate_bps, bytes_done=done[name])
        farm.state.time_passed()
        told = await farm.settle()
        farm.now += timedelta(seconds=1)
        return told

    usual = dict.fromkeys(farm.names, usual_bps)
    for _ in range(4):
        assert not await a_second_at(usual)
    slow = usual | dict.fromkeys(farm.names[5:], usual_bps // 4)
    seconds = 1
    while not await a_second_at(slow):
        seconds += 1
    assert seconds in seconds_to_wait
    assert farm.parents("wn0006") == ["wn0004"]
    assert farm.parents("wn0005") == ["wn0015"]
    # Until its new connection carries something, its child is not taken for slow itself.
    for rate_bps in (0, usual_bps // 5, usual_bps // 5):
        assert not await a_second_at(usual | {"wn0006": rate_bps})


async def test_who_is_slow_and_complains_all_the_while_is_moved_all_the_same(
    make_farm: MakeFarm,
) -> None:
    farm = make_farm(16)
    for name in farm.names:
        farm.say(name)
    await farm.settle()
    done = dict.fromkeys(farm.names, 0)
    with capture_logs() as logs:
        for second in range(30):
            for n, name in enumerate(farm.names):
                done[name] += 25_000_000 if n >= 5 and second > 3 else 100_000_000
                farm.report(name, rate_bps=0, bytes_done=done[name])
            (parent,) = farm.parents("wn0005")
            lost = ParentLost(infohash=INFOHASH, parent=parent, reason=NodeReason.NO_PEERS)
            farm.state.parent_lost(lost, child="wn0005")
            farm.state.time_passed()
            await farm.settle()
            farm.now += timedelta(seconds=1)
    slow = [one["node"] for one in logs if one["event"] == "slow-node-moved"]
    assert slow[:1] == ["wn0005"]


async def test_who_gets_nothing_at_first_is_not_taken_for_slow(make_farm: MakeFarm) -> None:
    farm = make_farm(16)
    for name in farm.names:
        farm.say(name)
    await farm.settle()
    for second in range(5):
        for n, name in enumerate(farm.names):
            rate_bps = 0 if n >= 5 else 100_000_000
            farm.report(name, rate_bps=rate_bps, bytes_done=second * rate_bps)
        farm.state.time_passed()
        assert not await farm.settle()
        farm.now += timedelta(seconds=1)


async def test_who_makes_way_for_a_job_keeps_its_place(make_farm: MakeFarm) -> None:
    farm = make_farm(16)
    early = farm.names[:4]
    for name in farm.names:
        one = Assigned(name, IMAGE, "1.0.0", INFOHASH, size_bytes=SIZE)
        farm.state.assign(name, (replace(one, traffic="background") if name in early else one,))
        farm.say(name)
    await farm.settle()

    async def told_of_slowness_from(fifth: int, fetching: Sequence[str]) -> set[str]:
        told = set[str]()
        for second in range(4):
            for name in fetching:
                rate_bps = 25_000_000 if int(name[2:]) >= fifth else 100_000_000
                farm.report(name, rate_bps=rate_bps, bytes_done=second * rate_bps)
            farm.state.time_passed()
            told |= await farm.settle()
            farm.now += timedelta(seconds=1)
        return told

    assert not await told_of_slowness_from(2, farm.names)
    # Those of the background have it, and their rollout is over: the others are judged.
    for name in early:
        farm.report(name, rate_bps=0, bytes_done=SIZE, state=ImageState.READY)
    assert await told_of_slowness_from(8, farm.names[4:])


async def test_one_node_that_complains_of_everybody_moves_few(make_farm: MakeFarm) -> None:
    farm = make_farm(16)
    for name in farm.names:
        farm.say(name)
    await farm.settle()
    accused = []
    for _ in range(20):
        (parent,) = farm.parents("wn0012")
        lost = ParentLost(infohash=INFOHASH, parent=parent, reason=NodeReason.HASH_FAILED)
        farm.state.parent_lost(lost, child="wn0012")
        if await farm.settle():
            accused.append(parent)
        farm.now += timedelta(seconds=0.5)
    assert accused == ["wn0011", "wn0010", "wn0009"]
    assert farm.parents("wn0012") == ["wn0008"]
    # Another one is heard, and so is this one when its complaints are old.
    lost = ParentLost(infohash=INFOHASH, parent="wn0006", reason=NodeReason.HASH_FAILED)
    farm.state.parent_lost(lost, child="wn0007")
    assert await farm.settle()
    farm.now += COMPLAINTS_AGE
    lost = ParentLost(infohash=INFOHASH, parent="wn0008", reason=NodeReason.HASH_FAILED)
    farm.state.parent_lost(lost, child="wn0012")
    assert await farm.settle()
