"""The disk changes what it was given: the scrub finds it, and only the bad piece comes again."""

from __future__ import annotations

import asyncio
import os
import subprocess
from collections.abc import Callable, Iterator
from datetime import UTC, datetime, timedelta
from itertools import pairwise
from pathlib import Path

import pytest

from agent.cache.device import DeviceStore
from agent.cache.file import FileStore
from agent.cache.holders import holder_of_pid
from agent.rereading import Rereading
from agent.scrub import Pace, Subject, due_at, next_subject
from agent.scrubber import LOOK_AGAIN_S
from distrib.bus.messages import State
from distrib.errors import Conflict
from distrib.swarm.pieces import piece_hashes
from tests.cache.conftest import devices, file_system
from tests.delta.node import MIB, PIECE, Node, publish
from tests.faults.disks import flip_below_a_file, flip_on_a_disk
from tests.faults.scrubbing import DAY_S, Scrubbing, holding
from tests.pull.conftest import Published

__all__ = ["devices", "file_system"]

SIZE = 4 * MIB + 5000
BAD = 41
START = datetime(2026, 3, 1, 12, tzinfo=UTC)


@pytest.fixture(scope="module")
def published(tmp_path_factory: pytest.TempPathFactory) -> Published:
    return publish(tmp_path_factory.mktemp("scrubbed") / "image", os.urandom(SIZE))


@pytest.fixture(params=["file", "device"])
def flipped(
    request: pytest.FixtureRequest,
    tmp_path: Path,
    file_system: Callable[..., Path],
    devices: Callable[..., list[Path]],
) -> Iterator[tuple[Node, Callable[[Node, Published, int], None]]]:
    """A node, and what flips a bit of its image below the store: nothing above can know."""
    if request.param == "file":
        mount = file_system("ext4", 64 * MIB)
        disk = tmp_path / "ext4.img"
        node = Node(tmp_path / "node", [FileStore(mount / "cache", 32 * MIB)])

        def flip(node: Node, published: Published, at: int) -> None:
            path = node.cache.volume(published.info.infohash).path
            flip_below_a_file(path, at, disk)
    else:
        (device,) = devices(8 * MIB)
        backing = subprocess.run(
            ["losetup", "--noheadings", "--output", "BACK-FILE", str(device)],
            capture_output=True, text=True, check=True,
        ).stdout.strip()  # fmt: skip
        store = DeviceStore(
            [device],
            tmp_path / "links",
            instances_dir=tmp_path / "instances",
            instances_capacity_bytes=64 * MIB,
        )
        node = Node(tmp_path / "node", [store])

        def flip(node: Node, published: Published, at: int) -> None:
            flip_on_a_disk(Path(backing), at)

    yield node, flip


@pytest.mark.root
async def test_a_flipped_bit_is_found_within_one_pass_and_only_its_piece_comes_again(
    flipped: tuple[Node, Callable[[Node, Published, int], None]], published: Published
) -> None:
    node, flip = flipped
    async with holding(node, published) as seeder:
        scrubbing = Scrubbing(node)
        await scrubbing.in_days(10)
        assert scrubbing.found == []
        assert node.bytes_of(published) == published.data, "it is in the page cache now"
        flip(node, published, BAD * PIECE + 77)
        await scrubbing.in_days(10)
        pieces = published.info.pieces
        assert scrubbing.found == [(published.info.infohash, f"piece {BAD} of {pieces} is bad")]
        before = node.record(published)
        assert before.state is State.PULLING
        assert published.info.infohash not in scrubbing.scrubber.status()
        record = await node.pull(published, "1.0", (seeder,), store=node.stores[0].name)
        assert record.state is State.READY
        assert not record.damaged
        assert record.fetched_bytes - before.fetched_bytes == PIECE, "that piece, and no other"
        assert node.bytes_of(published) == published.data
        await scrubbing.in_days(10)
        assert len(scrubbing.found) == 1


async def test_jobs_on_a_bad_image_keep_it_and_new_ones_do_not_get_it(
    tmp_path: Path, published: Published
) -> None:
    node = Node(tmp_path / "node")
    async with holding(node, published) as seeder:
        lease = node.cache.lease(
            published.info.infohash, holder=holder_of_pid(os.getpid()), user="u", cow_bytes=65536
        )
        node.spoil(published, BAD * PIECE)
        scrubbing = Scrubbing(node)
        await scrubbing.in_days(10)
        assert node.cache.damaged() == {published.info.infohash}
        await scrubbing.in_days(10)
        assert len(scrubbing.found) == 1, "what is known to be bad is not read again"
        node.cache.release(lease.lease)
        record = await node.pull(published, "1.0", (seeder,))
        assert record.state is State.READY
        assert node.cache.damaged() == frozenset()
        assert node.bytes_of(published) == published.data


async def test_the_rate_is_kept_and_rests_are_not_made_up_for(
    tmp_path: Path, published: Published
) -> None:
    node = Node(tmp_path / "node")
    async with holding(node, published):
        scrubbing = Scrubbing(node, rate_bps=100_000)
        read: list[tuple[float, int]] = []
        step = scrubbing.scrubber._step

        def timed(rereading: Rereading, infohash: str, piece: int) -> bool | None:
            read.append((scrubbing.time.s, published.info.piece_size(piece)))
            return step(rereading, infohash, piece)

        scrubbing.scrubber._step = timed  # type: ignore[method-assign]

        def pull_comes_and_goes() -> None:
            scrubbing.busy = len(read) == 20 and not scrubbing.busy

        scrubbing.on_sleep = pull_comes_and_goes
        await scrubbing.in_days(10)
        assert sum(size for _, size in read) == SIZE
        for first in range(len(read)):
            for last in range(first + 1, len(read)):
                span_s = read[last][0] - read[first][0]
                came = sum(size for _, size in read[first:last])
                assert came <= 100_000 * span_s * 1.000001
        gaps = [later[0] - earlier[0] for earlier, later in pairwise(read)]
        assert [at for at, gap in enumerate(gaps) if gap >= LOOK_AGAIN_S] == [19]


async def test_a_restart_in_the_middle_goes_on_at_its_place(
    tmp_path: Path, published: Published
) -> None:
    node = Node(tmp_path / "node")
    async with holding(node, published):
        first = Scrubbing(node)
        task: asyncio.Task[None] | None = None

        def stop() -> None:
            status = first.scrubber.status()[published.info.infohash]
            assert status["reading"]
            if len(first.time.slept) == 30 and task is not None:
                task.cancel()

        first.on_sleep = stop
        first.time.s = 10 * DAY_S
        task = asyncio.create_task(first.scrubber.look())
        with pytest.raises(asyncio.CancelledError):
            await task
        place = first.scrubber.status()[published.info.infohash]["bytes_read"]
        assert place == 31 * PIECE
        node.spoil(published, 5 * PIECE)  # behind it: found by the next pass
        second = Scrubbing(node)
        assert second.scrubber.status()[published.info.infohash]["bytes_read"] == place
        await second.scrubber.look()  # at once, although it is not due by this clock
        assert second.found == []
        assert len(second.time.slept) == published.info.pieces - 31
        await second.in_days(20)
        assert [text for _, text in second.found] == [f"piece 5 of {published.info.pieces} is bad"]


async def test_an_eviction_does_not_wait_for_the_scrub(
    tmp_path: Path, published: Published
) -> None:
    node = Node(tmp_path / "node")
    async with holding(node, published):
        scrubbing = Scrubbing(node)

        def evict() -> None:
            if len(scrubbing.time.slept) == 7:
                scrubbing.scrubber.before_evict(published.info.infohash)
                node.cache.set_desired([])
                node.cache.evict(published.info.infohash)

        scrubbing.on_sleep = evict
        await scrubbing.in_days(10)
        assert len(scrubbing.time.slept) == 8
        assert scrubbing.found == []
        assert scrubbing.scrubber.status() == {}
        await scrubbing.in_days(10)
        with pytest.raises(FileNotFoundError):
            Rereading(
                node.directory / "gone", piece_hashes(published.torrent, published.info),
                published.info,
            ).is_good(0)  # fmt: skip


async def test_what_was_done_and_cannot_be_read_is_set_aside_and_done_again(
    tmp_path: Path, published: Published
) -> None:
    node = Node(tmp_path / "node")
    async with holding(node, published):
        await Scrubbing(node).in_days(10)
        record = node.directory / "scrub.json"
        assert published.info.infohash in record.read_text()
        record.write_text('{"v": 1, "volumes": {"not an info-hash": {}}}')
        again = Scrubbing(node)
        assert record.with_name("scrub.json.bad").exists()
        await again.in_days(10)
        assert len(again.time.slept) == published.info.pieces
        assert published.info.infohash in record.read_text()


async def test_what_became_bad_while_a_lease_was_given_is_not_marked_twice(
    tmp_path: Path, published: Published
) -> None:
    node = Node(tmp_path / "node")
    async with holding(node, published):
        node.spoil(published, BAD * PIECE)
        scrubbing = Scrubbing(node)
        await scrubbing.in_days(10)
        with pytest.raises(Conflict):
            node.cache.mark_damaged(published.info.infohash)


def test_a_farm_that_got_an_image_at_one_moment_does_not_read_it_at_one_moment() -> None:
    subject = Subject("a" * 64, START)
    due = [
        (due_at(subject, node=f"wn{n}", every_s=100 * DAY_S) - START).total_seconds() / DAY_S
        for n in range(1000)
    ]
    assert all(75 <= days <= 100 for days in due)
    tenths = [sum(75 + 2.5 * k <= days < 77.5 + 2.5 * k for days in due) for k in range(10)]
    assert all(60 <= count <= 140 for count in tenths), tenths


def test_a_pass_that_was_begun_goes_on_before_another_begins() -> None:
    begun = Subject("b" * 64, START + timedelta(days=9), piece=3)
    older = Subject("a" * 64, START)
    assert next_subject([older, begun], node="n", every_s=DAY_S) is begun
    assert next_subject([], node="n", every_s=DAY_S) is None


def test_a_pause_is_not_followed_by_a_burst() -> None:
    pace = Pace(100)
    assert pace.took(200, now_s=0) == 2
    assert pace.took(100, now_s=50) == 51
    assert pace.took(100, now_s=50) == 52
