"""The framed protocol of ``serve-pieces``, version 1 (docs/formats/tsunami.md): bytes and frames.

Pure: no sockets. Everything that arrives is bounded before it is kept.
"""

from __future__ import annotations

import struct
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from typing import Final

from distrib.errors import MessageInvalid

VERSION: Final = 1
MAGIC: Final = b"distribP"
REQUEST_MAX_BYTES: Final = (1 << 20) + 64
REPLY_MAX_BYTES: Final = (1 << 24) + 64
PIECES_MAX: Final = 1 << 23
PIECE_MAX_BYTES: Final = 1 << 24
HASH_BYTES: Final = 32
HASHES_MAX: Final = 1 << 14
CODE_MAX_BYTES: Final = 64
TEXT_MAX_BYTES: Final = 2000

_LENGTH: Final = struct.Struct(">I")
_RANGE: Final = struct.Struct(">II")
_OPENED: Final = struct.Struct(">QI")
_HELLO: Final = struct.Struct(">8sH")
_VERSION: Final = struct.Struct(">H")


@dataclass(frozen=True)
class Hello:
    version: int


@dataclass(frozen=True)
class Open:
    infohash: str


@dataclass(frozen=True)
class Get:
    first: int
    count: int


@dataclass(frozen=True)
class Subscribe:
    wanted: bytes


@dataclass(frozen=True)
class Drop:
    first: int
    count: int


@dataclass(frozen=True)
class AskHashes:
    first: int
    count: int


@dataclass(frozen=True)
class Hashes:
    first: int
    hashes: bytes


@dataclass(frozen=True)
class Welcome:
    version: int


@dataclass(frozen=True)
class Opened:
    size_bytes: int
    piece_bytes: int
    have: bytes

    @property
    def pieces(self) -> int:
        return -(-self.size_bytes // self.piece_bytes)


@dataclass(frozen=True)
class Piece:
    index: int
    data: bytes


@dataclass(frozen=True)
class Absent:
    first: int
    count: int


@dataclass(frozen=True)
class Have:
    first: int
    count: int


@dataclass(frozen=True)
class Idle:
    pass


@dataclass(frozen=True)
class Failed:
    code: str
    text: str


Request = Hello | Open | Get | Subscribe | Drop | AskHashes
Reply = Welcome | Opened | Piece | Absent | Have | Idle | Failed | Hashes


def encode(message: Request | Reply) -> bytes:
    """One frame. Of a large piece, ``piece_header`` and the bytes need no copy."""
    kind, body = _body(message)
    return _LENGTH.pack(1 + len(body)) + bytes([kind]) + body


def piece_header(index: int, size_bytes: int) -> bytes:
    """What goes before the bytes of a piece."""
    return _LENGTH.pack(5 + size_bytes) + b"\x83" + _LENGTH.pack(index)


def _body(message: Request | Reply) -> tuple[int, bytes]:  # noqa: PLR0911, PLR0912 - a row each
    match message:
        case Hello(version):
            return 1, _HELLO.pack(MAGIC, version)
        case Open(infohash):
            return 2, bytes.fromhex(infohash)
        case Get(first, count):
            return 3, _RANGE.pack(first, count)
        case Subscribe(wanted):
            return 4, wanted
        case Drop(first, count):
            return 5, _RANGE.pack(first, count)
        case AskHashes(first, count):
            return 6, _RANGE.pack(first, count)
        case Welcome(version):
            return 129, _VERSION.pack(version)
        case Opened(size_bytes, piece_bytes, have):
            return 130, _OPENED.pack(size_bytes, piece_bytes) + have
        case Piece(index, data):
            return 131, _LENGTH.pack(index) + data
        case Absent(first, count):
            return 132, _RANGE.pack(first, count)
        case Have(first, count):
            return 133, _RANGE.pack(first, count)
        case Idle():
            return 134, b""
        case Hashes(first, hashes):
            return 136, _LENGTH.pack(first) + hashes
        case Failed(code, text):
            raw, told = code.encode()[:CODE_MAX_BYTES], text.encode()[:TEXT_MAX_BYTES]
            return 135, bytes([len(raw)]) + raw + told


class Frames:
    """Takes bytes as they come, gives whole frames: kind and body. Keeps at most one frame more
    than it was fed."""

    def __init__(self, *, max_bytes: int) -> None:
        self._max_bytes = max_bytes
        self._buffer = bytearray()

    def feed(self, data: bytes) -> Iterator[tuple[int, bytes]]:
        """The frames that are whole now. Raises MessageInvalid for a length out of bounds."""
        self._buffer += data
        at = 0
        try:
            with memoryview(self._buffer) as view:
                while len(view) - at >= _LENGTH.size:
                    (length,) = _LENGTH.unpack_from(view, at)
                    if not 0 < length <= self._max_bytes:
                        raise _invalid(f"a frame of {length} bytes")
                    start, end = at + _LENGTH.size, at + _LENGTH.size + length
                    if len(view) < end:
                        break
                    yield view[start], bytes(view[start + 1 : end])
                    at = end
        finally:
            del self._buffer[:at]

    @property
    def is_between(self) -> bool:
        """Whether no frame is begun."""
        return not self._buffer


def request(kind: int, body: bytes) -> Request:
    """A frame from a client. Raises MessageInvalid."""
    try:
        match kind:
            case 1:
                magic, version = _HELLO.unpack(body)
                if magic == MAGIC and version >= 1:
                    return Hello(version)
            case 2 if len(body) == 32:
                return Open(body.hex())
            case 3:
                return Get(*_range(body))
            case 4:
                return Subscribe(body)
            case 5:
                return Drop(*_range(body))
            case 6:
                return AskHashes(*_range(body))
    except struct.error:
        pass
    raise _invalid(f"a request of kind {kind} and {len(body)} bytes")


def reply(kind: int, body: bytes) -> Reply:  # noqa: PLR0911 - a row each
    """A frame from a server. Raises MessageInvalid."""
    try:
        match kind:
            case 129:
                (version,) = _VERSION.unpack(body)
                return Welcome(version)
            case 130:
                size_bytes, piece_bytes = _OPENED.unpack_from(body)
                opened = Opened(size_bytes, piece_bytes, body[_OPENED.size :])
                if _is_sound(opened):
                    return opened
            case 131 if 4 < len(body) <= 4 + PIECE_MAX_BYTES:
                return Piece(_LENGTH.unpack_from(body)[0], body[4:])
            case 132:
                return Absent(*_range(body))
            case 133:
                return Have(*_range(body))
            case 134 if not body:
                return Idle()
            case 136 if len(body) > 4 and len(body) % HASH_BYTES == 4:
                return Hashes(_LENGTH.unpack_from(body)[0], body[4:])
            case 135 if body and len(body) >= 1 + body[0]:
                code, text = body[1 : 1 + body[0]], body[1 + body[0] :]
                return Failed(
                    code.decode("ascii", "replace"),
                    text[:TEXT_MAX_BYTES].decode(errors="replace"),
                )
    except struct.error:
        pass
    raise _invalid(f"a reply of kind {kind} and {len(body)} bytes")


def check_range(first: int, count: int, pieces: int) -> None:
    """Raises MessageInvalid for a range of no pieces, or not inside the image."""
    if count < 1 or first + count > pieces:
        raise _invalid(f"pieces {first} to {first + count} of {pieces}")


def bitmap(held: Iterable[object]) -> bytes:
    """Flags as a bit map, the first in the highest bit of the first byte."""
    bits = "".join("1" if one else "0" for one in held)
    width = -(-len(bits) // 8) * 8
    return int(bits.ljust(width, "0") or "0", 2).to_bytes(width // 8)


def flags(raw: bytes, pieces: int) -> bytearray:
    """A byte a piece, 0 or 1, of a bit map. Raises MessageInvalid when it does not fit."""
    width = -(-pieces // 8)
    if len(raw) != width or not 0 < pieces <= PIECES_MAX:
        raise _invalid(f"a bit map of {len(raw)} bytes for {pieces} pieces")
    bits = f"{int.from_bytes(raw):0{width * 8}b}"
    if "1" in bits[pieces:]:
        raise _invalid("a bit map with pieces past the end")
    return bytearray(map(int, bits[:pieces]))


def ranges(indices: Iterable[int]) -> Iterator[tuple[int, int]]:
    """Ascending indices as (first, count)."""
    first = count = 0
    for index in indices:
        if count and index == first + count:
            count += 1
            continue
        if count:
            yield first, count
        first, count = index, 1
    if count:
        yield first, count


def _range(body: bytes) -> tuple[int, int]:
    first, count = _RANGE.unpack(body)
    if count < 1:
        raise _invalid("a range of no pieces")
    return first, count


def _is_sound(opened: Opened) -> bool:
    return (
        0 < opened.piece_bytes <= PIECE_MAX_BYTES
        and 0 < opened.size_bytes <= opened.piece_bytes * PIECES_MAX
        and len(opened.have) == -(-opened.pieces // 8)
    )


def _invalid(what: str) -> MessageInvalid:
    return MessageInvalid(
        f"pieces over SSH: {what}", hint="the two sides differ in version, or one of them lies"
    )
