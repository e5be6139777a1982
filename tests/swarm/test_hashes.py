"""Piece hashes asked from one peer: the layer that the seeder has, or one error."""

from __future__ import annotations

import asyncio
import os
import struct
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from pathlib import Path

import pytest

from distrib.bus.messages import Peer
from distrib.errors import NetworkError, TorrentMismatch
from distrib.swarm import hashes
from distrib.swarm.hashes import fetch_torrent
from distrib.swarm.pieces import coarser, piece_hashes
from distrib.swarm.torrent import make_torrent
from tests.pull.conftest import Published, seeding

KIB = 1024
Answer = Callable[[bytes], bytes]


def make(directory: Path, size_bytes: int, piece_bytes: int) -> Published:
    directory.mkdir()
    with (directory / "image.raw").open("wb") as file:
        file.write(os.urandom(min(size_bytes, 5 << 20)))
        file.truncate(size_bytes)
    out = directory / "image.torrent"
    info = make_torrent(directory / "image.raw", piece_bytes=piece_bytes, out=out)
    return Published(directory, info, out.read_bytes())


@pytest.mark.parametrize(
    ("size_bytes", "piece_bytes"),
    [
        (1000, 64 * KIB),
        (64 * KIB + 1, 64 * KIB),
        (5 * 64 * KIB + 7, 64 * KIB),
        (20 << 20, 16 * KIB),
        (200 << 20, 64 * KIB),
    ],
)
async def test_the_torrent_with_its_layer_comes_from_a_seeder(
    tmp_path: Path, size_bytes: int, piece_bytes: int
) -> None:
    published = make(tmp_path / "image", size_bytes, piece_bytes)
    async with seeding(published) as peer:
        torrent = await fetch_torrent(
            published.raw_info, published.info, peer.address, peer.port, own_address="127.0.3.2"
        )
    assert torrent == published.torrent


@asynccontextmanager
async def answering(answer: Answer) -> AsyncIterator[Peer]:
    """A peer that shakes hands, and answers each request for hashes as told."""

    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        try:
            writer.write(await reader.readexactly(68))
            while True:
                (length,) = struct.unpack(">I", await reader.readexactly(4))
                message = await reader.readexactly(length)
                if message[:1] == b"\x15":
                    writer.write(answer(message[1:]))
        except (EOFError, OSError):
            pass
        finally:
            writer.close()

    server = await asyncio.start_server(serve, "127.0.3.4", 17881)
    try:
        yield Peer(node="broken", address="127.0.3.4", port=17881)
    finally:
        server.close()


def lie(asked: bytes) -> bytes:
    """As many hashes as were asked for, none of them true."""
    (count,) = struct.unpack(">I", asked[40:44])
    return struct.pack(">IB", 49 + 32 * count, 22) + asked + os.urandom(32 * count)


@pytest.mark.parametrize(
    ("answer", "error"),
    [
        (lambda _: b"", NetworkError),
        (lambda asked: struct.pack(">IB", 49, 23) + asked, NetworkError),
        (lambda _: struct.pack(">I", 1 << 31), NetworkError),
        (lambda _: struct.pack(">IB", 1, 22), NetworkError),
        (lambda asked: struct.pack(">IB", 49, 22) + asked, NetworkError),
        (lie, TorrentMismatch),
    ],
    ids=["silence", "refusal", "endless message", "no fields", "no hashes", "lie"],
)
async def test_a_peer_that_answers_wrongly_is_one_error(
    tmp_path: Path, answer: Answer, error: type[Exception], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(hashes, "SILENCE_S", 0.2)
    published = make(tmp_path / "image", 1 << 20, 64 * KIB)
    async with answering(answer) as peer:
        with pytest.raises(error):
            await fetch_torrent(published.raw_info, published.info, peer.address, peer.port)


async def test_a_peer_without_the_torrent_is_one_error(tmp_path: Path) -> None:
    here = make(tmp_path / "here", 1 << 20, 64 * KIB)
    other = make(tmp_path / "other", 1 << 20, 64 * KIB)
    async with seeding(other) as peer:
        with pytest.raises(NetworkError, match=r"no piece hashes from 127\.0\.3\.1"):
            await fetch_torrent(here.raw_info, here.info, peer.address, peer.port)


@pytest.mark.parametrize("size_bytes", [64 * KIB * 5, 64 * KIB * 8 + 9, (3 << 20) + 70_000])
def test_hashes_of_larger_pieces_are_built_from_those_of_smaller_ones(
    tmp_path: Path, size_bytes: int
) -> None:
    fine = make(tmp_path / "fine", size_bytes, 64 * KIB)
    for piece_bytes in (64 * KIB, 128 * KIB, 256 * KIB):
        out = tmp_path / f"{piece_bytes}.torrent"
        coarse = make_torrent(fine.directory / "image.raw", piece_bytes=piece_bytes, out=out)
        built = coarser(
            piece_hashes(fine.torrent, fine.info),
            piece_bytes=64 * KIB,
            wanted_bytes=piece_bytes,
        )
        assert built == piece_hashes(out.read_bytes(), coarse)
