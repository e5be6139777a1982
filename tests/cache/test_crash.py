"""kill -9 in the middle of everything, then a start.

A child process lives the life of a volume and is killed just before one of the lines that change
something on disk; the lines are spread over the whole life (all of them in the long run). Then the
parent starts the cache on what is left, and finishes what the child began.
"""

from __future__ import annotations

import os
import random
from collections.abc import Callable, Iterator
from contextlib import suppress
from datetime import timedelta
from pathlib import Path
from typing import Any

import pytest

from agent.cache.cache import Cache
from agent.cache.device import DeviceStore
from agent.cache.file import FileStore
from agent.cache.holders import TimeHolder
from agent.cache.records import ImageVersion
from agent.cache.store import Store
from distrib.bus.messages import State
from distrib.errors import DistribError
from tests.cache.killing import in_a_child

MIB = 1 << 20
ROUNDS = 24


@pytest.fixture(params=["file", pytest.param("device", marks=pytest.mark.root)])
def start(
    request: pytest.FixtureRequest, tmp_path: Path, clock: Any
) -> Iterator[Callable[[Path], tuple[Store, Cache]]]:
    """Opens store and cache in a directory, as an agent's start does, without ``recover``."""
    pool = request.getfixturevalue("devices")(2 * MIB, 2 * MIB) if request.param == "device" else []

    def open_in(root: Path) -> tuple[Store, Cache]:
        store: Store = FileStore(root / "cache", 4 * MIB)
        if pool:
            store = DeviceStore(
                pool,
                root / "devices",
                instances_dir=root / "instances",
                instances_capacity_bytes=MIB,
            )
        return store, Cache(state_dir=root / "state", stores=[store], clock=clock)

    yield open_in


def content(image: ImageVersion) -> bytes:
    return random.Random(image.infohash).randbytes(image.size_bytes)


def live(store: Store, cache: Cache, images: list[ImageVersion], clock: Any) -> None:
    """The first version comes and stays leased, the second comes and is used, the third takes the
    room of the second and the place of the first."""
    holder = TimeHolder(clock() + timedelta(hours=1))
    for image in images:
        record = cache.desire(image, active=image is not images[1], retry=True)
        if record.state in (State.RESERVED, State.PULLING):
            cache.start_pull(image.infohash)
            with store.writing(cache.volume(image.infohash)) as target:
                os.pwrite(target.fd, content(image), 0)
            cache.to_verifying(image.infohash)
            record = cache.ready(image.infohash)
        if record.state is State.READY and not cache.leases(image.infohash):
            cache.lease(
                image.infohash, holder=holder, user="u", cow_bytes=65536, scratch_bytes=65536
            )
        # Also those that were taken before a crash: a moment that holds them does not die.
        for lease in cache.leases(image.infohash):
            if image is not images[0]:
                cache.release(lease.lease)
        cache.set_desired([])


def check(root: Path, store: Store, cache: Cache, images: list[ImageVersion]) -> None:
    by_hash = {image.infohash: image for image in images}
    volumes = {v.infohash: v for v in store.volumes()}
    snapshot = cache.snapshot()
    assert snapshot.unknown == ()
    assert {h.record.infohash for h in snapshot.holdings if h.record.state is not State.FAILED} == (
        set(volumes)
    ), "no volume without a record, no record without a volume"
    assert State.EVICTING not in {held.state for held in snapshot.holdings}
    for held in snapshot.holdings:
        volume = volumes.get(held.record.infohash)
        if held.record.state is State.READY:
            assert volume is not None
            assert volume.sealed
            image = by_hash[volume.infohash]
            with volume.path.open("rb") as file:
                assert file.read(image.size_bytes) == content(image), "ready means right"
        elif volume is not None:
            assert not volume.sealed
    assert len([h for h in snapshot.holdings if h.record.active]) <= 1
    assert {one.lease for one in cache.leases()} == {one.lease for one in store.instances()}
    assert all(Path(one.device).exists() for one in cache.leases())
    assert [p for p in root.rglob("*") if p.suffix in (".new", ".gone", ".tmp", ".bad")] == []


@pytest.mark.parametrize(
    "rounds", [pytest.param(ROUNDS), pytest.param(None, marks=pytest.mark.long, id="all")]
)
def test_whenever_the_agent_is_killed_the_next_one_goes_on(
    start: Callable[[Path], tuple[Store, Cache]],
    tmp_path: Path,
    clock: Any,
    image: Callable[..., ImageVersion],
    rounds: int | None,
) -> None:
    images = [image(n, 1536 * 1024, of=7) for n in (1, 2, 3)]

    def work(root: Path) -> Callable[[], None]:
        def run() -> None:
            store, cache = start(root)
            cache.recover()
            live(store, cache, images, clock)

        return run

    whole = in_a_child(work(tmp_path / "whole"), 0)
    clean(start, tmp_path / "whole")
    chance = random.Random()
    steps = sorted(chance.sample(range(1, whole + 1), min(whole, rounds or whole)))
    for step in steps:
        again = chance.randint(1, whole)
        print(f"killed before step {step} of {whole}, the next start before step {again}")
        root = tmp_path / f"killed-{step}"
        in_a_child(work(root), step)
        in_a_child(work(root), again)
        store, cache = start(root)
        cache.recover()
        check(root, store, cache, images)
        live(store, cache, images, clock)
        check(root, store, cache, images)
        assert cache.resolve(images[0].identifier).infohash == images[2].infohash
        for image_ in (images[0], images[2]):
            assert cache.volume(image_.infohash).sealed
        clean(start, root)


def clean(start: Callable[[Path], tuple[Store, Cache]], root: Path) -> None:
    """Give everything back, so that devices are free for the next round."""
    store, cache = start(root)
    cache.recover()
    for lease in cache.leases():
        cache.release(lease.lease)
    for held in cache.snapshot().holdings:
        cache.evict(held.record.infohash, force=True)
    assert store.volumes() == ()
    assert store.space().used_bytes == 0
    with suppress(DistribError):
        cache.reap_dead_leases()
