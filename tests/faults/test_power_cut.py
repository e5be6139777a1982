"""The power fails. What was promised before is there at the next start, and nothing else is.

A node on a device that records its writes pulls an image, leases it, pulls the next version from
it, gives leases back and evicts. Each promise is a mark in the record, made once the product has
given it. Then the record is replayed to random places (tests/faults/log_writes.py) and a node
starts there, in another boot: what was noted as fetched is not fetched again, what was ready is
ready with the right bytes, what was leased is leased, and nothing belongs to nothing.
"""

from __future__ import annotations

import asyncio
import hashlib
import os
import random
from collections.abc import Iterator
from datetime import UTC, datetime, timedelta
from itertools import pairwise
from pathlib import Path

import pytest

from agent.cache.holders import TimeHolder
from agent.cache.store import Store
from agent.pull.resume import Resume, ResumeFiles
from distrib.bus.messages import Peer, State
from tests.delta.node import MIB, PIECE, Node, edited, publish
from tests.faults.log_writes import Entry, cut, entries, logged, mark
from tests.faults.stack import SIZE, Stack
from tests.pull.conftest import PORT, SEEDER, Published, seeding, session
from tests.uml.disks import DISKS, clear

pytestmark = pytest.mark.uml

IMAGE_BYTES = 3 * MIB + 5000
RATE_BPS = 3 * MIB
"""So slow that there are checkpoints on the way."""
RECORDED = "cutlog"
LONG = (pytest.mark.long, pytest.mark.timeout(3000))
ORIGIN, LOG, AFTER = DISKS


class Promising(ResumeFiles):
    """Says in the record which pieces are promised to be on the disk."""

    def save(self, infohash: str, resume: Resume) -> None:
        super().save(infohash, resume)
        bits = "".join("1" if held else "0" for held in resume.have)
        mark(RECORDED, f"noted:{infohash}:{int(bits, 2):x}")


class Promises:
    """What the marks up to a place in the record say."""

    def __init__(self, marks: list[str]) -> None:
        self.noted: dict[str, int] = {}
        self.ready: set[str] = set()
        self.leased: set[str] = set()
        self.begun: set[str] = set()
        for text in marks:
            kind, _, what = text.partition(":")
            match kind:
                case "begin":
                    self.begun.add(what)
                case "noted":
                    infohash, _, bits = what.partition(":")
                    self.noted[infohash] = int(bits, 16)
                case "ready":
                    self.ready.add(what)
                case "evict":
                    self.ready.discard(what)
                    self.noted.pop(what, None)
                case "leased":
                    self.leased.add(what)
                case "release":
                    self.leased.discard(what)


@pytest.fixture(scope="module")
def versions(tmp_path_factory: pytest.TempPathFactory) -> tuple[Published, Published]:
    home = tmp_path_factory.mktemp("cut")
    data = os.urandom(IMAGE_BYTES)
    chance = random.Random(1)
    places = [chance.randrange(IMAGE_BYTES // PIECE) * PIECE for _ in range(12)]
    return publish(home / "old", data), publish(home / "new", edited(data, places))


@pytest.fixture
def clean() -> Iterator[None]:
    clear()
    yield
    clear()


async def live(stack: Stack, stores: list[Store], old: Published, new: Published) -> None:
    """The life that is recorded."""
    node = Node(stack.home / "node", stores)
    node.resume = Promising(node.directory / "resume", boot_id="the boot before")
    cache, store = node.cache, stores[0].name

    async def pull(published: Published, version: str, seeder: Peer) -> None:
        infohash = published.info.infohash
        mark(RECORDED, f"begin:{infohash}")
        record = await node.pull(published, version, (seeder,), store=store)
        assert record.state is State.READY, record.text
        mark(RECORDED, f"ready:{infohash}")

    async def lease(published: Published) -> str:
        given = await asyncio.to_thread(
            cache.lease,
            published.info.infohash,
            holder=TimeHolder(datetime.now(UTC) + timedelta(days=1)),
            user="u",
            cow_bytes=256 << 10,
            scratch_bytes=128 << 10,
        )
        mark(RECORDED, f"leased:{given.lease}")
        return given.lease

    async def release(name: str) -> None:
        mark(RECORDED, f"release:{name}")
        await asyncio.to_thread(cache.release, name)

    async with seeding(old, upload_bps=RATE_BPS) as seeder, node.running():
        await pull(old, "1.0", seeder)
    first, second = await lease(old), await lease(old)
    await release(first)
    async with seeding(new, upload_bps=RATE_BPS) as seeder, node.running():
        await pull(new, "2.0", seeder)
    await release(second)
    await lease(new)
    cache.set_desired([new.info.infohash])
    mark(RECORDED, f"evict:{old.info.infohash}")
    await asyncio.to_thread(cache.evict, old.info.infohash)
    mark(RECORDED, f"evicted:{old.info.infohash}")


async def check(
    stack: Stack, stores: list[Store], versions: tuple[Published, Published], said: Promises
) -> str:
    """Start on what is left, look, and pull on; a word on what was found."""
    node = Node(stack.home / "node", stores, boot_id="the boot after")
    store, cache = stores[0], node.cache
    by_hash = {one.info.infohash: one for one in versions}
    held = {one.record.infohash: one for one in cache.snapshot().holdings}
    leases = {one.lease for one in cache.leases()}

    assert cache.snapshot().unknown == ()
    assert {one.infohash for one in store.volumes()} == set(held)
    assert {one.lease for one in store.instances()} == leases
    assert said.leased <= leases, "a lease that was given outlives the power"
    for infohash, holding in held.items():
        if holding.record.state is State.READY:
            assert node.bytes_of(by_hash[infohash]) == by_hash[infohash].data, "ready means right"
        else:
            assert not cache.volume(infohash).sealed
    for infohash in said.ready:
        assert held[infohash].record.state is State.READY, "what was ready is ready"
    strays = [
        path
        for path in stack.home.rglob("*")
        if path.name.endswith((".new", ".gone", ".tmp", ".bad"))
    ]
    assert strays == []
    if stack.kind == "lvm":
        expected = {f"distrib-{infohash}" for infohash in held}
        expected |= {f"distrib-{part}-{one}" for part in ("cow", "scratch") for one in leases}
        assert stack.volumes() == expected

    told = []
    for version, published in zip(("1.0", "2.0"), versions, strict=True):
        infohash = published.info.infohash
        if infohash not in held or held[infohash].record.state is State.READY:
            continue
        before = held[infohash].record
        noted = said.noted.get(infohash, 0).bit_count()
        async with session(SEEDER) as serving, node.running():
            seed = serving.add(published.info, published.torrent, published.directory, seed=True)
            seeder = Peer(node="seeder", address=SEEDER, port=PORT)
            record = await node.pull(published, version, (seeder,), store=store.name)
            assert record.state is State.READY, record.text
            await seed.count()
        missing = published.info.pieces - noted
        told.append(f"{before.state}, {noted} pieces noted, {seed.uploaded_bytes} bytes fetched")
        assert seed.uploaded_bytes <= missing * PIECE, "what was noted is not fetched again"
        sha512 = hashlib.sha512(node.bytes_of(published)).hexdigest()
        assert sha512 == hashlib.sha512(published.data).hexdigest()
    for name in leases:
        cache.release(name)
    cache.set_desired([])
    for infohash in {one.record.infohash for one in cache.snapshot().holdings}:
        cache.evict(infohash, force=True)
    assert store.space().used_bytes == 0
    if stack.kind == "lvm":
        assert stack.volumes() == set()
    return "; ".join(told)


async def record(stack: Stack, versions: tuple[Published, Published]) -> list[Entry]:
    """Live on a device that records; what it recorded."""
    with logged(RECORDED, ORIGIN, LOG, SIZE) as device:
        stack.make(device)
        mark(RECORDED, "made")
        with stack.up(device) as stores:
            await live(stack, stores, *versions)
            mark(RECORDED, "end")
    return entries(LOG)


def moment(marks: dict[str, int], chance: random.Random) -> int:
    """Anywhere in the life, or within one of its steps: the short ones have their turn too."""
    first, last = marks["made"], marks["end"]
    if chance.random() < 0.5:
        return chance.randint(first + 1, last)
    steps = sorted(
        number
        for text, number in marks.items()
        if first <= number <= last and not text.startswith("noted")
    )
    start, end = chance.choice([(a, b) for a, b in pairwise(steps) if b > a + 1])
    return chance.randint(start + 1, end)


@pytest.mark.usefixtures("clean")
@pytest.mark.parametrize(
    ("kind", "records", "cuts"),
    [
        pytest.param("file", 1, 4, id="file"),
        pytest.param("lvm", 1, 2, id="lvm"),
        pytest.param("file", 6, 10, id="file-60", marks=LONG),
        pytest.param("lvm", 5, 8, id="lvm-40", marks=LONG),
    ],
)
async def test_what_was_promised_before_the_power_failed_is_there_and_nothing_else(
    tmp_path: Path, versions: tuple[Published, Published], kind: str, records: int, cuts: int
) -> None:
    stack = Stack(kind, tmp_path / "mnt")
    for _ in range(records):
        found = await record(stack, versions)
        marks = {one.mark: number for number, one in enumerate(found) if one.mark}
        told = {text.partition(":")[0] for text in marks}
        assert told >= {"begin", "noted", "ready", "leased", "release", "evict", "evicted"}
        for _ in range(cuts):
            seed = random.randrange(1 << 32)
            chance = random.Random(seed)
            upto = moment(marks, chance)
            lost = cut(
                LOG, found, upto, AFTER,
                size_bytes=SIZE, lose=chance, in_order=stack.in_order,
            )  # fmt: skip
            print(f"{kind}: cut at {upto} of {marks['end']}, {lost} lost (seed {seed})")
            said = Promises([one.mark for one in found[:upto] if one.mark])
            with stack.up(AFTER) as stores:
                print("  ", await check(stack, stores, versions, said))
