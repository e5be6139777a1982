"""The libtorrent adapter: one session on one port with one disk backend.

libtorrent runs its own network and disk threads. Its alerts are woken up through a pipe that the
event loop watches, and turned into events of the transfers before the next ``pop_alerts``; no call
that waits for the network thread is made from the loop while data flows.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
from collections.abc import AsyncIterator, Callable, Collection, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, Literal

import libtorrent as lt
import structlog

from distrib.errors import NodeError, OperatorError, TorrentMismatch
from distrib.swarm.alerts import CATEGORIES, EVENTS
from distrib.swarm.classes import (
    Crowded,
    Tier,
    Zones,
    apply_classes,
    apply_zones,
    limit_class,
    make_classes,
    make_crowded,
)
from distrib.swarm.crowding import SPARE, Crowding, allow_files, share_percent
from distrib.swarm.events import (
    PeerBanned,
    PeersSampled,
)
from distrib.swarm.sampling import peers_of
from distrib.swarm.torrent import TorrentInfo, document_of
from distrib.swarm.transfer import Transfer

log = structlog.get_logger(__name__)

Backend = Literal["pread", "posix"]

STATUS_INTERVAL_S = 0.5
CROWD_INTERVAL_S = 1.0

LIFT_BAN_S = 2.0
"""libtorrent bans for good; but who sent a bad block may have been a job that shares the address of
an agent as good as any."""

_CONNECTS_AS_TOLD: dict[str, str | int | bool] = {
    # libtorrent dials by itself whom it knows: who was left would be back after a second, and a
    # chain would become a mesh. Who fetches dials again in time (agent/pull/machine.py).
    "min_reconnect_time": 60,
    "seeding_outgoing_connections": False,
    # A node that fetches stripes has two sessions on its address, and may ask both from one peer.
    "allow_multiple_connections_per_ip": True,
}

_ORDINARY = 4
"""libtorrent's priority of a piece that nobody said anything about."""


class SwarmSession:
    """Transfers of one process through one listening port.

    ``profile`` is libtorrent's settings (``distrib.swarm.profile.lan_profile``); ``backend``
    ``posix`` is the one that can write into block devices, ``pread`` the fast one for files.
    """

    def __init__(self, profile: dict[str, str | int | bool], *, backend: Backend) -> None:
        self.backend = backend
        self._profile = profile | _CONNECTS_AS_TOLD
        self._session: lt.session | None = None
        self._transfers: dict[str, Transfer] = {}
        self._removals: dict[str, asyncio.Event] = {}
        self._listening: asyncio.Future[int] | None = None
        self._classes: dict[Tier, int] = {}
        self._crowded = Crowded(0)
        # What a torrent may do from its first byte, by info-hash: download, upload; 0: no limit.
        self.first_limits_bps: Callable[[str], tuple[int, int]] = lambda _: (0, 0)
        self._tier_limits: dict[Tier, tuple[int, int]] = {}
        self._zones: Zones | None = None
        self._banned: set[str] = set()

    @contextlib.asynccontextmanager
    async def running(self) -> AsyncIterator[int]:
        """Listen, and give the port. Raises OperatorError when the address cannot be had."""
        loop = asyncio.get_running_loop()
        read_fd, write_fd = os.pipe2(os.O_NONBLOCK | os.O_CLOEXEC)
        params = lt.session_params()
        connections = int(self._profile.get("connections_limit", 200))
        settings: Any = self._profile | {
            "alert_mask": CATEGORIES,
            "connections_limit": connections + SPARE,
        }
        params.settings = settings
        params.disk_io_constructor = f"{self.backend}_disk_io_constructor"
        self._listening = loop.create_future()
        self._session = session = lt.session(params)
        self._classes = make_classes(session)
        self._crowded = make_crowded(session, share_percent=share_percent(connections))
        allow_files()
        self.admit(self._zones)
        session.set_alert_fd(write_fd)
        loop.add_reader(read_fd, self._woken, read_fd)
        self._woken(read_fd)
        tasks = [asyncio.create_task(self._poll_status(), name=f"swarm status {self.backend}")]
        try:
            port = await asyncio.wait_for(self._listening, 10)
            watching = self._watch_connections(port)
            tasks.append(asyncio.create_task(watching, name=f"swarm connections {self.backend}"))
            yield port
        finally:
            for task in tasks:
                task.cancel()
            await asyncio.gather(*tasks, return_exceptions=True)
            # A session that closes with torrents in it first waits for seconds on each.
            for transfer in list(self._transfers.values()):
                await self.remove(transfer)
            loop.remove_reader(read_fd)
            self._session = None
            last = [session]
            del session
            # The destructor waits for the disk threads; the pipe must outlive it.
            await asyncio.to_thread(last.clear)
            os.close(read_fd)
            os.close(write_fd)

    def add(
        self,
        info: TorrentInfo,
        source: bytes,
        directory: Path,
        *,
        have: Sequence[bool] | None = None,
        seed: bool = False,
        sequential: bool = True,
        unwanted: Collection[int] = (),
        peers: Collection[tuple[str, int]] = (),
    ) -> Transfer:
        """Open a torrent whose ``image.raw`` stands in ``directory``.

        ``source`` is a bencoded info dictionary, or a torrent file with piece layers. ``have``
        are the pieces that are known to be on disk (none: a fresh volume, nothing is hashed
        first); ``seed`` trusts all of it. ``unwanted`` pieces are not asked for. ``peers``,
        addresses and ports, are connected to at once; with ``Transfer.connect`` it takes up to a
        second.
        """
        if info.infohash in self._transfers:
            raise NodeError(f"torrent {info.infohash[:12]} is open already", hint="a bug")
        document = source if source.startswith(b"d4:info") else document_of(source)
        params = _parsed(document, info)
        params.save_path = str(directory)
        flags = lt.torrent_flags.no_verify_files | lt.torrent_flags.update_subscribe
        if seed:
            # Not libtorrent's seed mode: it hashes each piece before it is sent, and looks through
            # all that waits at every request.
            have = [True] * info.pieces
        if have is not None and any(have):
            params.have_pieces = list(have)
        if sequential and not seed:
            flags |= lt.torrent_flags.sequential_download
        params.flags = flags | lt.torrent_flags.apply_ip_filter
        params.peers = list(peers)
        limits = self.first_limits_bps(info.infohash)
        params.download_limit, params.upload_limit = limits
        if unwanted:
            priorities = [_ORDINARY] * info.pieces
            for index in unwanted:
                priorities[index] = 0
            params.piece_priorities = priorities
        try:
            handle = self._open().add_torrent(params)
        except RuntimeError as error:
            raise _damaged(info, error) from None
        held = have or [False] * info.pieces
        transfer = Transfer(
            handle, info, held, unwanted=unwanted, limits=limits, forget=self._forget
        )
        transfer.asked |= set(peers)
        self._transfers[info.infohash] = transfer
        return transfer

    @property
    def is_running(self) -> bool:
        """Whether it listens, or is about to."""
        return self._session is not None

    @property
    def transfers(self) -> list[Transfer]:
        """The torrents that are open."""
        return list(self._transfers.values())

    def admit(self, zones: Zones | None) -> None:
        """Serve and connect to who is in ``zones`` from now on, and nobody else; None: everybody.

        Also before it is running."""
        self._zones = zones
        if self._session is not None:
            apply_zones(self._session, self._classes, zones, self._crowded)

    def limit_tier(self, tier: Tier, *, download_bps: int, upload_bps: int) -> None:
        """Cap what this session exchanges with all peers of a tier, bytes per second; 0: none."""
        if self._tier_limits.get(tier, (0, 0)) == (download_bps, upload_bps):
            return
        self._tier_limits[tier] = (download_bps, upload_bps)
        limit_class(
            self._open(),
            tier,
            self._classes[tier],
            download_bps=download_bps,
            upload_bps=upload_bps,
        )

    def adjust(self, settings: dict[str, str | int | bool]) -> None:
        """Change settings of libtorrent while it runs."""
        changed: Any = settings
        self._open().apply_settings(changed)

    async def ask_peers(self) -> None:
        """Bring ``samples`` of all transfers with peers up to date."""
        await self._sample([one for one in self._transfers.values() if one.peers])

    async def _sample(self, transfers: Sequence[Transfer]) -> None:
        """libtorrent's alert for this cannot be read from Python: it is asked in a thread."""
        handles = [transfer.handle for transfer in transfers]
        for transfer, peers in zip(
            transfers, await asyncio.to_thread(peers_of, handles), strict=True
        ):
            if self._transfers.get(transfer.infohash) is transfer:
                transfer.on_event(PeersSampled(peers))

    async def remove(self, transfer: Transfer) -> None:
        """Close a torrent; its files stay. Returns once libtorrent has let go of them."""
        if self._transfers.get(transfer.infohash) is not transfer:
            return
        gone = self._removals[transfer.infohash] = asyncio.Event()
        self._open().remove_torrent(transfer.handle)
        try:
            await asyncio.wait_for(gone.wait(), 30)
        except TimeoutError:
            log.warning("torrent-slow-to-close", infohash=transfer.infohash)
        finally:
            self._removals.pop(transfer.infohash, None)
            self._transfers.pop(transfer.infohash, None)

    def _forget(self, transfer: Transfer, address: str) -> None:
        """Have libtorrent close a peer's connections and strike it off its list.

        There is no call for it: a filter that blocks the address for this torrent does it, and is
        taken back at once. Other torrents are left out of it; libtorrent does all that in order."""
        session, applies = self._open(), lt.torrent_flags.apply_ip_filter
        inforce, blocking = session.get_ip_filter(), session.get_ip_filter()
        blocking.add_rule(address, address, 1)
        others = [other.handle for other in self._transfers.values() if other is not transfer]
        for handle in others:
            handle.unset_flags(applies)
        session.set_ip_filter(blocking)
        session.set_ip_filter(inforce)
        for handle in others:
            handle.set_flags(applies)

    def _open(self) -> lt.session:
        if self._session is None:
            raise NodeError("the swarm session is closed", hint="a bug")
        return self._session

    async def _poll_status(self) -> None:
        while True:
            await asyncio.sleep(STATUS_INTERVAL_S)
            self._open().post_torrent_updates(0)
            await self._sample([one for one in self._transfers.values() if one.is_moving])

    async def _watch_connections(self, port: int) -> None:
        """No address holds so many that none are left for others."""
        address = str(self._profile["listen_interfaces"]).rpartition(":")[0].strip("[]")
        crowding = Crowding(address, port)
        while True:
            await asyncio.sleep(CROWD_INTERVAL_S)
            if crowding.crowded:
                # Who has just come, and carries something by now, is to be seen as that.
                await self.ask_peers()
            moved = {
                (one.address, one.port): one.sent_bytes + one.received_bytes
                for transfer in self._transfers.values()
                for one in transfer.samples
            }
            torrents = len(self._transfers)
            if await asyncio.to_thread(crowding.look, moved, torrents=torrents):
                self._crowded = replace(self._crowded, addresses=tuple(crowding.crowded))
                apply_classes(self._open(), self._classes, self._zones, self._crowded)

    def _woken(self, fd: int) -> None:
        with contextlib.suppress(BlockingIOError):
            os.read(fd, 4096)
        if self._session is None:
            return
        for alert in self._session.pop_alerts():
            self._on_alert(alert)

    def _on_alert(self, alert: lt.alert) -> None:
        match alert:
            case lt.state_update_alert():
                for status in alert.status:
                    transfer = self._transfers.get(str(status.info_hashes.v2))
                    if transfer is not None:
                        transfer.on_status(status)
            case lt.listen_succeeded_alert():
                if self._listening is not None and not self._listening.done():
                    self._listening.set_result(alert.port)
            case lt.listen_failed_alert():
                self._on_listen_failed(alert.message())
            case lt.torrent_removed_alert():
                gone = self._removals.get(str(alert.info_hashes.v2))
                if gone is not None:
                    gone.set()
            case lt.alerts_dropped_alert():
                log.warning("swarm-alerts-dropped", why=alert.message())
            case lt.torrent_alert():
                self._on_torrent_alert(alert)

    def _lift_later(self, address: str) -> None:
        if address not in self._banned:
            self._banned.add(address)
            asyncio.get_running_loop().call_later(LIFT_BAN_S, self._lift, address)

    def _lift(self, address: str) -> None:
        """Have the ban of an address forgotten, where nobody is connected there as it is."""
        self._banned.discard(address)
        if self._session is None:
            return
        for transfer in self._transfers.values():
            if address in transfer.peers:
                continue
            again = [peer for peer in transfer.asked if peer[0] == address]
            transfer.leave(address)
            for peer in again:
                transfer.connect(*peer)

    def _on_listen_failed(self, message: str) -> None:
        if self._listening is not None and not self._listening.done():
            self._listening.set_exception(
                OperatorError(
                    f"swarm: cannot listen on {self._profile['listen_interfaces']}: {message}",
                    hint="another process has the port, or the address is not this host's",
                )
            )

    def _on_torrent_alert(self, alert: lt.torrent_alert) -> None:
        transfer = self._transfers.get(str(alert.handle.info_hashes().v2))
        if transfer is None:
            return
        match alert:
            case lt.cache_flushed_alert():
                transfer.on_flushed()
            case lt.save_resume_data_alert():
                transfer.on_resume_data(lt.write_resume_data_buf(alert.params))
            case lt.save_resume_data_failed_alert():
                transfer.on_resume_data(None, alert.message())
            case lt.peer_ban_alert():
                transfer.on_event(PeerBanned(alert.endpoint[0]))
                self._lift_later(alert.endpoint[0])
            case _:
                make = EVENTS.get(type(alert))
                if make is not None:
                    transfer.on_event(make(alert))


def _parsed(document: bytes, info: TorrentInfo) -> lt.add_torrent_params:
    try:
        return lt.load_torrent_buffer(document)
    except RuntimeError as error:
        raise _damaged(info, error) from None


def _damaged(info: TorrentInfo, error: RuntimeError) -> TorrentMismatch:
    return TorrentMismatch(
        f"torrent {info.infohash[:12]}: {error}", hint="its file is damaged: publish it again"
    )
