"""One verified store in two torrents: each stripe of an image comes in a torrent of its own.

libtorrent asks every peer for everything that the peer has; only a torrent that wants nothing else
keeps a stripe to its parent (docs/decisions/0024-relay-shapes.md, 0026-stripes.md). Both torrents,
in two sessions on two ports, write into the same volume, each its own pieces; what is verified
is the bits of both together.
"""

from __future__ import annotations

import asyncio
from collections.abc import Iterable, Mapping, Sequence
from typing import Final

from distrib.errors import TorrentMismatch
from distrib.swarm.events import PeerSample, StorageFault
from distrib.swarm.session import Backend, SwarmSession
from distrib.swarm.torrent import TorrentInfo
from distrib.swarm.transfer import Transfer

STRIPES: Final = 2


def unwanted_of(
    stripe: int, pieces: int, have: Sequence[bool] | None, others: Iterable[int]
) -> list[int]:
    """The missing pieces that a stripe's torrent does not fetch: the other stripe's, and
    ``others``, which come by another way."""
    elsewhere = set(others)
    return [
        index
        for index in range(pieces)
        if not (have and have[index]) and (index % STRIPES != stripe or index in elsewhere)
    ]


class Striped:
    """Two transfers of one image as one: what a ``Pull`` needs of a ``Transfer``."""

    def __init__(self, parts: Sequence[Transfer]) -> None:
        """``parts[i]`` fetches stripe i."""
        self.parts = tuple(parts)
        both = (i for i, held in enumerate(zip(*(p.have for p in parts), strict=True)) if all(held))
        self._both_bytes = sum(map(self.info.piece_size, both))

    @property
    def info(self) -> TorrentInfo:
        return self.parts[0].info

    @property
    def have(self) -> bytearray:
        """The bits of both, a byte a piece."""
        one, other = (int.from_bytes(part.have) for part in self.parts)
        return bytearray((one | other).to_bytes(self.info.pieces))

    @property
    def done_bytes(self) -> int:
        # Neither fetches what the other does: in both is what both were begun with.
        return sum(part.done_bytes for part in self.parts) - self._both_bytes

    @property
    def rate_bps(self) -> int:
        return sum(part.rate_bps for part in self.parts)

    @property
    def upload_bps(self) -> int:
        return sum(part.upload_bps for part in self.parts)

    @property
    def fetched_bytes(self) -> int:
        return sum(part.fetched_bytes for part in self.parts)

    @property
    def wasted_bytes(self) -> int:
        return sum(part.wasted_bytes for part in self.parts)

    @property
    def uploaded_bytes(self) -> int:
        return sum(part.uploaded_bytes for part in self.parts)

    @property
    def peers(self) -> set[str]:
        return set().union(*(part.peers for part in self.parts))

    @property
    def samples(self) -> tuple[PeerSample, ...]:
        return tuple(sample for part in self.parts for sample in part.samples)

    @property
    def hash_failures(self) -> dict[str, int]:
        failures: dict[str, int] = {}
        for part in self.parts:
            for address, count in part.hash_failures.items():
                failures[address] = failures.get(address, 0) + count
        return failures

    @property
    def fault(self) -> StorageFault | None:
        return next((part.fault for part in self.parts if part.fault), None)

    # -- the PieceSink protocol -----------------------------------------------------------------

    @property
    def infohash(self) -> str:
        return self.info.infohash

    @property
    def piece_bytes(self) -> int:
        return self.info.piece_bytes

    @property
    def size_bytes(self) -> int:
        return self.info.size_bytes

    def missing(self) -> list[int]:
        """Indices of the wanted pieces that are not verified yet, ascending."""
        return sorted(index for part in self.parts for index in part.missing())

    async def offer(self, index: int, data: bytes) -> bool:
        """See ``Transfer.offer``; the stripe's torrent takes it."""
        return await self.parts[index % STRIPES].offer(index, data)

    async def complete(self) -> None:
        """Return once nothing is missing."""
        await asyncio.gather(*(part.complete() for part in self.parts))

    async def moved(self) -> None:
        """Return at the next event."""
        waits = [asyncio.create_task(part.moved()) for part in self.parts]
        try:
            await asyncio.wait(waits, return_when=asyncio.FIRST_COMPLETED)
        finally:
            for wait in waits:
                wait.cancel()

    # -- steering -------------------------------------------------------------------------------

    def limit(self, *, download_bps: int, upload_bps: int) -> None:
        """Cap both together, in bytes per second; 0 is no limit."""
        for part in self.parts:
            part.limit(download_bps=_half(download_bps), upload_bps=_half(upload_bps))

    async def flush(self) -> None:
        """Return once every verified piece has been handed to the kernel. Raises TimedOut."""
        await asyncio.gather(*(part.flush() for part in self.parts))

    async def count(self) -> None:
        """Bring the counters up to date."""
        await asyncio.gather(*(part.count() for part in self.parts))

    async def torrent_file(self) -> bytes:
        """The torrent with its piece layers. Raises TorrentMismatch where neither has them all:
        hashes come in runs of 512, whatever pieces are wanted, so that they mostly have."""
        try:
            return await self.parts[0].torrent_file()
        except TorrentMismatch:
            return await self.parts[1].torrent_file()


Store = Transfer | Striped
"""The verified store of an image that is pulled or served."""


def second_of(backend: Backend) -> str:
    """The key of the session that fetches and serves stripe 1 of volumes of a kind."""
    return f"{backend}-2"


def parts_of(store: Store) -> tuple[Transfer, ...]:
    """The transfers that a store is made of."""
    return store.parts if isinstance(store, Striped) else (store,)


async def close(store: Store, sessions: Mapping[str, SwarmSession]) -> None:
    """Close the torrents of a store, in whichever sessions they are."""
    for transfer in parts_of(store):
        for session in sessions.values():
            await session.remove(transfer)


def _half(bps: int) -> int:
    return max(bps // STRIPES, 1) if bps else 0
