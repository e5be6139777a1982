"""The server's end of the pieces protocol: what a key's forced command runs.

Three threads: one reads requests, one follows what else becomes readable, this one writes. What may
be read, and where it is, is the business of a ``Shelf``: the protocol has no names but an image's
info-hash.
"""

from __future__ import annotations

import contextlib
import os
import select
import threading
import time
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from typing import Final, Protocol

from distrib.errors import DistribError, MessageInvalid, StorageFailed, TimedOut
from distrib.tsunami import protocol
from distrib.tsunami.protocol import (
    Absent,
    AskHashes,
    Drop,
    Failed,
    Frames,
    Get,
    Hashes,
    Have,
    Hello,
    Idle,
    Open,
    Opened,
    Request,
    Subscribe,
    Welcome,
)

RANGES_MAX: Final = 1024
READ_BYTES: Final = 1 << 16


@dataclass(frozen=True)
class Lent:
    """An image that may be read: ``fd`` is open for reading, and closed by who borrowed it.

    ``updates`` yields ranges of pieces that become readable, and raises a DistribError when the
    image may not be read any more; it may block, and ends when ``close`` is called. ``hashes``
    gives those of a range of pieces, or raises a DistribError."""

    fd: int
    size_bytes: int
    piece_bytes: int
    have: bytes
    updates: Callable[[], Iterator[Iterable[tuple[int, int]]]]
    hashes: Callable[[int, int], bytes]
    close: Callable[[], None]


class Shelf(Protocol):
    """Where images are."""

    def lend(self, infohash: str) -> Lent:
        """Raises NotFound, NotReady, Revoked or another DistribError."""
        ...


@dataclass(frozen=True)
class Patience:
    """Seconds: ``idle_s`` between two signs of life, ``stalled_s`` in which a client takes
    nothing, ``unused_s`` in which it asks for nothing and nothing is due."""

    idle_s: float = 5.0
    stalled_s: float = 60.0
    unused_s: float = 120.0


class _Wants:
    """What the client asked for and has not got. Guarded by the session's condition."""

    def __init__(self, pieces: int, have: bytearray) -> None:
        self.pieces = pieces
        self.have = have
        self.wanted = bytearray(pieces)
        # In this session. Much of it may be on its way still when a subscription is renewed.
        self.sent = bytearray(pieces)
        self.asked: deque[tuple[int, int]] = deque()
        self.ready: deque[int] = deque()
        self.news: deque[tuple[int, int]] = deque()
        self.hashes: deque[tuple[int, int]] = deque()

    def ask_hashes(self, first: int, count: int) -> None:
        protocol.check_range(first, count, self.pieces)
        self.hashes.append((first, min(count, protocol.HASHES_MAX)))

    def subscribe(self, raw: bytes) -> None:
        asked = protocol.flags(raw, self.pieces)
        self.wanted = bytearray(want > sent for want, sent in zip(asked, self.sent, strict=True))
        self.ready = deque(i for i, want in enumerate(self.wanted) if want and self.have[i])

    def get(self, first: int, count: int) -> None:
        protocol.check_range(first, count, self.pieces)
        self.asked.append((first, count))

    def drop(self, first: int, count: int) -> None:
        protocol.check_range(first, count, self.pieces)
        self.wanted[first : first + count] = bytes(count)
        self.asked = deque(rest for one in self.asked for rest in _without(one, first, count))

    def came(self, first: int, count: int) -> None:
        protocol.check_range(first, count, self.pieces)
        for index in range(first, first + count):
            if not self.have[index]:
                self.have[index] = 1
                if self.wanted[index]:
                    self.ready.append(index)
                else:
                    self.news.append((index, 1))

    @property
    def waiting(self) -> int:
        """Ranges that wait for their answer."""
        return len(self.asked) + len(self.hashes)

    def next(self) -> int | Absent | Have | AskHashes | None:
        """A piece to send, or what to tell."""
        if self.hashes:
            return AskHashes(*self.hashes.popleft())
        if self.asked:
            first, count = self.asked.popleft()
            held = bool(self.have[first])
            run = 1
            while not held and run < count and not self.have[first + run]:
                run += 1
            if run < count:
                self.asked.appendleft((first + run, count - run))
            return self._going(first) if held else Absent(first, run)
        if self.news:
            first, count = self.news.popleft()
            while self.news and self.news[0][0] == first + count:
                count += self.news.popleft()[1]
            return Have(first, count)
        while self.ready:
            index = self.ready.popleft()
            if self.wanted[index]:
                return self._going(index)
        return None

    def _going(self, index: int) -> int:
        self.wanted[index], self.sent[index] = 0, 1
        return index

    @property
    def expects_more(self) -> bool:
        return 1 in self.wanted


class PieceSession:
    """One client's session, from its first byte to its last. ``run`` blocks."""

    def __init__(
        self, requests: int, replies: int, shelf: Shelf, *, patience: Patience | None = None
    ) -> None:
        """``requests`` and ``replies`` are open descriptors; they stay open."""
        self._requests = requests
        self._replies = replies
        self._shelf = shelf
        self._patience = patience or Patience()
        self._frames = Frames(max_bytes=protocol.REQUEST_MAX_BYTES)
        self._turn = threading.Condition()
        self._over: DistribError | None = None
        self._ended = False
        self._used_s = time.monotonic()

    def run(self) -> DistribError | None:
        """Serve until the client goes; what it was told, when the session ended in an error."""
        os.set_blocking(self._replies, False)
        try:
            self._serve()
        except (BrokenPipeError, ConnectionError):
            return None
        except DistribError as error:
            with contextlib.suppress(OSError, DistribError):
                self._write(protocol.encode(Failed(error.code, error.message)))
            return error
        return None

    # -- the client -------------------------------------------------------------------------------

    def _serve(self) -> None:
        requests = self._read_requests()
        hello = next(requests, None)
        if hello is None:
            return
        if not isinstance(hello, Hello):
            raise MessageInvalid("pieces over SSH: HELLO comes first", hint="see tsunami.md")
        self._write(protocol.encode(Welcome(min(hello.version, protocol.VERSION))))
        opening = next(requests, None)
        if opening is None:
            return
        if not isinstance(opening, Open):
            raise MessageInvalid("pieces over SSH: OPEN comes second", hint="see tsunami.md")
        lent = self._shelf.lend(opening.infohash)
        opened = Opened(lent.size_bytes, lent.piece_bytes, lent.have)
        wants = _Wants(opened.pieces, protocol.flags(lent.have, opened.pieces))
        threads = [
            threading.Thread(target=self._take, args=(requests, wants), daemon=True),
            threading.Thread(target=self._follow, args=(lent, wants), daemon=True),
        ]
        try:
            self._write(protocol.encode(opened))
            for thread in threads:
                thread.start()
            self._send(lent, wants)
        finally:
            lent.close()
            os.close(lent.fd)

    def _read_requests(self) -> Iterator[Request]:
        while data := self._read():
            for kind, body in self._frames.feed(data):
                yield protocol.request(kind, body)
        if not self._frames.is_between:
            raise MessageInvalid("pieces over SSH: ends within a request", hint="see tsunami.md")

    def _read(self) -> bytes:
        # sshd may give one socket for both ways: then this one does not block either.
        waiting = select.poll()
        waiting.register(self._requests, select.POLLIN)
        while True:
            try:
                return os.read(self._requests, READ_BYTES)
            except BlockingIOError:
                waiting.poll()

    def _take(self, requests: Iterator[Request], wants: _Wants) -> None:
        fault: DistribError | None = None
        try:
            for message in requests:
                with self._turn:
                    self._used_s = time.monotonic()
                    # A client that asks faster than it takes waits here, not in our memory.
                    self._turn.wait_for(lambda: wants.waiting < RANGES_MAX or self._ended)
                    _obey(message, wants)
                    self._turn.notify_all()
        except DistribError as error:
            fault = error
        except OSError:
            pass
        with self._turn:
            self._over = self._over or fault
            self._ended = True
            self._turn.notify_all()

    # -- the image --------------------------------------------------------------------------------

    def _follow(self, lent: Lent, wants: _Wants) -> None:
        try:
            for news in lent.updates():
                with self._turn:
                    for first, count in news:
                        wants.came(first, count)
                    self._turn.notify_all()
        except DistribError as error:
            with self._turn:
                self._over = self._over or error
                self._turn.notify_all()

    # -- the way out ------------------------------------------------------------------------------

    def _send(self, lent: Lent, wants: _Wants) -> None:
        while True:
            with self._turn:
                if self._over is not None:
                    raise self._over
                found = None if self._ended else wants.next()
                if found is not None:
                    self._turn.notify_all()
                elif self._ended or self._is_unused(wants):
                    return
                elif not self._turn.wait(self._patience.idle_s):
                    found = -1
            if isinstance(found, int):
                self._write(
                    protocol.encode(Idle()) if found < 0 else self._piece(lent, found),
                )
            elif isinstance(found, AskHashes):
                hashes = lent.hashes(found.first, found.count)
                self._write(protocol.encode(Hashes(found.first, hashes)))
            elif found is not None:
                self._write(protocol.encode(found))

    def _is_unused(self, wants: _Wants) -> bool:
        silent_s = time.monotonic() - self._used_s
        return silent_s > self._patience.unused_s and not wants.expects_more

    def _piece(self, lent: Lent, index: int) -> bytes:
        self._used_s = time.monotonic()
        at = index * lent.piece_bytes
        size = min(lent.piece_bytes, lent.size_bytes - at)
        try:
            data = os.pread(lent.fd, size, at)
        except OSError as error:
            raise StorageFailed(
                f"reading piece {index}: {error.strerror}", hint="see the kernel's log"
            ) from None
        if len(data) != size:
            raise StorageFailed(f"reading piece {index}: the volume is short", hint="verify it")
        return protocol.piece_header(index, size) + data

    def _write(self, data: bytes) -> None:
        """Write all of it. Raises TimedOut when the client takes nothing for too long."""
        view = memoryview(data)
        waiting = select.poll()
        waiting.register(self._replies, select.POLLOUT)
        while view:
            try:
                view = view[os.write(self._replies, view) :]
            except BlockingIOError:
                if not waiting.poll(self._patience.stalled_s * 1000):
                    raise TimedOut("the client takes nothing", hint="see its log") from None


def _obey(message: Request, wants: _Wants) -> None:
    match message:
        case Get(first, count):
            wants.get(first, count)
        case Subscribe(wanted):
            wants.subscribe(wanted)
        case Drop(first, count):
            wants.drop(first, count)
        case AskHashes(first, count):
            wants.ask_hashes(first, count)
        case _:
            raise MessageInvalid("pieces over SSH: a second beginning", hint="see tsunami.md")


def _without(one: tuple[int, int], first: int, count: int) -> Iterator[tuple[int, int]]:
    """What is left of a range without another."""
    begin, end = one[0], one[0] + one[1]
    for low, high in ((begin, min(end, first)), (max(begin, first + count), end)):
        if low < high:
            yield low, high - low
