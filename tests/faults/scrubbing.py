"""A node whose scrub has a time of its own."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from datetime import UTC, datetime, timedelta
from pathlib import Path

from agent.cache.records import VolumeRecord
from agent.scrubber import Scrubber
from agent.settings import ScrubSettings
from distrib.bus.messages import Peer, State
from tests.delta.node import Node
from tests.pull.conftest import Published, seeding

DAY_S = 86400.0


class Time:
    """A clock that moves by what was slept."""

    def __init__(self) -> None:
        self.s = 0.0
        self.slept: list[float] = []

    def now(self) -> datetime:
        return datetime.now(UTC) + timedelta(seconds=self.s)

    async def sleep(self, seconds: float) -> None:
        self.slept.append(seconds)
        self.s += seconds
        await asyncio.sleep(0)


class Scrubbing:
    """A node with a scrubber whose time is the test's."""

    def __init__(self, node: Node, *, rate_bps: int = 1_000_000, state: Path | None = None) -> None:
        self.node = node
        self.time = Time()
        self.found: list[tuple[str, str]] = []
        self.busy = False
        self.scrubber = Scrubber(
            node.cache,
            node.torrents,
            state or node.directory,
            settings=ScrubSettings(every_days=10, rate_bps=rate_bps),
            node="wn001",
            busy=lambda: self.busy,
            on_bad=self.on_bad,
            clock=self.time.now,
            now_s=lambda: self.time.s,
            sleep=self.sleep,
        )
        self.on_sleep: Callable[[], None] = lambda: None

    async def sleep(self, seconds: float) -> None:
        self.on_sleep()
        await self.time.sleep(seconds)

    async def on_bad(self, record: VolumeRecord, text: str) -> None:
        self.found.append((record.infohash, text))
        await asyncio.to_thread(self.node.cache.mark_damaged, record.infohash, text)

    async def in_days(self, days: float) -> None:
        self.time.s += days * DAY_S
        await self.scrubber.look()


@asynccontextmanager
async def holding(node: Node, published: Published) -> AsyncIterator[Peer]:
    """The node has pulled the image; gives the seeder."""
    async with seeding(published) as seeder, node.running():
        store = node.stores[0].name
        record = await node.pull(published, "1.0", (seeder,), store=store)
        assert record.state is State.READY, record.text
        yield seeder
