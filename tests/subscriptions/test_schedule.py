"""When lists are polled, without anybody asking."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from datetime import timedelta
from pathlib import Path
from typing import Any

import pytest
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

from distrib.catalogue.fetching import Fetched, Fetcher, Origin
from distrib.catalogue.schedule import AT_ONCE, delay_s
from distrib.errors import NetworkError, NotFound
from distrib.trust.testpki import Demo
from tests.head.stories import Endorser, Head, entry, image_bytes
from tests.subscriptions.server import ListServer
from tests.subscriptions.stories import Follower, open_site

ONE = "7cb7a2d5-0f0e-4f43-9a11-3a9f5e0f0001"


def test_the_next_poll_is_an_interval_away_give_or_take_ten_percent() -> None:
    assert delay_s(3600, 0) == 3600
    assert delay_s(3600, 0, jitter=-1) == pytest.approx(3240)
    assert delay_s(3600, 0, jitter=1) == pytest.approx(3960)


def test_after_a_failure_it_comes_sooner_and_then_less_and_less_often() -> None:
    assert [delay_s(7200, failures) for failures in range(1, 9)] == [
        60, 120, 240, 480, 960, 1920, 3840, 7200,
    ]  # fmt: skip
    # Short intervals back off as well, to an hour at most.
    assert [delay_s(30, failures) for failures in (1, 2, 3, 8, 10_000)] == [30, 60, 120, 3600, 3600]


@dataclass
class Gate(Fetcher):
    """A fetcher whose fetches wait until the story lets them go, if ever."""

    under_way: list[str] = field(default_factory=list)
    most: int = 0
    open: asyncio.Event = field(default_factory=asyncio.Event)
    came: asyncio.Condition = field(default_factory=asyncio.Condition)
    count: int = 0

    async def fetch(self, origin: Origin) -> Fetched:
        async with self.came:
            self.under_way.append(origin.url)
            self.most = max(self.most, len(self.under_way))
            self.count += 1
            self.came.notify_all()
        try:
            await self.open.wait()
        finally:
            self.under_way.remove(origin.url)
        raise NetworkError(f"{origin.url}: gone", hint="")

    async def until(self, holds: Callable[[], bool]) -> None:
        async with asyncio.timeout(10), self.came:
            await self.came.wait_for(holds)


@pytest.fixture
def gate() -> Gate:
    return Gate()


@pytest.fixture
def gated(tmp_path: Path, pki: Demo, gate: Gate, logged: list[Any]) -> Any:
    made = open_site(
        tmp_path / "gated",
        pki.site,
        pki.experiment.trust_directory,
        Ed25519PrivateKey.generate(),
        fetcher=gate,
    )
    yield made
    made.database.close()


@asynccontextmanager
async def running(head: Head) -> AsyncIterator[asyncio.Task[None]]:
    """The schedule, as the controller runs it."""
    task = asyncio.create_task(head.catalogue.schedule.run())
    try:
        yield task
    finally:
        task.cancel()
        await asyncio.gather(task, return_exceptions=True)


async def until(holds: Callable[[], bool]) -> None:
    async with asyncio.timeout(10):
        # What is waited for happens in threads of the database.
        while not holds():  # noqa: ASYNC110
            await asyncio.sleep(0.02)


def subscribe(head: Head, endorser: Endorser, server: ListServer, count: int) -> list[int]:
    follower = Follower(head, server, endorser)
    return [follower.subscribe(url=f"{server.base}/{number}").id for number in range(count)]


async def test_what_is_due_is_polled_and_not_before(follower: Follower, server: ListServer) -> None:
    server.serve(follower.endorser.sign(version="1"))
    head = follower.head
    follower.subscribe(interval_s=3600)

    def polled() -> int:
        return head.catalogue.schedule.endings.get("unchanged", 0)

    async with running(head):
        await until(lambda: head.catalogue.schedule.endings.get("accepted") == 1)
        row = head.catalogue.subscriptions.get(follower.id)
        assert row.next_at is not None
        assert row.polled_at is not None
        wait_s = (row.next_at - row.polled_at).total_seconds()
        assert 3240 <= wait_s <= 3960
        head.catalogue.schedule.wake()
        head.clock.ahead = timedelta(seconds=3200)
        head.catalogue.schedule.wake()
        await asyncio.to_thread(lambda: None)
        assert polled() == 0
        head.clock.ahead = timedelta(seconds=4000)
        head.catalogue.schedule.wake()
        await until(lambda: polled() == 1)


async def test_a_few_at_once_and_the_rest_after_them(
    gated: Head, gate: Gate, endorser: Endorser, server: ListServer
) -> None:
    subscribe(gated, endorser, server, AT_ONCE + 3)
    async with running(gated):
        await gate.until(lambda: len(gate.under_way) == AT_ONCE)
        gate.open.set()
        await until(lambda: gated.catalogue.schedule.endings.get("unreachable") == AT_ONCE + 3)
    assert gate.most == AT_ONCE
    assert all(row.failures == 1 for row in gated.catalogue.subscriptions.all())


async def test_a_poll_on_demand_joins_the_one_under_way(
    gated: Head, gate: Gate, endorser: Endorser, server: ListServer
) -> None:
    [number] = subscribe(gated, endorser, server, 1)
    schedule = gated.catalogue.schedule
    async with running(gated):
        await gate.until(lambda: gate.count == 1)
        asked = [asyncio.create_task(schedule.poll(number, actor="ops")) for _ in range(3)]
        await asyncio.sleep(0)
        # One who asked goes away; that is no end of the poll.
        asked[0].cancel()
        gate.open.set()
        rows = await asyncio.gather(*asked[1:])
        assert {row.code for row in rows} == {"unreachable"}
    assert gate.count == 1


async def test_polls_that_hang_hold_up_neither_others_nor_the_end(
    gated: Head, gate: Gate, endorser: Endorser, server: ListServer
) -> None:
    subscribe(gated, endorser, server, 1)
    async with running(gated) as task:
        await gate.until(lambda: gate.count == 1)
        [_, second] = [1, *subscribe_more(gated, endorser, server)]
        gated.catalogue.schedule.wake()
        await gate.until(lambda: gate.count == 2)
        assert second == 2
        task.cancel()
        async with asyncio.timeout(5):
            await asyncio.gather(task, return_exceptions=True)
    assert gate.under_way == []


def subscribe_more(head: Head, endorser: Endorser, server: ListServer) -> list[int]:
    return [Follower(head, server, endorser).subscribe(url=f"{server.base}/more").id]


async def test_a_list_that_nobody_confirms_is_told_once(
    follower: Follower, server: ListServer, logged: list[Any]
) -> None:
    head, schedule = follower.head, follower.head.catalogue.schedule
    server.serve(follower.endorser.sign(version="1"))
    follower.subscribe(alarm_age_s=7200)
    await follower.poll()
    server.answers.clear()

    def told(event: str) -> int:
        return [line["event"] for line in logged].count(event)

    async with running(head):
        head.clock.ahead = timedelta(hours=3)
        schedule.wake()
        await until(lambda: schedule.stale == {follower.id})
        for _ in range(3):
            await follower.poll()
        assert told("list-not-confirmed") == 1
        server.serve(follower.endorser.sign(version="1", now=head.clock()))
        server.serve(follower.endorser.sign(version="2", now=head.clock()))
        await follower.poll()
        await until(lambda: schedule.stale == frozenset())
        assert told("list-confirmed-again") == 1


async def test_images_lapse_by_the_clock_alone(follower: Follower) -> None:
    head = follower.head
    follower.subscribe()
    image = entry(image_bytes(1), identifier=ONE)
    await follower.follows(image, version="1", lifetime=timedelta(days=1))
    await follower.approve(ONE, image_bytes(1))
    before = len(head.published)
    follower.server.answers.clear()
    async with running(head):
        head.clock.ahead = timedelta(days=2)
        head.catalogue.schedule.wake()
        await until(lambda: len(head.published) > before)
    assert head.site_list().images == ()
    lapsed = follower.image(ONE)
    assert (lapsed.state, lapsed.lapsed_at is not None) == ("approved", True)
    assert head.actions().count("image-lapsed") == 1


async def test_a_subscription_that_goes_away_while_it_is_polled(
    gated: Head, gate: Gate, endorser: Endorser, server: ListServer
) -> None:
    [number] = subscribe(gated, endorser, server, 1)
    asked = asyncio.create_task(gated.catalogue.schedule.poll(number, actor="ops"))
    await gate.until(lambda: gate.count == 1)
    gated.catalogue.subscriptions.remove(number, actor="ops")
    gate.open.set()
    with pytest.raises(NotFound):
        await asked


async def test_a_fault_of_ours_ends_one_poll_and_not_the_schedule(
    follower: Follower, server: ListServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    follower.subscribe()

    async def broken(_self: Fetcher, _origin: Origin) -> Fetched:
        raise ZeroDivisionError("a mistake")

    with monkeypatch.context() as patched:
        patched.setattr(Fetcher, "fetch", broken)
        row = await follower.poll()
    assert (row.code, row.text) == ("bug", "ZeroDivisionError: a mistake")
    assert (await follower.follows(version="1")).code == "accepted"
