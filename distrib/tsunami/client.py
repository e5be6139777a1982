"""The client's end of the pieces protocol, over any byte stream. Calls block."""

from __future__ import annotations

import threading
from collections import deque
from collections.abc import Callable, Iterable
from typing import Final, Protocol

from distrib.errors import (
    DistribError,
    MessageInvalid,
    NetworkError,
    NotFound,
    NotReady,
    Revoked,
    StorageFailed,
)
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
    Piece,
    Reply,
    Subscribe,
    Welcome,
)

COMMAND: Final = "serve-pieces"
"""What is asked for; a forced command makes it so."""

_ERRORS: Final[dict[str, type[DistribError]]] = {
    one.code: one for one in (NotFound, NotReady, Revoked, StorageFailed, MessageInvalid)
}


class ByteStream(Protocol):
    """Both ways of a connection; see ``distrib.tsunami.ssh.Stream``."""

    def read(self) -> bytes: ...

    def write(self, data: bytes) -> None: ...

    def complaint(self) -> str: ...

    def close(self) -> None: ...


class PieceClient:
    """One image at one peer. One thread reads; requests may come from any."""

    def __init__(
        self,
        stream: ByteStream,
        infohash: str,
        *,
        peer: str,
        on_close: Callable[[], None] = lambda: None,
    ) -> None:
        self._on_close = on_close
        self.peer = peer
        self._infohash = infohash
        self._stream = stream
        self._frames = Frames(max_bytes=protocol.REPLY_MAX_BYTES)
        self._waiting: deque[Reply] = deque()
        self._sending = threading.Lock()
        self.opened: Opened | None = None

    def open(self, *, size_bytes: int, piece_bytes: int) -> bytearray:
        """Begin; a byte a piece, 1 where the peer has it.

        Raises what the peer says, NetworkError, TimedOut, or MessageInvalid, also where its image
        has other sizes than the ones that are known."""
        self._send(Hello(protocol.VERSION), Open(self._infohash))
        welcome = self._reply()
        if not isinstance(welcome, Welcome) or welcome.version != protocol.VERSION:
            raise self._invalid("it speaks no version that we do")
        opened = self._reply()
        if not isinstance(opened, Opened) or (opened.size_bytes, opened.piece_bytes) != (
            size_bytes,
            piece_bytes,
        ):
            raise self._invalid("it has another image under this info-hash")
        self.opened = opened
        return protocol.flags(opened.have, opened.pieces)

    def get(self, first: int, count: int) -> None:
        """Ask for pieces; each is answered by a Piece, or by an Absent that covers it."""
        self._send(Get(first, count))

    def subscribe(self, wanted: Iterable[object]) -> None:
        """Have these sent, a flag a piece, now or once they come; replaces what was before."""
        self._send(Subscribe(protocol.bitmap(wanted)))

    def drop(self, first: int, count: int) -> None:
        """These are not needed any more; some may come nevertheless."""
        self._send(Drop(first, count))

    def layer(self) -> bytes:
        """The hashes of all pieces, one after another: to be compared with the root. Only before
        anything else was asked for. Raises as ``next`` does."""
        assert self.opened is not None  # noqa: S101 - after ``open``
        found, pieces = b"", self.opened.pieces
        while len(found) < pieces * protocol.HASH_BYTES:
            first = len(found) // protocol.HASH_BYTES
            count = min(protocol.HASHES_MAX, pieces - first)
            self._send(AskHashes(first, count))
            answer = self._reply()
            while isinstance(answer, Idle | Have):
                answer = self._reply()
            if (
                not isinstance(answer, Hashes)
                or answer.first != first
                or len(answer.hashes) != count * protocol.HASH_BYTES
            ):
                raise self._invalid("hashes that were not asked for")
            found += answer.hashes
        return found

    def next(self) -> Piece | Absent | Have | None:
        """The next of what comes; None where the peer has ended the session.

        Raises what the peer says, NetworkError, TimedOut, MessageInvalid."""
        while True:
            message = self._reply(at_end=True)
            match message:
                case Piece(index, data):
                    self._check(index, 1)
                    if len(data) != self._size_of(index):
                        raise self._invalid(f"piece {index} of {len(data)} bytes")
                    return message
                case Absent(first, count) | Have(first, count):
                    self._check(first, count)
                    return message
                case Idle():
                    continue
                case None:
                    return None
                case _:
                    raise self._invalid("a reply out of order")

    def close(self) -> None:
        """End the session, from any thread."""
        self._stream.close()
        self._on_close()

    def _send(self, *messages: protocol.Request) -> None:
        with self._sending:
            self._stream.write(b"".join(map(protocol.encode, messages)))

    def _reply(self, *, at_end: bool = False) -> Reply | None:
        while not self._waiting:
            data = self._stream.read()
            if not data:
                if at_end and self._frames.is_between:
                    return None
                raise NetworkError(
                    f"{self.peer}: ended the session: {self._stream.complaint() or 'no reason'}",
                    hint="its log says why; is its key limited to serve-pieces?",
                )
            self._waiting.extend(protocol.reply(*frame) for frame in self._frames.feed(data))
        message = self._waiting.popleft()
        if isinstance(message, Failed):
            kind = _ERRORS.get(message.code, NetworkError)
            raise kind(f"{self.peer}: {message.text}", hint="another peer may have it")
        return message

    def _size_of(self, index: int) -> int:
        assert self.opened is not None  # noqa: S101 - after ``open``
        return min(
            self.opened.piece_bytes, self.opened.size_bytes - index * self.opened.piece_bytes
        )

    def _check(self, first: int, count: int) -> None:
        assert self.opened is not None  # noqa: S101 - after ``open``
        protocol.check_range(first, count, self.opened.pieces)

    def _invalid(self, what: str) -> MessageInvalid:
        return MessageInvalid(f"{self.peer}: {what}", hint="it differs in version, or lies")
