"""A node with a real cache and real sessions, on loopback, that pulls versions of one image."""

from __future__ import annotations

import asyncio
import hashlib
import os
from collections.abc import AsyncIterator, Iterable, Sequence
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import dataclass, field
from datetime import UTC, datetime
from pathlib import Path

from agent.cache.cache import Cache
from agent.cache.file import FileStore
from agent.cache.records import ImageVersion, VolumeRecord
from agent.cache.store import Store
from agent.pull.copying import DiskRate
from agent.pull.further import Means, SourceMaker
from agent.pull.parts import PullParts
from agent.pull.previous import PreviousVersions
from agent.pull.pulling import Plan
from agent.pull.resume import ResumeFiles
from agent.pull.running import RunningPull
from agent.pull.torrents import TorrentFiles
from distrib.bus.messages import Caps, Peer, State, Transport
from distrib.swarm.profile import lan_profile
from distrib.swarm.session import SwarmSession
from distrib.swarm.torrent import info_of, make_torrent, parse_info
from distrib.trust.imagelist import Image
from distrib.trust.siteimage import Origin, SiteImage
from tests.pull.conftest import NODE, PORT, Published, session

KIB, MIB = 1 << 10, 1 << 20
PIECE = 64 * KIB
UUID = "7cb7a2d5-0f0e-4f43-9a11-3a9f5e0f6c11"
SLOW_LINK_BPS = 20 * MIB
"""A link that any disk beats."""


def publish(directory: Path, data: bytes, *, piece_bytes: int = PIECE) -> Published:
    directory.mkdir()
    (directory / "image.raw").write_bytes(data)
    info = make_torrent(
        directory / "image.raw", piece_bytes=piece_bytes, out=directory / "image.torrent"
    )
    return Published(directory, info, (directory / "image.torrent").read_bytes())


def site_image(torrent: bytes, data: bytes, version: str) -> SiteImage:
    info = parse_info(info_of(torrent))
    sha512 = hashlib.sha512(data).hexdigest()
    return SiteImage(
        image=Image(UUID, version, "https://example.org/image", len(data), sha512),
        infohash=info.infohash,
        size_bytes=info.size_bytes,
        piece_bytes=info.piece_bytes,
        sha512=sha512,
        origin=Origin(UUID, "1", "/CN=endorser", "/CN=ca", sha512, len(data)),
    )


def edited(data: bytes, places: Iterable[int]) -> bytes:
    """The same with 4 KiB of other bytes at each of the places."""
    changed = bytearray(data)
    for at in places:
        changed[at : at + 4096] = os.urandom(4096)
    return bytes(changed)


@dataclass
class Node:
    """State directory, cache and what a pull needs; ``running`` opens the sessions."""

    directory: Path
    stores: Sequence[Store] = ()
    link_bps: int = SLOW_LINK_BPS
    boot_id: str = "this boot"
    makers: Sequence[SourceMaker] = ()
    sessions: dict[str, SwarmSession] = field(default_factory=dict)
    damaged: list[str] = field(default_factory=list)

    def __post_init__(self) -> None:
        self.stores = self.stores or (FileStore(self.directory / "cache", 512 * MIB),)
        self.cache = Cache(
            state_dir=self.directory / "state",
            stores=self.stores,
            clock=lambda: datetime.now(UTC),
        )
        self.cache.recover()
        self.torrents = TorrentFiles(self.directory / "torrents")
        self.resume = ResumeFiles(self.directory / "resume", boot_id=self.boot_id)
        self.disk = DiskRate(1e9)

    @asynccontextmanager
    async def running(self) -> AsyncIterator[None]:
        async with AsyncExitStack() as stack:
            posix = SwarmSession(lan_profile(address=NODE, port=PORT + 1), backend="posix")
            await stack.enter_async_context(posix.running())
            self.sessions = {
                "pread": await stack.enter_async_context(session(NODE)),
                "posix": posix,
            }
            yield

    def begin(
        self,
        published: Published,
        version: str,
        peers: tuple[Peer, ...],
        *,
        store: str = "file",
        transport: Transport = Transport.SWARM,
    ) -> RunningPull:
        """A pull that is ready to ``run``."""
        image = site_image(published.torrent, published.data, version)
        wanted = ImageVersion(
            infohash=image.infohash,
            identifier=UUID,
            version=version,
            sha512=image.sha512,
            size_bytes=image.size_bytes,
            piece_bytes=image.piece_bytes,
        )
        record = self.cache.desire(wanted, store=store, retry=True)
        assert record.state in (State.RESERVED, State.PULLING), record
        info = self.torrents.accept(published.raw_info, image)
        plan = Plan(peers)
        return RunningPull(
            image,
            info,
            published.raw_info,
            parts=self._parts(),
            plan=plan,
            caps=Caps(),
            means=Means(plan, transport),
        )

    async def pull(
        self, published: Published, version: str, peers: tuple[Peer, ...], *, store: str = "file"
    ) -> VolumeRecord:
        """Pull a version to its end and close what served it; returns its record."""
        running = self.begin(published, version, peers, store=store)
        transfer = await running.run()
        if transfer is not None:
            for one in self.sessions.values():
                await one.remove(transfer)
        return self.record(published)

    def record(self, published: Published) -> VolumeRecord:
        record = self.cache.record(published.info.infohash)
        assert record is not None
        return record

    def bytes_of(self, published: Published) -> bytes:
        volume = self.cache.volume(published.info.infohash)
        with volume.path.open("rb") as file:
            return file.read(published.info.size_bytes)

    def spoil(self, published: Published, at: int) -> None:
        """Flip a bit of a sealed volume, below the cache's notice."""
        path = self.cache.volume(published.info.infohash).path
        was = path.stat()
        path.chmod(0o600)
        with path.open("r+b") as file:
            file.seek(at)
            byte = file.read(1)[0]
            file.seek(at)
            file.write(bytes([byte ^ 1]))
        path.chmod(was.st_mode)
        os.utime(path, ns=(was.st_atime_ns, was.st_mtime_ns))

    def _parts(self) -> PullParts:
        async def on_damaged(infohash: str) -> None:
            self.damaged.append(infohash)
            await asyncio.to_thread(self.cache.mark_damaged, infohash, "bad pieces")

        return PullParts(
            cache=self.cache,
            sessions=self.sessions,  # type: ignore[arg-type]
            torrents=self.torrents,
            resume=self.resume,
            previous=PreviousVersions(
                self.cache, self.torrents, address=NODE, link_bps=self.link_bps, disk=self.disk
            ),
            on_parent_lost=lambda *_: None,
            on_damaged=on_damaged,
            makers=self.makers,
        )
