"""From the swarm into a logical volume, and on over kill -9 and restarts."""

from __future__ import annotations

import asyncio
import hashlib
import os
import sys
from collections.abc import Iterator
from contextlib import AsyncExitStack
from pathlib import Path

import pytest

from agent.cache.cache import Cache
from agent.cache.holders import holder_of_pid
from agent.cache.lvm import LvmStore
from agent.cache.records import ImageVersion
from agent.pull.pull import Pull
from agent.pull.pulling import Plan
from agent.pull.resume import ResumeFiles
from agent.pull.swarm import SwarmSource
from distrib.bus.messages import Peer, State
from distrib.swarm.session import SwarmSession
from distrib.swarm.torrent import make_torrent
from tests.cache.conftest import Clock
from tests.cache.node import Node
from tests.pull.conftest import NODE, PIECE_BYTES, PORT, SEEDER, Published, seeding, session
from tests.uml.disks import VG, volume_group

pytestmark = pytest.mark.uml
IMAGE_BYTES = (12 << 20) + 5000
MIB = 1 << 20


@pytest.fixture
def group() -> Iterator[str]:
    with volume_group(former=b"an earlier job's", extent="1m") as name:
        yield name


@pytest.fixture
def published(tmp_path: Path) -> Published:
    (tmp_path / "image.raw").write_bytes(os.urandom(IMAGE_BYTES))
    torrent = tmp_path / "image.torrent"
    info = make_torrent(tmp_path / "image.raw", piece_bytes=PIECE_BYTES, out=torrent)
    return Published(tmp_path, info, torrent.read_bytes())


class LvmNode(Node):
    """A node whose only store is the volume group."""

    def __init__(self, home: Path) -> None:
        self.home = home
        self.state_dir = home / "state"
        self.clock = Clock()
        self.seen = []
        self.start()

    def start(self) -> None:
        self.restart(LvmStore(VG, self.home / "lvm"))


def image_of(published: Published) -> ImageVersion:
    return ImageVersion(
        infohash=published.info.infohash,
        identifier="00000001-0000-4000-8000-000000000000",
        version="1.0",
        sha512=hashlib.sha512(published.data).hexdigest(),
        size_bytes=IMAGE_BYTES,
        piece_bytes=PIECE_BYTES,
    )


async def pull_into(
    cache: Cache, published: Published, directory: Path, peer: Peer, *, to_end: bool = True
) -> int:
    """Pull an image that is desired, to ``ready``; bytes that were there before. Without
    ``to_end`` it goes on until the process is killed, noting what it has."""
    image = image_of(published)
    cache.start_pull(image.infohash)
    resume = ResumeFiles(directory / "resume", boot_id="this boot")
    resumed = resume.load(image.infohash, published.info.pieces)
    async with AsyncExitStack() as stack:
        own: SwarmSession = await stack.enter_async_context(session(NODE, "posix"))
        store = cache.store_of(image.infohash)
        with store.writing(cache.volume(image.infohash)) as target:
            assert target.backend == "posix"
            transfer = own.add(
                published.info,
                published.raw_info,
                target.directory,
                have=resumed.have if resumed else None,
            )
            pull = Pull(
                transfer,
                target,
                sha512=image.sha512,
                raw_info=published.raw_info,
                resume_files=resume,
                resumed=resumed,
            )
            fetching = asyncio.create_task(pull.fetch([SwarmSource(transfer, Plan((peer,)))]))
            while not to_end:
                await transfer.moved()
                done_bytes = transfer.done_bytes
                await pull.checkpoint()
                print(done_bytes, flush=True)
            await fetching
            cache.to_verifying(image.infohash, fetched_bytes=pull.fetched_bytes)
            await pull.conclude()
            await own.remove(transfer)
    cache.ready(image.infohash)
    return pull.resumed_bytes


async def pull_until_killed(directory: Path, published_dir: Path) -> None:
    """What the process that is to be killed does."""
    torrent = (published_dir / "image.torrent").read_bytes()
    info = make_torrent(
        published_dir / "image.raw", piece_bytes=PIECE_BYTES, out=published_dir / "again.torrent"
    )
    node = LvmNode(directory)
    published = Published(published_dir, info, torrent)
    node.cache.desire(image_of(published))
    peer = Peer(node="seeder", address=SEEDER, port=PORT)
    await pull_into(node.cache, published, directory, peer, to_end=False)


async def test_an_image_goes_from_the_swarm_into_its_volume_over_kill_9_and_on_to_a_job(
    group: str, published: Published, tmp_path: Path
) -> None:
    image = image_of(published)
    home = tmp_path / "node"
    home.mkdir()
    async with seeding(published, upload_bps=4 * MIB) as seeder:
        child = await asyncio.create_subprocess_exec(
            sys.executable, "-B", "-m", "tests.lvm.test_pull", str(home), str(tmp_path),
            stdout=asyncio.subprocess.PIPE,
        )  # fmt: skip
        assert child.stdout is not None
        while int(await child.stdout.readline()) < IMAGE_BYTES // 3:
            pass
        child.kill()
        await child.wait()

        node = LvmNode(home)
        assert [record.state for record in node.recovery.resume] == [State.PULLING]
        assert not node.cache.volume(image.infohash).sealed
        resumed_bytes = await pull_into(node.cache, published, home, seeder)
    assert resumed_bytes >= IMAGE_BYTES // 4, "what was not flushed is fetched again, no more"
    volume = node.cache.volume(image.infohash)
    assert volume.sealed
    on_volume = volume.path.read_bytes()
    assert on_volume[:IMAGE_BYTES] == published.data
    assert on_volume[IMAGE_BYTES:] == bytes(13 * MIB - IMAGE_BYTES)

    def lease() -> Path:
        held = node.cache.lease(
            image.infohash, holder=holder_of_pid(os.getpid()), user="alice", cow_bytes=2 * MIB
        )
        return Path(held.device)

    assert lease().read_bytes() == on_volume
    for lost in (home / "state" / "leases").iterdir():
        lost.unlink()
    node.start()
    assert node.store.instances() == (), "a snapshot that nobody holds is removed at the start"
    assert node.state(image) is State.READY
    node.cache.set_desired([])
    node.cache.evict(image.infohash)
    assert node.store.volumes() == ()
    assert node.store.space().used_bytes == 0


if __name__ == "__main__":
    asyncio.run(pull_until_killed(Path(sys.argv[1]), Path(sys.argv[2])))
