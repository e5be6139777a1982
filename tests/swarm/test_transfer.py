"""A transfer between two real sessions: what it ends with is what it came from."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from distrib.swarm.torrent import info_of, make_torrent
from tests.pull.conftest import NODE, Published, seeding, session

KIB = 1024


@pytest.mark.parametrize(
    ("size_bytes", "piece_bytes"),
    [
        (1000, 64 * KIB),
        (16 * KIB, 16 * KIB),
        (16 * KIB + 1, 16 * KIB),
        (3 * 64 * KIB + 7, 64 * KIB),
        (5 << 20, 256 * KIB),
        (8 << 20, 64 * KIB),
    ],
)
async def test_the_torrent_of_a_finished_download_is_the_one_it_came_from(
    tmp_path: Path, size_bytes: int, piece_bytes: int
) -> None:
    (tmp_path / "image.raw").write_bytes(os.urandom(size_bytes))
    out = tmp_path / "image.torrent"
    info = make_torrent(tmp_path / "image.raw", piece_bytes=piece_bytes, out=out)
    published = Published(tmp_path, info, out.read_bytes())
    target = tmp_path / "node"
    target.mkdir()
    (target / "image.raw").write_bytes(bytes(size_bytes))
    async with seeding(published) as seeder, session(NODE) as own:
        transfer = own.add(info, info_of(published.torrent), target)
        transfer.connect(seeder.address, seeder.port)
        await transfer.complete()
        await transfer.flush()
        torrent = await transfer.torrent_file()
        await own.remove(transfer)
    assert torrent == published.torrent
    assert (target / "image.raw").read_bytes() == published.data
