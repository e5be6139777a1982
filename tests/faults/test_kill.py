"""kill -9 of the agent, again and again, in whatever it does: it goes on as if nothing had been.

Real agents, a real swarm, over files and over loop devices; over LVM in user-mode Linux.
"""

from __future__ import annotations

import asyncio
import os
import random
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import pytest

from distrib.swarm.profile import lan_profile
from distrib.swarm.session import SwarmSession
from tests.cache.conftest import devices
from tests.delta.node import MIB, PIECE, UUID, edited, publish
from tests.farm.process import eventually
from tests.faults.rounds import RATE_BPS, Rounds
from tests.faults.victim import LvmVictim, Site, Victim
from tests.pull.conftest import Published
from tests.uml.disks import volume_group

__all__ = ["devices"]

SIZE = 4 * MIB + 5000
OTHER = "1d4a0e0e-7d0b-4f0e-a4f6-0c3a5b5a9f01"
ADDRESS, SEEDER_PORT, PORT = "127.0.12.1", 17991, 17992
LONG = (pytest.mark.long, pytest.mark.timeout(3400))


@pytest.fixture(scope="module")
def site(tmp_path_factory: pytest.TempPathFactory) -> Site:
    """Two versions of an image, and another image."""
    home = tmp_path_factory.mktemp("site")
    data, chance = os.urandom(SIZE), random.Random(3)
    places = [chance.randrange(SIZE // PIECE) * PIECE for _ in range(20)]
    images: dict[str, Published] = {
        f"{UUID}@1.0": publish(home / "old", data),
        f"{UUID}@2.0": publish(home / "new", edited(data, places)),
        f"{OTHER}@1.0": publish(home / "other", os.urandom(SIZE)),
    }
    return Site(home, images, ADDRESS)


@pytest.fixture
def rounds(site: Site, tmp_path: Path) -> Iterator[Callable[..., Rounds]]:
    """``rounds(cache settings)``: a node of the site, with its seeder."""
    with ExitStack() as stack:
        sent = stack.enter_context(site.seeding(SEEDER_PORT, RATE_BPS))

        def make(kind: type[Victim] = Victim, **cache: Any) -> Rounds:
            seed = random.randrange(1 << 32)
            print(f"seed {seed}")
            more = {"vg": cache["lvm"]["vg"]} if kind is LvmVictim else {}
            victim = kind(
                tmp_path / "node", site, address="127.0.12.2", port=PORT, cache=cache, **more
            )
            stack.callback(victim.stop)
            made = Rounds(victim, sent, random.Random(seed))
            stack.callback(lambda: [job.kill() or job.wait() for job in made.jobs.values()])
            return made

        yield make


@pytest.mark.root
@pytest.mark.parametrize("count", [10, pytest.param(90, marks=LONG)])
def test_an_agent_with_files_is_killed_again_and_again(
    rounds: Callable[..., Rounds], count: int
) -> None:
    rounds(capacity_bytes=16 * MIB, cow_bytes=MIB).run(count)


def test_an_agent_that_fetches_in_stripes_is_killed_goes_on_and_serves_both_ports(
    site: Site, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(site, "stripes", 2)
    infohash = site.images[f"{OTHER}@1.0"].info.infohash
    with ExitStack() as stack:
        sent = stack.enter_context(site.seeding(SEEDER_PORT, SIZE))
        cache = {"capacity_bytes": 16 * MIB, "cow_bytes": MIB}
        victim = Victim(tmp_path / "node", site, address="127.0.12.2", port=PORT, cache=cache)
        stack.callback(victim.stop)
        victim.start([infohash])
        eventually("half", lambda: victim.noted_bytes(infohash) >= SIZE // 2, every_s=0.01)
        victim.kill()
        noted = victim.noted_bytes(infohash)
        before = sent()[infohash]
        victim.start([infohash])
        eventually("ready", lambda: victim.records().get(infohash) == "ready", every_s=0.02)
        # Each stripe goes on from what was noted, so that hardly more than the rest comes again.
        assert sent()[infohash] - before <= SIZE - noted + MIB // 2
        assert victim.sha512(infohash) == site.sha512[infohash]
        victim.kill()
        victim.start([infohash])
        for port in (PORT, PORT + 2):
            there = ("127.0.12.2", port)
            assert asyncio.run(fetched(tmp_path / str(port), site.images[f"{OTHER}@1.0"], there))


async def fetched(directory: Path, image: Published, peer: tuple[str, int]) -> bool:
    """Whether the image comes whole from one peer alone."""
    await asyncio.to_thread(directory.mkdir)
    # Without a map of the farm a node serves who was named to it: the seeder's address was.
    session = SwarmSession(lan_profile(address=ADDRESS, port=PORT), backend="pread")
    async with session.running(), asyncio.timeout(20):
        transfer = session.add(image.info, image.raw_info, directory, peers=[peer])
        await transfer.complete()
        await transfer.flush()
    return (directory / "image.raw").read_bytes() == image.data


@pytest.mark.root
@pytest.mark.parametrize("count", [10, pytest.param(90, marks=LONG)])
def test_an_agent_with_devices_is_killed_again_and_again(
    rounds: Callable[..., Rounds], devices: Callable[..., list[Path]], count: int
) -> None:
    pool = [str(device) for device in devices(5 * MIB, 5 * MIB)]
    rounds(store="device", devices=pool, capacity_bytes=24 * MIB, cow_bytes=MIB).run(count)


@pytest.mark.uml
@pytest.mark.parametrize("count", [4, pytest.param(20, marks=LONG)])
def test_an_agent_with_a_volume_group_is_killed_again_and_again(
    rounds: Callable[..., Rounds], count: int
) -> None:
    with volume_group() as vg:
        lvm = {"vg": vg, "capacity_bytes": 20 * MIB}
        made = rounds(LvmVictim, store="lvm", lvm=lvm, cow_bytes=MIB)
        try:
            made.run(count)
        finally:
            made.victim.stop()
