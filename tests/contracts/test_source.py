"""What every source of pieces must do, shown on each that there is."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable
from contextlib import AbstractAsyncContextManager, asynccontextmanager
from pathlib import Path

import pytest

from agent.cache.file import FileStore
from agent.pull.pulling import Plan
from agent.pull.source import PieceSink, Source
from agent.pull.swarm import SwarmSource
from distrib.errors import DistribError
from distrib.swarm.transfer import Transfer
from tests.pull.conftest import IMAGE_BYTES, NODE, Published, published, seeding, session

__all__ = ["published"]

SourceFor = Callable[[Published, Transfer], AbstractAsyncContextManager[Source]]


@asynccontextmanager
async def swarm(published: Published, transfer: Transfer) -> AsyncIterator[Source]:
    async with seeding(published) as seeder:
        yield SwarmSource(transfer, Plan((seeder,)))


@pytest.fixture(params=[swarm], ids=lambda maker: maker.__name__)
def source_for(request: pytest.FixtureRequest) -> SourceFor:
    maker: SourceFor = request.param
    return maker


@pytest.fixture
async def transfer(tmp_path: Path, published: Published) -> AsyncIterator[Transfer]:
    store = FileStore(tmp_path, 2 * IMAGE_BYTES)
    volume = store.reserve(published.info.infohash, IMAGE_BYTES)
    async with session(NODE) as own:
        with store.writing(volume) as target:
            opened = own.add(published.info, published.raw_info, target.directory)
            yield opened
            await own.remove(opened)


async def test_it_brings_every_piece(
    source_for: SourceFor, published: Published, transfer: Transfer
) -> None:
    assert isinstance(transfer, PieceSink)
    async with source_for(published, transfer) as source:
        assert isinstance(source, Source)
        assert source.name
        async with asyncio.timeout(60):
            await source.bring(transfer)
    assert transfer.missing() == []


async def test_it_ends_when_another_source_brought_the_rest(
    source_for: SourceFor, published: Published, transfer: Transfer
) -> None:
    data, size = published.data, published.info.piece_bytes
    async with source_for(published, transfer) as source:
        bringing = asyncio.create_task(source.bring(transfer))
        index = published.info.pieces - 1
        async with asyncio.timeout(60):
            assert await transfer.offer(index, data[index * size :])
            await bringing
    assert transfer.is_complete


async def test_it_lets_go_when_it_is_cancelled(
    source_for: SourceFor, published: Published, transfer: Transfer
) -> None:
    async with source_for(published, transfer) as source:
        bringing = asyncio.create_task(source.bring(transfer))
        await transfer.moved()
        bringing.cancel()
        with pytest.raises(asyncio.CancelledError):
            await bringing


async def test_a_piece_that_is_not_the_right_one_is_not_kept(
    published: Published, transfer: Transfer
) -> None:
    async with seeding(published) as seeder:
        transfer.connect(seeder.address, seeder.port)
        while transfer.done_bytes == 0:
            await transfer.moved()
        # A hash is known now; the last piece comes last.
        index = transfer.missing()[-1]
        wrong = bytes(published.info.piece_size(index))
        async with asyncio.timeout(60):
            kept = await transfer.offer(index, wrong)
            await transfer.complete()
    assert not kept or transfer.is_complete
    assert issubclass(DistribError, Exception)
