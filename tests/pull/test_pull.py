"""A pull over a real swarm: whole, resumed, without peers, into a damaged list."""

from __future__ import annotations

import asyncio
import hashlib
import shutil
from contextlib import AsyncExitStack
from dataclasses import replace
from pathlib import Path

import pytest

from agent.cache.file import FileStore
from agent.cache.store import Volume, WriteTarget
from agent.pull.pull import Pull
from agent.pull.pulling import Plan
from agent.pull.resume import Resume, ResumeFiles
from agent.pull.swarm import SwarmSource
from distrib.bus.messages import Peer
from distrib.errors import DigestMismatch, StorageFailed, TimedOut
from distrib.swarm.session import SwarmSession
from tests.pull.conftest import IMAGE_BYTES, NODE, PIECE_BYTES, Published, seeding, session


class Node:
    """A node's volume and resume files; ``begin`` starts a pull into them."""

    def __init__(self, directory: Path, published: Published) -> None:
        self.directory = directory
        self.published = published
        self.store = FileStore(directory / "cache", 4 * IMAGE_BYTES)
        self.resume_files = ResumeFiles(directory / "resume", boot_id="this boot")
        self.sha512 = hashlib.sha512(published.data).hexdigest()

    @property
    def volume(self) -> Volume:
        return self.store.reserve(self.published.info.infohash, IMAGE_BYTES)

    def begin(self, session: SwarmSession, target: WriteTarget, peers: tuple[Peer, ...]) -> Pull:
        info = self.published.info
        resumed = self.resume_files.load(info.infohash, info.pieces)
        transfer = session.add(
            info,
            self.published.raw_info,
            target.directory,
            have=resumed.have if resumed else None,
        )
        self.source = SwarmSource(transfer, Plan(peers))
        return Pull(
            transfer,
            target,
            sha512=self.sha512,
            raw_info=self.published.raw_info,
            resume_files=self.resume_files,
            resumed=resumed,
        )


@pytest.fixture
def node(tmp_path: Path, published: Published) -> Node:
    return Node(tmp_path, published)


async def test_an_image_arrives_whole_and_its_torrent_with_it(
    node: Node, published: Published
) -> None:
    async with AsyncExitStack() as stack:
        seeder = await stack.enter_async_context(seeding(published))
        own = await stack.enter_async_context(session(NODE))
        target = stack.enter_context(node.store.writing(node.volume))
        pull = node.begin(own, target, (seeder,))
        await pull.fetch([node.source])
        torrent = await pull.conclude()
        await own.remove(pull.transfer)
    assert node.volume.path.read_bytes() == published.data
    assert torrent == published.torrent
    assert pull.wasted_bytes == 0


async def test_a_pull_that_is_cut_off_goes_on_where_it_was_flushed(
    node: Node, published: Published
) -> None:
    async with seeding(published, upload_bps=8 << 20) as seeder:
        async with session(NODE) as own:
            with node.store.writing(node.volume) as target:
                pull = node.begin(own, target, (seeder,))
                fetching = asyncio.create_task(pull.fetch([node.source]))
                while pull.transfer.done_bytes < IMAGE_BYTES // 3:
                    await pull.transfer.moved()
                await pull.checkpoint()
                saved = pull.transfer.done_bytes
                fetching.cancel()
                await asyncio.gather(fetching, return_exceptions=True)
                await own.remove(pull.transfer)
        async with session(NODE) as own:
            with node.store.writing(node.volume) as target:
                again = node.begin(own, target, (seeder,))
                assert again.resumed_bytes >= IMAGE_BYTES // 3 - PIECE_BYTES
                await again.fetch([node.source])
                await again.conclude()
                fetched_again = again.transfer.fetched_bytes
                await own.remove(again.transfer)
    assert node.volume.path.read_bytes() == published.data
    assert fetched_again <= IMAGE_BYTES - again.resumed_bytes + PIECE_BYTES
    assert saved >= again.resumed_bytes


async def test_a_pull_that_was_cut_off_in_verifying_ends_with_the_torrent_all_the_same(
    node: Node, published: Published
) -> None:
    with node.store.writing(node.volume) as target:
        target.directory.joinpath("image.raw").write_bytes(published.data)
    every_piece = Resume((True,) * published.info.pieces)
    node.resume_files.save(published.info.infohash, every_piece)
    async with session(NODE) as own:
        with node.store.writing(node.volume) as target:
            pull = node.begin(own, target, ())
            await pull.fetch([node.source])
            assert await pull.conclude() == published.torrent
            await own.remove(pull.transfer)


async def test_notes_that_cannot_be_written_do_not_end_a_pull_but_its_end_says_so(
    node: Node, published: Published
) -> None:
    async with seeding(published) as seeder, session(NODE) as own:
        with node.store.writing(node.volume) as target:
            pull = node.begin(own, target, (seeder,))
            shutil.rmtree(node.directory / "resume")
            await pull.fetch([node.source])
            with pytest.raises(StorageFailed, match="No such file"):
                await pull.conclude()
            await own.remove(pull.transfer)


async def test_a_pull_without_peers_waits_for_them_and_its_deadline_ends_it(
    node: Node, published: Published
) -> None:
    nobody = Peer(node="nobody", address="127.0.3.99", port=17881)
    async with session(NODE) as own:
        with node.store.writing(node.volume) as target:
            pull = node.begin(own, target, (nobody,))
            deadline_s = asyncio.get_running_loop().time() + 1.0
            source = SwarmSource(pull.transfer, Plan((nobody,)), deadline_s=deadline_s)
            with pytest.raises(TimedOut, match="deadline"):
                await pull.fetch([source])
            await own.remove(pull.transfer)


async def test_bytes_that_do_not_have_the_site_lists_sha512_are_never_concluded(
    node: Node, published: Published
) -> None:
    node.sha512 = "0" * 128
    async with seeding(published) as seeder, session(NODE) as own:
        with node.store.writing(node.volume) as target:
            pull = node.begin(own, target, (seeder,))
            await pull.fetch([node.source])
            with pytest.raises(DigestMismatch, match="site list says"):
                await pull.conclude()
            await own.remove(pull.transfer)


async def test_a_seeder_that_comes_late_is_found_by_asking_again(
    node: Node, published: Published
) -> None:
    late = Peer(node="seeder", address="127.0.3.1", port=17881)
    async with session(NODE) as own:
        with node.store.writing(node.volume) as target:
            pull = node.begin(own, target, (late,))
            fetching = asyncio.create_task(pull.fetch([node.source]))
            while node.source.reason is None:
                await pull.transfer.moved()
            async with seeding(published):
                async with asyncio.timeout(30):
                    await fetching
            await pull.conclude()
            await own.remove(pull.transfer)
    assert node.volume.path.read_bytes() == published.data


def test_a_resume_file_that_does_not_fit_counts_as_none(node: Node, published: Published) -> None:
    infohash = published.info.infohash
    path = node.resume_files._path(infohash)
    for content in (b"", b"{", b'{"v": 1}', b'{"infohash": "x", "pieces": "AAAA"}'):
        path.write_bytes(content)
        assert node.resume_files.load(infohash, published.info.pieces) is None
    assert replace(published.info, piece_bytes=PIECE_BYTES) == published.info
