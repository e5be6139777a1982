"""Rollouts over a real broker and database; the nodes are fake, what they are told is not."""

from __future__ import annotations

import asyncio
import contextlib
import os
import signal
from collections.abc import Awaitable, Callable
from datetime import UTC, datetime, timedelta
from typing import Any

import pytest
from sqlalchemy import func, select

from distrib.bus.messages import Event, EventKind, ParentLost, Request, State
from distrib.bus.schema import encode
from distrib.db import models
from distrib.errors import Conflict, NotFound, OperatorError, TrustRefused
from distrib.rollout.service import Rollouts

LIMIT_S = 15.0
V1, V2 = "1.0.0", "2.0.0"
INFOHASH = {V1: "a1" * 32, V2: "b2" * 32}


async def until(
    rollouts: Rollouts, rollout: str, fits: Callable[[dict[str, Any]], bool]
) -> dict[str, Any]:
    """The first document of the watch that fits."""
    async with asyncio.timeout(LIMIT_S), contextlib.aclosing(rollouts.watch(rollout)) as watch:
        async for document in watch:
            if fits(dict(document)):
                return dict(document)
    raise AssertionError("the rollout ended otherwise")


async def turn_until(rollouts: Rollouts, fits: Callable[[], Awaitable[bool]]) -> None:
    """Until it fits; looked at after each turn of the service's task."""
    async with asyncio.timeout(LIMIT_S):
        while not await fits():
            await rollouts._loop.call(nothing)


async def nothing() -> None:
    """A turn of the service's task."""


async def online(rollouts: Rollouts, *names: str) -> None:
    async def all_online() -> bool:
        return all([(await rollouts.node_view(name))["online"] for name in names])

    await turn_until(rollouts, all_online)


def state(document: dict[str, Any]) -> dict[str, str]:
    return {row["node"]: row["state"] for row in document["nodes"]}


async def test_an_image_comes_to_the_nodes(site: Any) -> None:
    one, two = site.nodes["wn001"], site.nodes["wn002"]
    async with (
        site.service() as rollouts,
        site.seeder(INFOHASH[V2]),
        one.online(),
        two.online(),
    ):
        await online(rollouts, "wn001", "wn002")
        started = await rollouts.start({"image": "worker", "nodes": "all"}, "alice")
        assert started["id"].startswith("r-")
        assert started["alias"] == "worker"
        assert started["summary"]["targets"] == 3
        assert started["summary"]["offline"] == 1
        head = await one.told(lambda images: V2 in images and bool(images[V2].parents))
        assert head[V2].parents[0].node == "seeder"
        assert head[V2].active
        tail = await two.told(lambda images: V2 in images and bool(images[V2].parents))
        assert tail[V2].parents[0].node == "wn001"
        assert tail[V2].parents[0].address == "192.0.2.1"
        assert tail[V2].fallbacks[0].node == "seeder"

        one.holds(V2, State.PULLING, bytes_done=1000, rate_bps=500)
        moving = await until(rollouts, started["id"], lambda seen: seen["summary"]["pulling"] == 1)
        assert moving["summary"]["rate_bps"] == 500
        one.holds(V2, State.READY)
        two.holds(V2, State.FAILED, reason="no-space", text="full")
        failed = await until(rollouts, started["id"], lambda seen: seen["state"] == "failed")
        assert state(failed) == {"wn001": "ready", "wn002": "failed", "wn003": "offline"}
        assert next(r for r in failed["nodes"] if r["node"] == "wn002")["reason"] == "no-space"

        again = await rollouts.start({"image": "worker", "nodes": "wn00[12]"}, "alice")
        await two.told(lambda images: images[V2].rollout == again["id"])
        two.holds(V2, State.READY)
        one.report()
        await one.told(lambda images: images[V2].rollout == again["id"])
        one.report()
        done = await until(rollouts, again["id"], lambda seen: seen["state"] == "done")
        assert done["summary"]["ready"] == 2
        assert [row["id"] for row in await rollouts.list()] == [again["id"], started["id"]]


async def test_what_cannot_be_started_is_refused_with_the_reason(site: Any) -> None:
    async with site.service() as rollouts, site.nodes["wn001"].online():
        await online(rollouts, "wn001")
        with pytest.raises(NotFound, match="nobody"):
            await rollouts.start({"image": "nobody", "nodes": "all"}, "alice")
        with pytest.raises(NotFound, match="wn009"):
            await rollouts.start({"image": "worker", "nodes": "wn001,wn009"}, "alice")
        with pytest.raises(NotFound, match="online"):
            await rollouts.start({"image": "worker", "nodes": "wn002"}, "alice")
        with pytest.raises(OperatorError, match="rak"):
            await rollouts.start({"image": "worker", "nodes": "rak=R1"}, "alice")
        with pytest.raises(NotFound):
            await rollouts.show("r-none")
        with pytest.raises(NotFound):
            await rollouts.abort("r-none", "alice")
        assert await rollouts.list() == []


async def test_an_offline_node_catches_up_and_a_new_one_is_warmed(site: Any) -> None:
    one, two, new = (site.nodes[name] for name in ("wn001", "wn002", "wn004"))
    async with site.service() as rollouts, site.seeder(INFOHASH[V2]), one.online():
        await online(rollouts, "wn001")
        started = await rollouts.start({"image": "worker", "nodes": "rack=R1"}, "alice")
        await one.told(lambda images: V2 in images)
        one.holds(V2, State.READY)
        await until(rollouts, started["id"], lambda seen: seen["state"] == "done")
        async with two.online(), new.online():
            await two.told(lambda images: V2 in images)
            two.holds(V2, State.READY)
            # Known on the broker, and not yet in the inventory: it is told nothing.
            assert new.desired is None
            site.add_node("wn004", address="192.0.2.4")
            rollouts.node_changed("wn004")
            told = await new.told(lambda images: V2 in images and bool(images[V2].parents))
            assert told[V2].rollout == started["id"]
            new.holds(V2, State.READY)

            async def all_warm() -> bool:
                return state(dict(await rollouts.show(started["id"]))) == {
                    "wn001": "ready",
                    "wn002": "ready",
                    "wn003": "offline",
                    "wn004": "ready",
                }

            await turn_until(rollouts, all_warm)


async def test_abort_stops_pulls_and_the_version_before_is_active_again(site: Any) -> None:
    one, two = site.nodes["wn001"], site.nodes["wn002"]
    async with site.service() as rollouts, one.online(), two.online():
        await online(rollouts, "wn001", "wn002")
        first = await rollouts.start({"image": f"worker@{V1}", "nodes": "wn001,wn002"}, "alice")
        for node in (one, two):
            await node.told(lambda images: V1 in images)
            node.holds(V1, State.READY)
        await until(rollouts, first["id"], lambda seen: seen["state"] == "done")
        second = await rollouts.start({"image": "worker", "nodes": "wn001,wn002"}, "alice")
        both = await one.told(lambda images: V2 in images)
        assert (both[V1].active, both[V2].active) == (False, True)
        await two.told(lambda images: V2 in images)
        one.holds(V2, State.READY)
        two.holds(V2, State.PULLING, bytes_done=10)
        await until(
            rollouts,
            second["id"],
            lambda seen: "pulling" in state(seen).values() and "ready" in state(seen).values(),
        )
        ended = await rollouts.abort(second["id"], "bob")
        assert ended["state"] == "aborted"
        assert state(ended) == {"wn001": "ready", "wn002": "cancelled"}
        assert ended["summary"]["rate_bps"] == 0
        orders = await two.cancelled()
        assert [order.infohash for order in orders.orders] == [INFOHASH[V2]]
        back = await two.told(lambda images: V2 not in images)
        assert back[V1].active
        assert not one.orders
        assert one.desired is not None
        assert {image.version for image in one.desired.images} == {V1, V2}
        with pytest.raises(Conflict):
            await rollouts.abort(second["id"], "bob")
    async with site.service() as rollouts:
        kept = await rollouts.show(second["id"])
        assert {row["node"]: row["state"] for row in kept["nodes"]}["wn002"] != "pulling"
    with site.database.reading() as session:
        actions = list(session.scalars(select(models.Audit.action).order_by(models.Audit.id)))
    assert actions == ["rollout-started", "rollout-done", "rollout-started", "rollout-aborted"]


async def test_a_parent_that_dies_or_stalls_is_replaced(site: Any) -> None:
    one, two, three = (site.nodes[name] for name in ("wn001", "wn002", "wn003"))
    async with (
        site.service() as rollouts,
        site.seeder(INFOHASH[V2]),
        one.online(),
        three.online(),
    ):
        async with two.online():
            await online(rollouts, "wn001", "wn002", "wn003")
            await rollouts.start({"image": "worker", "nodes": "all"}, "alice")
            await three.told(lambda images: _parent(images) == "wn002")
            two.holds(V2, State.PULLING, bytes_done=SIZE_HALF)
            before = list(one.generations)
        # Its presence says that it is gone; only who stood behind it has another parent.
        await three.told(lambda images: _parent(images) == "wn001")
        one.holds(V2, State.PULLING, bytes_done=SIZE_HALF)
        lost = ParentLost(infohash=INFOHASH[V2], parent="wn001", now_from="seeder")
        three.bus.send(
            "distrib/v1/node/wn003/request",
            encode(Request(node="wn003", sent_at=datetime.now(UTC), request=lost)),
        )
        await three.told(lambda images: _parent(images) == "seeder")
        await one.told(lambda images: _parent(images) == "wn003")
        assert one.generations[: len(before)] == before
        assert one.generations == sorted(set(one.generations))


SIZE_HALF = 1 << 19


def _parent(images: dict[str, Any]) -> str | None:
    found = images[V2].parents if V2 in images else ()
    return found[0].node if found else None


async def test_a_restarted_controller_goes_on_and_says_nothing_twice(site: Any) -> None:
    one, two = site.nodes["wn001"], site.nodes["wn002"]
    async with site.seeder(INFOHASH[V2]), one.online(), two.online():
        async with site.service() as rollouts:
            await online(rollouts, "wn001", "wn002")
            started = await rollouts.start({"image": "worker", "nodes": "all"}, "alice")
            await one.told(lambda images: _parent(images) == "seeder")
            await two.told(lambda images: _parent(images) == "wn001")
            one.holds(V2, State.PULLING, bytes_done=10)
            await until(rollouts, started["id"], lambda seen: seen["summary"]["pulling"] == 1)
        # The controller is down: nodes go on.
        told = (list(one.generations), list(two.generations))
        one.holds(V2, State.READY)
        async with site.service() as rollouts:
            shown = await until(rollouts, started["id"], lambda seen: seen["summary"]["ready"] == 1)
            assert state(shown)["wn001"] == "ready"
            two.holds(V2, State.READY)
            await until(rollouts, started["id"], lambda seen: seen["state"] == "done")
        assert (one.generations, two.generations) == told


async def test_events_reach_the_audit_though_the_controller_was_down(site: Any) -> None:
    one = site.nodes["wn001"]
    async with one.online():
        async with site.service() as rollouts:
            await online(rollouts, "wn001")
        event = Event(node="wn001", id="while-down", at=datetime.now(UTC), kind=EventKind.LEASED)
        one.bus.send("distrib/v1/node/wn001/event", encode(event))
        async with asyncio.timeout(LIMIT_S):
            await one.bus._idle.wait()

        async def kept() -> bool:
            with site.database.reading() as session:
                return session.get(models.NodeEvent, ("wn001", "while-down")) is not None

        async with site.service() as rollouts:
            await turn_until(rollouts, kept)


async def test_a_broker_that_lost_everything_is_told_again(site: Any, tmp_path: Any) -> None:
    one = site.nodes["wn001"]
    async with site.service() as rollouts, one.online():
        await online(rollouts, "wn001")
        started = await rollouts.start({"image": "worker", "nodes": "wn001"}, "alice")
        await one.told(lambda images: V2 in images)
        for file in (tmp_path / "broker").glob("*.db"):
            file.unlink()
        one.desired = None
        pid = site.broker.child.pid
        assert pid is not None
        os.kill(pid, signal.SIGKILL)
        await one.told(lambda images: V2 in images)
        assert len(set(one.generations)) == 1, "the same order, not a new one"
        one.holds(V2, State.READY)
        await until(rollouts, started["id"], lambda seen: seen["state"] == "done")


async def test_what_lies_on_the_bus_is_refused_and_counted(site: Any) -> None:
    one = site.nodes["wn001"]
    async with site.service() as rollouts, one.online():
        await online(rollouts, "wn001")
        started = await rollouts.start({"image": "worker", "nodes": "wn001"}, "alice")
        await one.told(lambda images: V2 in images)
        hostile = [
            b"\x00\xff",
            b"[" * 100_000,
            b'{"v": 2, "node": "wn001"}',
            b'{"v": 1, "node": "wn001", "id": "x", "at": "yesterday", "kind": "ready"}',
            encode(Event(node="wn002", id="e", at=datetime.now(UTC), kind=EventKind.READY)),
            b"null",
            b"9" * 5000,
        ]
        for payload in hostile:
            one.bus.send("distrib/v1/node/wn001/event", payload)
        good = Event(node="wn001", id="e-1", at=datetime.now(UTC), kind=EventKind.READY)
        for _ in range(2):
            one.bus.send("distrib/v1/node/wn001/event", encode(good))
        one.holds(V2, State.READY)
        await until(rollouts, started["id"], lambda seen: seen["state"] == "done")
        assert sum(rollouts.refused.values()) == len(hostile)
        assert rollouts.refused["wrong-node"] == 1
        with site.database.reading() as session:
            assert session.scalar(select(func.count()).select_from(models.NodeEvent)) == 1


async def test_a_claim_of_another_version_or_of_an_old_order_is_not_believed(site: Any) -> None:
    one = site.nodes["wn001"]
    async with site.service() as rollouts, one.online():
        await online(rollouts, "wn001")
        one.reports_generation = False
        one.holds(V2, State.READY)
        started = await rollouts.start({"image": "worker", "nodes": "wn001"}, "alice")
        await one.told(lambda images: V2 in images)
        one.report()
        one.held.clear()
        one.reports_generation = True
        one.holds(V1, State.READY)

        async def heard() -> bool:
            report = dict(await rollouts.node_view("wn001")).get("report", {})
            return [image["version"] for image in report.get("images", [])] == [V1]

        await turn_until(rollouts, heard)
        shown = await rollouts.show(started["id"])
        assert (shown["state"], shown["summary"]["waiting"]) == ("running", 1)
        one.holds(V2, State.READY)
        await until(rollouts, started["id"], lambda seen: seen["state"] == "done")


async def test_a_forgotten_node_leaves_nothing_behind(site: Any) -> None:
    one, two = site.nodes["wn001"], site.nodes["wn002"]
    async with site.service() as rollouts, one.online():
        async with two.online():
            await online(rollouts, "wn001", "wn002")
            started = await rollouts.start({"image": "worker", "nodes": "wn001,wn002"}, "alice")
            await one.told(lambda images: V2 in images)
            await two.told(lambda images: V2 in images)
            one.holds(V2, State.READY)
        await rollouts.forget("wn002", "alice")
        rollouts.node_changed("wn002")
        done = await until(rollouts, started["id"], lambda seen: seen["state"] == "done")
        assert state(done) == {"wn001": "ready"}
        with pytest.raises(NotFound):
            await rollouts.forget("wn002", "alice")
        assert await rollouts.node_view("wn002") == {"online": False}


async def test_a_revoked_image_is_not_wanted_any_more(site: Any) -> None:
    one = site.nodes["wn001"]
    async with site.service() as rollouts, one.online():
        await online(rollouts, "wn001")
        await rollouts.start({"image": "worker", "nodes": "wn001"}, "alice")
        await one.told(lambda images: V2 in images)
        with site.database.transaction() as session:
            row = session.scalar(select(models.Image).where(models.Image.version == V2))
            assert row is not None
            row.state = "denied"
        await asyncio.to_thread(rollouts.catalogue_changed)
        await one.told(lambda images: V2 not in images)


async def test_a_lapsed_image_is_not_rolled_out(site: Any) -> None:
    with site.database.transaction() as session:
        row = session.scalar(select(models.Image).where(models.Image.version == V2))
        assert row is not None
        row.endorsed_until = datetime.now(UTC) - timedelta(seconds=1)
    async with site.service() as rollouts, site.nodes["wn001"].online():
        await online(rollouts, "wn001")
        with pytest.raises(TrustRefused, match="its list or its entry expired at 20"):
            await rollouts.start({"image": "worker", "nodes": "wn001"}, "alice")


async def test_a_silent_node_fails_its_rollout(site: Any) -> None:
    one = site.nodes["wn001"]
    async with site.service(silent_s=1.0) as rollouts, one.online():
        await online(rollouts, "wn001")
        started = await rollouts.start({"image": "worker", "nodes": "wn001"}, "alice")
        failed = await until(rollouts, started["id"], lambda seen: seen["state"] == "failed")
        assert failed["nodes"][0]["reason"] == "no-report"
