"""One torrent in a session: the verified store of one image.

Everything in it passed its hash. Pieces come from peers (``connect``) or from anywhere else
(``offer``), and are served on at once.
"""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import Callable, Collection, Sequence

import libtorrent as lt

from distrib.errors import StorageFailed, TimedOut
from distrib.swarm.events import (
    Completed,
    HashFailed,
    PeerBanned,
    PeerDown,
    PeerSample,
    PeersSampled,
    PeerUp,
    PieceDone,
    Progress,
    StorageFault,
    TransferEvent,
)
from distrib.swarm.pieces import torrent_from_resume_data
from distrib.swarm.torrent import TorrentInfo

FLUSH_LIMIT_S = 60.0


class Transfer:
    """State of one torrent, kept by its session from alerts. Made by ``SwarmSession.add``."""

    def __init__(
        self,
        handle: lt.torrent_handle,
        info: TorrentInfo,
        have: Sequence[bool],
        *,
        unwanted: Collection[int] = (),
        limits: tuple[int, int] = (0, 0),
        forget: Callable[[Transfer, str], None] = lambda _, __: None,
    ) -> None:
        """``unwanted`` pieces, none of which is in ``have``, come by another way. ``limits`` are
        those that the handle has. ``forget`` has libtorrent drop a peer."""
        self.info = info
        self._forget = forget
        self._unwanted = frozenset(unwanted)
        self._wanted_bytes = info.size_bytes - sum(map(info.piece_size, self._unwanted))
        self.have = bytearray(have)
        # Of pieces that came all the same: somebody offered them.
        self._beyond_bytes = 0
        self.done_bytes = sum(info.piece_size(i) for i, held in enumerate(have) if held)
        self.rate_bps = 0
        self.upload_bps = 0
        self.fetched_bytes = 0
        self.wasted_bytes = 0
        self.uploaded_bytes = 0
        self.asked: set[tuple[str, int]] = set()
        self.peers: set[str] = set()
        self._connections: set[tuple[str, int]] = set()
        self._unsampled: set[tuple[str, int]] = set()
        self.caps = (0, 0)
        self._limits = limits
        self.samples: tuple[PeerSample, ...] = ()
        self.hash_failures: dict[str, int] = {}
        self.events: asyncio.Queue[TransferEvent] = asyncio.Queue()
        self._moved: list[asyncio.Future[None]] = []
        self._handle = handle
        self._done = asyncio.Event()
        self._offers: dict[int, asyncio.Future[bool]] = {}
        self._flushes: deque[asyncio.Future[None]] = deque()
        self._layers: list[asyncio.Future[bytes]] = []
        self.fault: StorageFault | None = None
        self.watched = False
        if self.is_complete:
            self._done.set()

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
        unwanted = self._unwanted
        return [i for i, held in enumerate(self.have) if not held and i not in unwanted]

    async def offer(self, index: int, data: bytes) -> bool:
        """Have ``data`` hashed and kept as piece ``index``; False when the hash does not hold.

        A piece whose hash is not known yet is hashed once a peer has given it: the wait is the
        caller's to bound."""
        # Whoever else offers it now may have wrong bytes, and must not answer for these.
        while (under_way := self._offers.get(index)) is not None:
            if await asyncio.shield(under_way):
                return True
        if self.have[index]:
            return True
        answer: asyncio.Future[bool] = asyncio.get_running_loop().create_future()
        self._offers[index] = answer
        # Without the flag, blocks that are left of a piece that failed are not written again.
        self._handle.add_piece(index, data, lt.add_piece_flags_t.overwrite_existing)
        return await asyncio.shield(answer)

    async def complete(self) -> None:
        """Return once nothing is missing."""
        await self._done.wait()

    async def moved(self) -> None:
        """Return at the next event."""
        waiter: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self._moved.append(waiter)
        await waiter

    # -- steering -------------------------------------------------------------------------------

    @property
    def is_complete(self) -> bool:
        """Whether nothing that is wanted is missing."""
        return self.done_bytes == self._wanted_bytes + self._beyond_bytes

    def connect(self, address: str, port: int) -> None:
        """Ask for a connection; repeated asking is harmless."""
        self.asked.add((address, port))
        self._handle.connect_peer((address, port))

    def leave(self, address: str) -> None:
        """End the connections with a peer; none is made by itself, a new ``connect`` is."""
        self.asked = {peer for peer in self.asked if peer[0] != address}
        self._forget(self, address)

    def limit(self, *, download_bps: int, upload_bps: int) -> None:
        """Cap the rates of this torrent, in bytes per second; 0 is no limit."""
        if self.caps == (download_bps, upload_bps):
            # Said again: what it may do at this moment is not to be undone.
            return
        self.caps = (download_bps, upload_bps)
        self.throttle(download_bps=download_bps, upload_bps=upload_bps)

    def throttle(self, *, download_bps: int, upload_bps: int) -> None:
        """What it may do at this moment, within its caps; 0 is no limit."""
        before, self._limits = self._limits, (download_bps, upload_bps)
        if before[0] != download_bps:
            self._handle.set_download_limit(download_bps)
        if before[1] != upload_bps:
            self._handle.set_upload_limit(upload_bps)

    async def flush(self) -> None:
        """Return once every verified piece has been handed to the kernel. Raises TimedOut."""
        answer: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self._flushes.append(answer)
        self._handle.flush_cache()
        try:
            await asyncio.wait_for(answer, FLUSH_LIMIT_S)
        except TimeoutError:
            raise TimedOut(
                f"torrent {self.infohash[:12]}: disk cache not flushed in {FLUSH_LIMIT_S:.0f} s",
                hint="the disk is too slow or hangs; see the kernel's log",
            ) from None

    async def count(self) -> None:
        """Bring the counters up to date; between two state updates they lag."""
        self.on_status(await asyncio.to_thread(self._handle.status))

    async def torrent_file(self) -> bytes:
        """The torrent with its piece layers. Raises TorrentMismatch while pieces are missing."""
        answer: asyncio.Future[bytes] = asyncio.get_running_loop().create_future()
        self._layers.append(answer)
        self._handle.save_resume_data(lt.save_resume_flags_t.save_info_dict)
        try:
            data = await asyncio.wait_for(answer, FLUSH_LIMIT_S)
        except TimeoutError:
            raise TimedOut(
                f"torrent {self.infohash[:12]}: no piece hashes in {FLUSH_LIMIT_S:.0f} s",
                hint="the disk is too slow or hangs; see the kernel's log",
            ) from None
        return await asyncio.to_thread(torrent_from_resume_data, data, self.info)

    # -- fed by the session ---------------------------------------------------------------------

    @property
    def handle(self) -> lt.torrent_handle:
        return self._handle

    @property
    def is_moving(self) -> bool:
        """Whether peers are worth a look: something flows, is waited for, or did just now."""
        if self.watched or self.rate_bps or self.upload_bps:
            return True
        return any(sample.download_bps or sample.upload_bps for sample in self.samples)

    def on_event(self, event: TransferEvent) -> None:
        """Take in one event and pass it on."""
        match event:
            case PieceDone(index):
                if self.have[index]:
                    return
                self._note(index, held=True)
                self._answer(index, held=True)
                if self.is_complete:
                    self._done.set()
                    self._tell(event)
                    event = Completed()
            case HashFailed(index):
                if self.have[index]:
                    self._note(index, held=False)
                    self._done.clear()
                self._answer(index, held=False)
            case PeerUp() | PeerDown() | PeersSampled():
                self._note_peers(event)
            case PeerBanned(address):
                self.hash_failures[address] = self.hash_failures.get(address, 0) + 1
            case StorageFault():
                # A failing first write posts hundreds of alerts before the pause takes effect.
                if self.fault is not None:
                    return
                self.fault = event
            case Completed() | Progress():
                pass
        self._tell(event)

    def on_status(self, status: lt.torrent_status) -> None:
        """Take in the counters of libtorrent's state update."""
        self.rate_bps = status.download_payload_rate
        self.upload_bps = status.upload_payload_rate
        self.fetched_bytes = status.total_payload_download
        self.uploaded_bytes = status.total_payload_upload
        self.wasted_bytes = status.total_failed_bytes + status.total_redundant_bytes
        self._tell(Progress())

    def on_flushed(self) -> None:
        # One answer for each asking, in order: a later one may cover pieces that this does not.
        if self._flushes:
            answer = self._flushes.popleft()
            if not answer.done():
                answer.set_result(None)

    def on_resume_data(self, data: bytes | None, why: str = "") -> None:
        for answer in self._layers:
            if answer.done():
                continue
            if data is None:
                answer.set_exception(StorageFailed(f"torrent {self.infohash[:12]}: {why}"))
            else:
                answer.set_result(data)
        self._layers.clear()

    def _note_peers(self, event: PeerUp | PeerDown | PeersSampled) -> None:
        # Of two connections with a peer one is closed: that is not the peer's end.
        match event:
            case PeerUp(address, port):
                self._connections.add((address, port))
                self._unsampled.add((address, port))
            case PeerDown(address, port, _):
                self._connections.discard((address, port))
                self._unsampled.discard((address, port))
            case PeersSampled(peers):
                self.samples = peers
                # Who has just come was no peer yet when libtorrent was asked.
                now, self._unsampled = self._unsampled, set()
                self._connections = now | {(peer.address, peer.port) for peer in peers}
        self.peers = {address for address, _ in self._connections}

    def _note(self, index: int, *, held: bool) -> None:
        size = self.info.piece_size(index) if held else -self.info.piece_size(index)
        self.have[index] = held
        self.done_bytes += size
        if index in self._unwanted:
            self._beyond_bytes += size

    def _tell(self, event: TransferEvent) -> None:
        # A transfer that seeds has no reader: only a pull empties the queue.
        if self.watched:
            self.events.put_nowait(event)
        for waiter in self._moved:
            if not waiter.done():
                waiter.set_result(None)
        self._moved.clear()

    def _answer(self, index: int, *, held: bool) -> None:
        answer = self._offers.pop(index, None)
        if answer is not None and not answer.done():
            answer.set_result(held)
