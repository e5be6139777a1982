"""The schedule of a push, whatever happens to hosts and transfers."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from random import Random

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from distrib.tsunami.party import Order
from distrib.tsunami.schedule import Schedule
from distrib.tsunami.trouble import Fault

ROOT = Path(__file__).parents[2]
SLOTS = 3


class FakeFarm:
    """Hosts that do as they are told, fail, come and go; counts what the rules forbid."""

    def __init__(self, seed: int, hosts: int, pieces: int, racks: int) -> None:
        self.random = Random(seed)
        self.schedule = Schedule(pieces, seed=seed)
        self.schedule.join("origin", origin=True, up_slots=SLOTS, rack="head")
        self.names = [f"fake{number}" for number in range(hosts)]
        self.racks = racks
        self.now_s = 0.0
        self.flying: list[Order] = []
        self.bad: set[str] = set()
        self.wrong_from: list[str] = []
        for number, name in enumerate(self.names):
            self.join(name, number)

    def join(self, name: str, number: int, have: list[int] | None = None) -> None:
        rack = f"r{number % self.racks}"
        self.schedule.join(name, rack=rack, up_slots=SLOTS, down_slots=SLOTS, have=have or [])

    def leave(self, name: str) -> None:
        over = self.schedule.leave(name)
        self.flying = [order for order in self.flying if order not in over]

    def run(self, *, failing: float = 0.0, steps: int = 100_000) -> None:
        for _ in range(steps):
            self.flying += self.schedule.next_orders(self.now_s)
            self.check()
            if self.schedule.is_over:
                return
            self.now_s += 0.01
            if not self.flying:
                assert self.schedule.wake_s is not None, "nothing flies and nothing is awaited"
                self.now_s = max(self.now_s, self.schedule.wake_s)
            else:
                self.land(failing)
            late = self.schedule.tick(self.now_s)
            self.flying = [order for order in self.flying if order not in late]
        raise AssertionError("does not end")

    def land(self, failing: float) -> None:
        order = self.flying.pop(self.random.randrange(len(self.flying)))
        if order.source in self.bad:
            self.wrong_from.append(order.source)
            self.schedule.failed(order, Fault.WRONG, self.now_s)
        elif self.random.random() < failing:
            self.schedule.failed(order, Fault.LOST, self.now_s)
        else:
            assert self.schedule.done(order, self.now_s)

    def check(self) -> None:
        under_way = self.schedule.under_way
        for name in ("origin", *self.names):
            assert sum(order.source == name for order in under_way) <= SLOTS
            assert sum(order.target == name for order in under_way) <= SLOTS
        coming = [(order.target, order.piece) for order in under_way]
        assert len(set(coming)) == len(coming), "a piece is on its way twice"


farms = st.builds(
    FakeFarm,
    seed=st.integers(0, 2**32),
    hosts=st.integers(1, 12),
    pieces=st.integers(1, 30),
    racks=st.integers(1, 4),
)


@settings(max_examples=60, deadline=None)
@given(farms)
def test_every_host_gets_everything_within_its_slots(farm: FakeFarm) -> None:
    farm.run()
    assert all(farm.schedule.is_complete(name) for name in farm.names)


@settings(max_examples=40, deadline=None)
@given(farms, st.data())
def test_hosts_come_and_go(farm: FakeFarm, data: st.DataObject) -> None:
    gone = data.draw(st.sets(st.sampled_from(farm.names), max_size=len(farm.names)))
    for name in sorted(gone):
        for _ in range(data.draw(st.integers(0, 20))):
            farm.flying += farm.schedule.next_orders(farm.now_s)
            if farm.flying:
                farm.land(0.0)
        farm.leave(name)
    back = data.draw(st.sets(st.sampled_from(sorted(gone)))) if gone else set()
    for name in sorted(back):
        farm.join(name, farm.names.index(name), have=[0])
    farm.run()
    stay = set(farm.names) - gone | back
    assert all(farm.schedule.is_complete(name) for name in stay)


@settings(max_examples=40, deadline=None)
@given(farms, st.floats(0, 0.3))
def test_failures_cost_time_and_no_host_that_can_be_fed(farm: FakeFarm, failing: float) -> None:
    farm.run(failing=failing)
    fed = set(farm.names) - farm.schedule.given_up.keys()
    assert all(farm.schedule.is_complete(name) for name in fed)


@settings(max_examples=40, deadline=None)
@given(farms)
def test_what_a_bad_source_has_comes_from_elsewhere(farm: FakeFarm) -> None:
    farm.bad = {farm.names[0]}
    farm.run()
    assert all(farm.schedule.is_complete(name) for name in farm.names)
    # It is set aside before it has cost much: the first wrong pieces, and those under way.
    assert len(farm.wrong_from) <= 3 * SLOTS
    if farm.wrong_from:
        assert "wrong bytes" in farm.schedule.were_set_aside[farm.names[0]]


def test_the_origin_sends_nothing_twice_before_it_has_sent_all_once() -> None:
    schedule = Schedule(8)
    schedule.join("origin", origin=True, up_slots=1)
    for name in "abcd":
        schedule.join(name, up_slots=1, down_slots=2)
    sent: list[int] = []
    now_s = 0.0
    while len(sent) < 8:
        orders = schedule.next_orders(now_s)
        orders = [*orders, *(one for one in schedule.under_way if one not in orders)]
        now_s += 1
        for order in orders:
            if order.source == "origin":
                sent.append(order.piece)
            schedule.done(order, now_s)
    assert sorted(sent[:8]) == list(range(8))


def test_another_rack_is_fed_beside_the_sources_own() -> None:
    schedule = Schedule(40)
    schedule.join("origin", origin=True, rack="near", up_slots=2)
    for number in range(20):
        schedule.join(f"n{number}", rack="near", up_slots=1, down_slots=1)
    schedule.join("f", rack="far", up_slots=1, down_slots=1)
    first = schedule.next_orders(0.0)
    assert {order.target[0] for order in first} == {"n", "f"}


def test_a_host_past_its_deadline_is_given_up_and_others_are_not() -> None:
    schedule = Schedule(4)
    schedule.join("origin", origin=True, up_slots=2)
    schedule.join("late", down_slots=1, deadline_s=10.0)
    schedule.join("free", down_slots=1)
    for order in schedule.next_orders(0.0):
        if order.target == "free":
            schedule.done(order, 1.0)
    assert [order.target for order in schedule.tick(10.0)] == ["late"]
    assert schedule.given_up == {"late": "its deadline has passed"}
    while not schedule.is_over:
        for order in schedule.next_orders(11.0):
            assert order.target == "free"
            schedule.done(order, 12.0)


def test_a_transfer_that_takes_far_too_long_is_tried_elsewhere() -> None:
    schedule = Schedule(1)
    schedule.join("a", have=[0], target=False)
    schedule.join("b", have=[0], target=False)
    schedule.join("t")
    (first,) = schedule.next_orders(0.0)
    assert schedule.tick(30.0) == [first]
    (second,) = schedule.next_orders(30.0)
    assert second.source != first.source
    assert not schedule.done(first, 31.0)
    assert schedule.is_complete("t"), "it came after all"


def test_a_host_that_cannot_fetch_is_fed_by_the_origin_and_feeds_others() -> None:
    schedule = Schedule(3)
    schedule.join("origin", origin=True, up_slots=1)
    schedule.join("alone", fetches=False)
    schedule.join("other")
    sources: dict[str, set[str]] = {"alone": set(), "other": set()}
    while not schedule.is_over:
        for order in schedule.next_orders(0.0):
            sources[order.target].add(order.source)
            schedule.done(order, 1.0)
    assert sources["alone"] == {"origin"}
    assert "alone" in sources["other"]


@pytest.mark.parametrize("racks", [1, 10])
def test_a_simulated_push_comes_near_the_optimum(racks: int, tmp_path: Path) -> None:
    plot = tmp_path / "plot.svg"
    done = subprocess.run(
        [sys.executable, str(ROOT / "benchmarks" / "tsunami_schedule.py"), "--json",
         "--hosts", "200", "--pieces", "50", "--racks", str(racks), "--plot", str(plot)],
        check=True, capture_output=True, text=True,
    )  # fmt: skip
    (outcome,) = json.loads(done.stdout)["outcomes"]
    assert outcome["over_optimum"] < 1.25
    assert plot.read_text().startswith("<svg")
