"""`distrib swarm show` of 5,000 nodes and of a few: fake nodes, real view, real lines."""

from __future__ import annotations

import itertools
import time
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from typing import Any

from distrib.bus.messages import BadPeer, ImageReport, Link, Presence, Report, SeederPresence
from distrib.bus.messages import State as ImageState
from distrib.bus.schema import encode
from distrib.bus.topics import Topics
from distrib.cli.swarm_view import all_done, changes, swarm_lines
from distrib.rollout.fleet import Fleet
from distrib.rollout.movement import Movement
from distrib.rollout.plan import InventoryNode
from distrib.rollout.planner import Planner
from distrib.rollout.swarm_view import swarm_view

IMAGE = "7cb7a2d5-0f0e-4f43-9a11-3a9f5e0f6c11"
INFOHASH = "a1" * 32
SIZE = 1_000_000_000
ABOUT = {"image": f"{IMAGE}@1.0.0", "aliases": ["ccin2p3"], "size_bytes": SIZE}


@dataclass
class FakeFarm:
    """Nodes that only say what they are told to say, and a clock that is set by hand."""

    count: int
    trees: bool = False
    now: datetime = field(default_factory=lambda: datetime(2026, 3, 1, 12, tzinfo=UTC))

    def __post_init__(self) -> None:
        self.fleet = Fleet(Topics("distrib/v1"), Movement(lambda: self.now))
        self.planner = Planner(self.fleet)
        self.names = [f"wn{n:04}" for n in range(self.count)]
        self.fleet.inventory = {
            name: InventoryNode(name, f"10.0.{n // 250}.{n % 250}", f"R{n // 40:03}")
            for n, name in enumerate(self.names)
        }
        seeder = SeederPresence(
            seeder="seeder", online=True, address="192.0.2.1", port=6881, infohashes=(INFOHASH,)
        )
        self.hear("seeder/seeder/presence", seeder)
        for name in self.names:
            self.presence(name)
        self.planner.plan(INFOHASH, self.names, size_bytes=SIZE)

    def hear(self, topic: str, message: Any) -> None:
        assert self.fleet.hear(f"distrib/v1/{topic}", encode(message)) is not None

    def presence(self, name: str, *, online: bool = True) -> None:
        ports = (6881, 6882) if self.trees else ()
        said = Presence(node=name, online=online, swarm_port=6881, stripe_ports=ports)
        self.hear(f"node/{name}/presence", said)

    def report(self, name: str, *, done: int, rate_bps: int = 1_000_000, **more: Any) -> None:
        image = ImageReport(
            identifier=IMAGE,
            version="1.0.0",
            infohash=INFOHASH,
            bytes_done=done,
            bytes_total=SIZE,
            rate_bps=rate_bps,
            since=self.now,
            **({"state": ImageState.PULLING} | more),
        )
        said = Report(node=name, boot_id="b", sent_at=self.now, images=(image,))
        self.hear(f"node/{name}/report", said)

    def show(self) -> dict[str, Any]:
        planned = self.planner.planned(INFOHASH)
        return ABOUT | swarm_view(self.fleet, planned, INFOHASH, self.now)


def test_a_small_swarm_is_drawn_with_its_chain_its_stall_and_its_bad_peer() -> None:
    farm = FakeFarm(4)
    order = [row["node"] for row in sorted(farm.show()["nodes"], key=lambda row: row["depth"])]
    for name in order:
        farm.report(name, done=500_000_000)
    farm.now += timedelta(seconds=20)
    farm.presence(order[1], online=False)
    farm.report(order[0], done=900_000_000)
    bad = BadPeer(address="10.9.9.9", hash_failures=3)
    link = Link(node="seeder", address="192.0.2.1", download_bps=7)
    farm.report(order[2], done=500_000_000, rate_bps=0, bad_peers=(bad,), links=(link,))
    farm.report(order[3], done=SIZE, rate_bps=0, state=ImageState.READY)
    shown = farm.show()
    stalls = {row["node"]: row["stall"] for row in shown["nodes"]}
    assert stalls[order[1]]["reason"] == "offline"
    assert (stalls[order[2]]["reason"], stalls[order[2]]["by"]) == ("behind-slow-node", order[1])
    assert stalls[order[2]]["since_s"] == 20.0
    assert stalls[order[0]] is stalls[order[3]] is None
    lines = swarm_lines(shown)
    assert lines[0].startswith("ccin2p3: 4 nodes (3 pulling, 1 ready), ")
    assert "bad blocks from 10.9.9.9: 3, told by " + order[2] in lines
    tree = lines[lines.index("seeder") :]
    assert [line.split()[1] for line in tree[1:]] == order
    assert f"!! behind-slow-node ({order[1]}) for 20 s" in tree[3]
    assert "(fetches from seeder)" in tree[3]


def test_who_fed_a_node_is_remembered_when_nobody_does_any_more() -> None:
    farm = FakeFarm(2)
    movement = farm.fleet.movement
    both = tuple(Link(node=peer, address="192.0.2.1", download_bps=7) for peer in ("a", "b"))
    farm.report("wn0000", done=10, links=both)
    farm.now += timedelta(seconds=5)
    farm.report("wn0000", done=20, links=both[:1])
    farm.now += timedelta(seconds=5)
    farm.report("wn0000", done=20)
    assert movement.dry_s("wn0000", INFOHASH, farm.now) == {"a": 5.0, "b": 10.0}
    farm.report("wn0000", done=SIZE, state=ImageState.READY)
    assert movement.dry_s("wn0000", INFOHASH, farm.now) == {}


def test_a_pipe_gets_a_line_for_each_change_and_an_end() -> None:
    farm = FakeFarm(2)
    for name in farm.names:
        farm.report(name, done=10)
    first = farm.show()
    assert len(list(changes({}, first))) == 3
    assert list(changes(first, farm.show())) == []
    farm.report("wn0000", done=SIZE, state=ImageState.READY)
    second = farm.show()
    told = list(changes(first, second))
    assert told[0].startswith("wn0000 [R000] ready")
    assert not all_done(second)
    farm.presence("wn0001", online=False)
    assert all_done(farm.show())


def test_five_thousand_nodes_are_summarised_and_asked_for_all_are_drawn() -> None:
    farm = FakeFarm(5000, trees=True)
    for name in farm.names:
        farm.report(name, done=500_000_000)
    farm.report("wn4242", done=500_000_000, state=ImageState.FAILED, reason="no-space")
    began_s = time.process_time()
    shown = farm.show()
    assert time.process_time() - began_s < 2.0
    lines = swarm_lines(shown)
    assert len(lines) < 80
    assert any(line.startswith("trees over two stripes, ") for line in lines)
    assert any("wn4242 [R106] failed 50 %" in line and "!! no-space" in line for line in lines)
    assert lines[-1] == "--all draws all 5000 nodes"
    drawn = swarm_lines(shown, everything=True)
    named = {word for line in drawn for word in line.split() if word.startswith("wn")}
    assert named >= set(farm.names)
    assert shown["summary"]["depth"] < 40
    deepest = itertools.takewhile(lambda row: row["depth"] <= 40, shown["nodes"])
    assert sum(1 for _ in deepest) == 5000


def test_a_chain_of_hundreds_is_drawn_without_stairs() -> None:
    farm = FakeFarm(300)
    for name in farm.names:
        farm.report(name, done=1)
    drawn = swarm_lines(farm.show(), everything=True)
    assert max(len(line) - len(line.lstrip("↓└├│ ")) for line in drawn) <= 8
