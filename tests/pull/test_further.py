"""Sources beside the swarm: when they run, what they bring, and what is counted for them."""

from __future__ import annotations

import asyncio
from collections import Counter
from dataclasses import dataclass, field
from pathlib import Path

import pytest

from agent.cache.file import FileStore
from agent.pull import further
from agent.pull.further import Counted, Further, Means, Pulled, Standing, by_transport
from agent.pull.pace import Pace
from agent.pull.pulling import Plan
from agent.pull.source import PieceSink, Source
from agent.pull.swarm import SwarmSource
from distrib.bus.messages import GrantTokens, Peer, Transport
from distrib.errors import NetworkError, TimedOut
from distrib.swarm.transfer import Transfer
from tests.delta.node import Node, site_image
from tests.pull.conftest import IMAGE_BYTES, NODE, PORT, SEEDER, Published, seeding, session

KINDS = ("http", "path", "tsunami")


def standing(
    transport: Transport,
    *,
    silent_s: float = 0.0,
    tokens: tuple[GrantTokens, ...] = (),
    **since: float,
) -> Standing:
    return Standing(Means(transport=transport, tokens=tokens), KINDS, silent_s, since)


def test_what_is_ordered_runs_and_auto_helps_while_the_swarm_brings_nothing() -> None:
    grant = GrantTokens(infohash="0" * 64, transport=Transport.TSUNAMI, pieces=10)
    assert not by_transport(standing(Transport.SWARM, silent_s=99))
    assert by_transport(standing(Transport.SWARM, tokens=(grant,))) == {"tsunami"}
    assert by_transport(standing(Transport.TSUNAMI)) == {"tsunami", "path"}
    assert not by_transport(standing(Transport.AUTO, silent_s=1))
    stalled_s, everything = (
        further.STALLED_S,
        grant.model_copy(update={"transport": Transport.AUTO}),
    )
    assert by_transport(standing(Transport.AUTO, silent_s=stalled_s)) == {"path"}
    leave = (everything,)
    assert by_transport(standing(Transport.AUTO, silent_s=stalled_s, tokens=leave)) == set(KINDS)
    assert not by_transport(standing(Transport.AUTO, silent_s=1, tokens=leave))
    helping = standing(Transport.AUTO, tokens=leave, http=further.HELPED * stalled_s - 1)
    assert by_transport(helping) == {"http"}
    assert not by_transport(standing(Transport.AUTO, tokens=leave, http=further.HELPED * stalled_s))


@dataclass
class FromFile:
    """A source that reads the image from a file, as one over a mounted path does."""

    path: Path
    name: str = "path"

    async def bring(self, sink: PieceSink) -> None:
        data = await asyncio.to_thread(self.path.read_bytes)
        for index in sink.missing():
            at = index * sink.piece_bytes
            await sink.offer(index, data[at : at + sink.piece_bytes])
        await sink.complete()


@dataclass
class Maker:
    """Makes that source; the first one fails."""

    path: Path
    made: int = 0
    name: str = "path"
    asked: list[Means] = field(default_factory=list)

    async def close(self) -> None:
        """Nothing is shared."""

    def make(self, pulled: Pulled) -> Source | None:
        self.made += 1
        self.asked.append(pulled.means())
        return FromFile(self.path) if self.made > 1 else Broken()


class Broken:
    name = "path"

    async def bring(self, sink: PieceSink) -> None:
        raise NetworkError("not mounted", hint="mount it")


async def test_a_source_beside_a_swarm_without_bytes_brings_the_image_and_is_counted(
    tmp_path: Path, published: Published, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(further, "TRY_AGAIN_S", 0.5)
    store = FileStore(tmp_path, 2 * IMAGE_BYTES)
    volume = store.reserve(published.info.infohash, IMAGE_BYTES)
    brought: Counter[str] = Counter()
    maker = Maker(published.directory / "image.raw")
    # The seeder gives the piece hashes and, all but stopped, hardly a piece.
    async with seeding(published, upload_bps=64 << 10) as seeder, session(NODE) as own:
        with store.writing(volume) as target:
            transfer = own.add(published.info, published.torrent, target.directory)
            source = Further(
                [maker],
                Pulled(
                    site_image(published.torrent, published.data, "1"),
                    published.info,
                    published.raw_info,
                    means=lambda: Means(transport=Transport.AUTO),
                ),
                swarm_bytes=lambda: transfer.fetched_bytes,
                brought=brought,
                policy=lambda now: now.kinds,
            )
            swarm = SwarmSource(transfer, Plan((seeder,)))
            async with asyncio.timeout(40), asyncio.TaskGroup() as group:
                group.create_task(source.bring(transfer))
                group.create_task(swarm.bring(transfer))
            await own.remove(transfer)
    assert maker.made == 2
    assert volume.path.read_bytes() == published.data
    assert brought["path"] > 0.8 * IMAGE_BYTES


async def test_what_came_without_the_swarm_is_seeded_and_nothing_is_kept_for_nobody(
    tmp_path: Path, published: Published
) -> None:
    node = Node(tmp_path, makers=(Maker(published.directory / "image.raw", made=1),))
    nobody = Peer(node="nobody", address=SEEDER, port=PORT)
    async with node.running():
        pull = node.begin(published, "1.0.0", (nobody,), transport=Transport.TSUNAMI)
        node.torrents.keep_layers(pull.image, published.torrent)
        transfer = await pull.run()
        assert isinstance(transfer, Transfer)
        assert transfer.is_complete
        assert transfer.events.empty()
        assert not transfer.is_moving
        await node.sessions["pread"].remove(transfer)


@dataclass
class Memory:
    """A sink that takes whatever it is offered, one piece a turn of the loop."""

    pieces: int
    infohash: str = "0" * 64
    piece_bytes: int = 4
    held: set[int] = field(default_factory=set)
    done: asyncio.Event = field(default_factory=asyncio.Event)

    @property
    def size_bytes(self) -> int:
        return self.pieces * self.piece_bytes

    def missing(self) -> list[int]:
        return [index for index in range(self.pieces) if index not in self.held]

    async def offer(self, index: int, data: bytes) -> bool:
        await asyncio.sleep(0.02)
        self.held.add(index)
        if not self.missing():
            self.done.set()
        return True

    async def complete(self) -> None:
        await self.done.wait()


@dataclass
class Endless:
    """Makes a source that offers all that is missing."""

    name: str = "tsunami"

    async def close(self) -> None:
        """Nothing is shared."""

    def make(self, pulled: Pulled) -> Source | None:
        return self

    async def bring(self, sink: PieceSink) -> None:
        for index in sink.missing():
            await sink.offer(index, b"1234")


async def test_leave_is_asked_for_and_ends_with_its_pieces(
    published: Published, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(further, "LOOK_S", 0.05)
    granted: list[GrantTokens] = []
    asked: list[int] = []
    again = asyncio.Event()

    def ask(missing: int, why: object) -> None:
        asked.append(missing)
        if len(asked) == 3:
            again.set()
        if len(asked) == 1:
            leave = GrantTokens(infohash="0" * 64, transport=Transport.TSUNAMI, pieces=10)
            granted.append(leave)

    source = Further(
        [Endless()],
        Pulled(
            site_image(published.torrent, published.data, "1"),
            published.info,
            published.raw_info,
            means=lambda: Means(transport=Transport.AUTO, tokens=tuple(granted)),
            ask=ask,
        ),
        swarm_bytes=lambda: 0,
        brought=Counter(),
        stalled_s=0.05,
    )
    sink = Memory(200)
    bringing = asyncio.create_task(source.bring(sink))
    async with asyncio.timeout(20):
        await again.wait()
    bringing.cancel()
    await asyncio.gather(bringing, return_exceptions=True)
    assert asked[0] == 200
    # It is looked at every 50 ms: as many as come in that time may be beyond.
    assert 10 <= len(sink.held) <= 20


async def test_the_cap_of_a_pull_holds_for_all_of_them_together(published: Published) -> None:
    clock = asyncio.get_running_loop().time
    sink, began_s = Memory(20), clock()
    source = Further(
        [Endless(), Endless("path")],
        Pulled(
            site_image(published.torrent, published.data, "1"),
            published.info,
            published.raw_info,
            means=lambda: Means(transport=Transport.TSUNAMI),
            download_bps=lambda: 100,
        ),
        swarm_bytes=lambda: 0,
        brought=Counter(),
    )
    async with asyncio.timeout(60):
        await source.bring(sink)
    # 80 bytes at 100 in a second, at least; unhurried it takes half of that.
    assert clock() - began_s > 0.75


async def test_who_waits_for_a_slow_rate_goes_on_when_it_is_lifted() -> None:
    rate_bps, turns, first = 1, [], asyncio.Event()
    pace = Pace(lambda: rate_bps)

    async def take(turn: int) -> None:
        await pace.take(1000)
        turns.append(turn)
        first.set()

    async with asyncio.timeout(60), asyncio.TaskGroup() as group:
        for turn in range(5):
            group.create_task(take(turn))
        # The first takes its own at once; after it the others would wait for an hour.
        await first.wait()
        rate_bps = 0
    assert turns == [0, 1, 2, 3, 4]


async def test_a_piece_that_two_bring_counts_once() -> None:
    brought: Counter[str] = Counter()
    sink, counted, kept = Memory(3), set[int](), []
    for name in ("tsunami", "http"):
        unhurried = Pace(lambda: 0)
        of_name = Counted(
            sink,
            name,
            brought,
            counted=counted,
            on_kept=lambda: kept.append(1),
            pace=unhurried,
        )
        for index in (0, 1):
            assert await of_name.offer(index, b"1234")
    assert brought == {"tsunami": 8}
    assert len(kept) == 4


async def test_the_deadline_holds_without_a_swarm(published: Published) -> None:
    now_s = asyncio.get_running_loop().time()
    source = Further(
        [],
        Pulled(
            site_image(published.torrent, published.data, "1"),
            published.info,
            published.raw_info,
            means=lambda: Means(transport=Transport.TSUNAMI),
            deadline_s=lambda: now_s + 0.2,
        ),
        swarm_bytes=lambda: 0,
        brought=Counter(),
    )
    with pytest.raises(TimedOut, match="deadline"):
        async with asyncio.timeout(10):
            await source.bring(Memory(10))
