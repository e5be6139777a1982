"""The scrub: sealed volumes are read again, slowly, one at a time, and bad ones are handed on.

* One volume at a time, one piece at a time, within ``scrub.rate_bps``, in a thread whose I/O is of
  the idle class (ioprio_set(2); what the disk's scheduler makes of it is its own matter: bfq and
  mq-deadline do, none does not, so the rate is what counts).
* It rests while images are pulled: their writes and flushes come first.
* It is in nobody's way: nothing stays open between pieces, so an eviction waits for one piece at
  most, and the volume is looked at again before the next.
* Where it is, is on disk every ``SAVE_INTERVAL_S`` of reading: a restart goes on there.
* The first bad piece ends a pass: the repair reads the whole volume anyway.
"""

from __future__ import annotations

import asyncio
import contextlib
import ctypes
import platform
from collections.abc import Awaitable, Callable
from concurrent.futures import ThreadPoolExecutor
from datetime import datetime
from pathlib import Path
from threading import Lock
from typing import Final

import structlog

from agent.cache.cache import Cache
from agent.cache.records import VolumeRecord
from agent.pull.torrents import TorrentFiles
from agent.rereading import Rereading
from agent.scrub import Pace, Subject, due_at, next_subject
from agent.scrub_record import Scrubbed, ScrubRecord
from agent.settings import ScrubSettings
from distrib.bus.messages import State
from distrib.errors import DistribError
from distrib.swarm.pieces import piece_hashes
from distrib.swarm.torrent import TorrentInfo

log = structlog.get_logger(__name__)

LOOK_AGAIN_S: Final = 60.0
"""How often it is looked whether a volume is due, and whether pulls have ended."""
SAVE_INTERVAL_S: Final = 30.0

_DAY_S: Final = 86400.0
_IOPRIO_SET: Final = {"x86_64": 251, "aarch64": 30, "ppc64le": 273, "riscv64": 30}
_WHO_PROCESS: Final = 1
_IDLE_CLASS: Final = 3 << 13


class Scrubber:
    """``run`` reads again what is due. ``on_bad`` gets the record of a volume with a bad piece,
    and words for it."""

    def __init__(
        self,
        cache: Cache,
        torrents: TorrentFiles,
        state_dir: Path,
        *,
        settings: ScrubSettings,
        node: str,
        busy: Callable[[], bool],
        on_bad: Callable[[VolumeRecord, str], Awaitable[object]],
        clock: Callable[[], datetime],
        now_s: Callable[[], float] | None = None,
        sleep: Callable[[float], Awaitable[None]] = asyncio.sleep,
    ) -> None:
        """``busy``: whether images are being pulled. ``now_s`` gives seconds from anywhere (the
        loop's, unless given)."""
        self._cache = cache
        self._torrents = torrents
        self._record = ScrubRecord(state_dir / "scrub.json")
        self._settings = settings
        self._node = node
        self._busy = busy
        self._on_bad = on_bad
        self._clock = clock
        self._now_s = now_s or (lambda: asyncio.get_running_loop().time())
        self._sleep = sleep
        self._pace = Pace(settings.rate_bps)
        self._reading = Lock()
        self._gone: set[str] = set()
        self._current: str | None = None

    # What others ask ------------------------------------------------------------------------------

    def before_evict(self, infohash: str) -> None:
        """A volume is about to go: wait for the piece that is being read, and read no more of it.
        From any thread."""
        with self._reading:
            self._gone.add(infohash)

    def found_good(self, infohash: str) -> None:
        """All of a volume was read again by another. Raises StorageFailed."""
        self._record.good(infohash, self._clock())

    def status(self) -> dict[str, dict[str, object]]:
        """Of every usable volume: when all of it was found good, when it is due, and how far a
        pass is (None where none was begun)."""
        told: dict[str, dict[str, object]] = {}
        for record in self._sealed():
            subject = self._subject(record)
            due = due_at(subject, node=self._node, every_s=self._every_s)
            told[record.infohash] = {
                "good_at": _rfc3339(subject.good_at),
                "due_at": _rfc3339(due) if self._every_s else None,
                "bytes_read": subject.piece * record.piece_bytes if subject.piece else None,
                "reading": self._current == record.infohash,
            }
        return told

    # The task -------------------------------------------------------------------------------------

    async def run(self) -> None:
        """Read again what is due, until cancelled."""
        if not self._every_s:
            return
        with ThreadPoolExecutor(1, "scrub", initializer=_be_idle) as thread:
            while True:
                rest_s = LOOK_AGAIN_S
                try:
                    rest_s = min(rest_s, await self.look(thread))
                except DistribError as error:
                    log.warning("scrub-put-off", code=error.code, why=error.message)
                await self._sleep(rest_s)

    async def look(self, thread: ThreadPoolExecutor | None = None) -> float:
        """Read again all that is due now, one after another; seconds until the next is due."""
        passed: set[str] = set()
        while True:
            sealed = await asyncio.to_thread(self._sealed)
            self._record.keep({record.infohash for record in sealed})
            mine = {one.infohash: one for one in sealed if one.infohash not in passed}
            subject = next_subject(
                map(self._subject, mine.values()), node=self._node, every_s=self._every_s
            )
            if subject is None:
                return LOOK_AGAIN_S
            due = due_at(subject, node=self._node, every_s=self._every_s)
            left_s = (due - self._clock()).total_seconds()
            if not subject.piece and left_s > 0:
                return left_s
            passed.add(subject.infohash)
            await self._pass(mine[subject.infohash], thread)

    async def _pass(self, record: VolumeRecord, thread: ThreadPoolExecutor | None) -> None:
        known = await asyncio.to_thread(self._torrents.with_layers, record)
        if known is None:
            log.warning("not-scrubbed", image=record.image, why="no piece hashes here")
            return
        info, torrent = known
        with self._reading:
            # Before the volume is asked for: an eviction that comes later is seen.
            self._gone.discard(record.infohash)
        if not await asyncio.to_thread(self._usable, record.infohash):
            return
        volume = await asyncio.to_thread(self._cache.volume, record.infohash)
        rereading = Rereading(volume.path, piece_hashes(torrent, info), info)
        self._current = record.infohash
        try:
            await self._read(record, rereading, info, thread)
        finally:
            self._current = None
            rereading.close()

    async def _read(
        self,
        record: VolumeRecord,
        rereading: Rereading,
        info: TorrentInfo,
        thread: ThreadPoolExecutor | None,
    ) -> None:
        loop, infohash = asyncio.get_running_loop(), record.infohash
        place = self._record.of(infohash)
        piece = place.piece if place.piece < info.pieces else 0
        begun_at = place.begun_at if piece and place.begun_at else self._clock()
        saved_s = self._now_s()
        try:
            while piece < info.pieces:
                if self._busy():
                    await self._sleep(LOOK_AGAIN_S)
                    continue
                if not await asyncio.to_thread(self._usable, infohash):
                    return
                began_s = self._now_s()
                step = loop.run_in_executor(thread, self._step, rereading, infohash, piece)
                try:
                    good = await asyncio.shield(step)
                finally:
                    # A thread is not cancelled; the buffer is its own until it is done.
                    await asyncio.wait({step})
                if good is None:
                    return
                if not good:
                    self._record.forget(infohash)
                    await self._on_bad(record, f"piece {piece} of {info.pieces} is bad")
                    return
                piece += 1
                next_s = self._pace.took(info.piece_size(piece - 1), now_s=began_s)
                if self._now_s() - saved_s >= SAVE_INTERVAL_S:
                    saved_s = self._now_s()
                    self._note(infohash, place, piece, begun_at)
                await self._sleep(max(0.0, next_s - self._now_s()))
        except asyncio.CancelledError:
            with contextlib.suppress(DistribError):
                self._note(infohash, place, piece, begun_at)
            raise
        self._record.good(infohash, begun_at)
        log.info("scrubbed", image=record.image, bytes=info.size_bytes)

    def _note(self, infohash: str, place: Scrubbed, piece: int, begun_at: datetime) -> None:
        self._record.put(infohash, Scrubbed(place.good_at, piece, begun_at))

    def _step(self, rereading: Rereading, infohash: str, piece: int) -> bool | None:
        """Whether a piece is good; None where the volume is going, or has gone."""
        with self._reading:
            if infohash in self._gone:
                return None
            try:
                return rereading.is_good(piece)
            except FileNotFoundError:
                return None

    # Looking --------------------------------------------------------------------------------------

    @property
    def _every_s(self) -> float:
        return self._settings.every_days * _DAY_S

    def _sealed(self) -> list[VolumeRecord]:
        holdings = self._cache.snapshot().holdings
        return [
            one.record
            for one in holdings
            if one.record.state is State.READY and not one.record.damaged
        ]

    def _usable(self, infohash: str) -> bool:
        record = self._cache.record(infohash)
        return record is not None and record.state is State.READY and not record.damaged

    def _subject(self, record: VolumeRecord) -> Subject:
        place = self._record.of(record.infohash)
        return Subject(record.infohash, place.good_at or record.since, place.piece)


def _rfc3339(at: datetime) -> str:
    return at.isoformat(timespec="seconds").replace("+00:00", "Z")


def _be_idle() -> None:
    """This thread's I/O waits for everybody else's. Without it, it is as any other's."""
    number = _IOPRIO_SET.get(platform.machine())
    if number is not None:
        ctypes.CDLL(None, use_errno=True).syscall(number, _WHO_PROCESS, 0, _IDLE_CLASS)
