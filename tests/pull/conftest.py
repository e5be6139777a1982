"""A seeder's session and an image on loopback, shared by the stories about pulls."""

from __future__ import annotations

import os
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass
from pathlib import Path

import pytest

from distrib.bus.messages import Peer
from distrib.swarm.profile import lan_profile
from distrib.swarm.session import Backend, SwarmSession
from distrib.swarm.torrent import TorrentInfo, info_of, make_torrent

IMAGE_BYTES = 24 << 20
PIECE_BYTES = 64 << 10
SEEDER = "127.0.3.1"
NODE = "127.0.3.2"
PORT = 17881


@dataclass(frozen=True)
class Published:
    """An image with its torrent, in a directory of its own."""

    directory: Path
    info: TorrentInfo
    torrent: bytes

    @property
    def raw_info(self) -> bytes:
        return info_of(self.torrent)

    @property
    def data(self) -> bytes:
        return (self.directory / "image.raw").read_bytes()


@pytest.fixture(scope="session")
def published(tmp_path_factory: pytest.TempPathFactory) -> Published:
    directory = tmp_path_factory.mktemp("published")
    (directory / "image.raw").write_bytes(os.urandom(IMAGE_BYTES))
    out = directory / "image.torrent"
    info = make_torrent(directory / "image.raw", piece_bytes=PIECE_BYTES, out=out)
    return Published(directory, info, out.read_bytes())


@asynccontextmanager
async def session(address: str, backend: Backend = "pread") -> AsyncIterator[SwarmSession]:
    opened = SwarmSession(lan_profile(address=address, port=PORT), backend=backend)
    async with opened.running():
        yield opened


@asynccontextmanager
async def seeding(
    published: Published, *, address: str = SEEDER, upload_bps: int = 0
) -> AsyncIterator[Peer]:
    async with session(address) as seeder:
        transfer = seeder.add(published.info, published.torrent, published.directory, seed=True)
        transfer.limit(download_bps=0, upload_bps=upload_bps)
        yield Peer(node="seeder", address=address, port=PORT)
