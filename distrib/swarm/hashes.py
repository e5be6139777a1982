"""A torrent's piece layer, asked from one peer before anything is fetched.

Messages: BEP 52, `hash request`, `hashes`, `hash reject` (21, 22, 23) on an ordinary peer
connection (BEP 3). libtorrent asks for these hashes too, but only beside the pieces that it
fetches; which pieces to fetch at all is to be decided with them. No proofs are asked for: the
layer as a whole is compared with the root in the info dictionary, which the site list vouches for.
"""

from __future__ import annotations

import asyncio
import os
import struct
from contextlib import suppress
from typing import Any, Final

import libtorrent as lt

from distrib.errors import DistribError, NetworkError
from distrib.swarm.merkle import BLOCK_BYTES, HASH_BYTES
from distrib.swarm.pieces import piece_hashes, torrent_with_layer
from distrib.swarm.torrent import TorrentInfo

HASHES_PER_REQUEST: Final = 512
"""What libtorrent asks for at a time; BEP 52 wants peers to serve so many."""

REQUESTS_AHEAD: Final = 8
MESSAGE_MAX_BYTES: Final = 1 << 20
"""A bit field of 8 million pieces is as large."""

SILENCE_S: Final = 5.0
"""A peer that sends nothing for so long is given up."""

GOODBYE_S: Final = 0.5

_PROTOCOL: Final = b"\x13BitTorrent protocol"
_RESERVED: Final = bytes(7) + b"\x10"  # speaks v2 (BEP 52)
_PEER_ID: Final = b"-DI0100-"
_REQUEST, _HASHES, _REJECT = 21, 22, 23
_FIELDS: Final = struct.Struct(">32sIIII")


async def fetch_torrent(
    raw_info: bytes, info: TorrentInfo, address: str, port: int, *, own_address: str | None = None
) -> bytes:
    """The torrent file of an info dictionary, its piece layer asked from the peer at an address.

    ``own_address`` is connected from. Raises NetworkError when the peer has not got the torrent
    or goes silent, TorrentMismatch when what it sends is not that torrent's layer."""
    if info.pieces == 1:
        return torrent_with_layer(raw_info, b"")
    local = (own_address, 0) if own_address not in (None, "", "0.0.0.0", "::") else None  # noqa: S104
    try:
        async with asyncio.timeout(SILENCE_S):
            reader, writer = await asyncio.open_connection(address, port, local_addr=local)
    except (OSError, TimeoutError) as error:
        raise _gone(info, address, error) from None
    try:
        await _shake_hands(reader, writer, info)
        layer = await _ask(reader, writer, _root_of(raw_info), info)
        await _part(reader, writer)
    except (OSError, EOFError, TimeoutError, ValueError) as error:
        raise _gone(info, address, error) from None
    finally:
        writer.close()
    torrent = torrent_with_layer(raw_info, layer)
    await asyncio.to_thread(piece_hashes, torrent, info)
    return torrent


async def _shake_hands(
    reader: asyncio.StreamReader, writer: asyncio.StreamWriter, info: TorrentInfo
) -> None:
    # A v2 info-hash is cut to the length that the handshake has room for.
    short = bytes.fromhex(info.infohash)[:20]
    writer.write(_PROTOCOL + _RESERVED + short + _PEER_ID + os.urandom(12))
    async with asyncio.timeout(SILENCE_S):
        answer = await reader.readexactly(68)
    if answer[:20] != _PROTOCOL or answer[28:48] != short:
        raise ValueError("another torrent")


async def _ask(
    reader: asyncio.StreamReader, writer: asyncio.StreamWriter, root: bytes, info: TorrentInfo
) -> bytes:
    """The layer, in requests of aligned runs, a few of them under way at a time."""
    width = 1 << (info.pieces - 1).bit_length()
    count = min(HASHES_PER_REQUEST, width)
    base = (info.piece_bytes // BLOCK_BYTES).bit_length() - 1
    wanted = list(range(0, info.pieces, count))
    got: dict[int, bytes] = {}
    asked = 0
    while len(got) < len(wanted):
        while asked < len(wanted) and asked - len(got) < REQUESTS_AHEAD:
            body = _FIELDS.pack(root, base, wanted[asked], count, 0)
            writer.write(struct.pack(">IB", 1 + len(body), _REQUEST) + body)
            asked += 1
        at, hashes = await _answer(reader, (root, base, count))
        got[at] = hashes
    return b"".join(got[at] for at in wanted)[: info.pieces * HASH_BYTES]


async def _answer(
    reader: asyncio.StreamReader, expected: tuple[bytes, int, int]
) -> tuple[int, bytes]:
    """The next ``hashes`` message: index of its first hash, and the hashes."""
    async with asyncio.timeout(SILENCE_S):
        while True:
            (length,) = struct.unpack(">I", await reader.readexactly(4))
            if length > MESSAGE_MAX_BYTES:
                raise ValueError(f"a message of {length} bytes")
            message = await reader.readexactly(length)
            if not message or message[0] not in (_HASHES, _REJECT):
                continue
            if message[0] == _REJECT:
                raise ValueError("the hashes are refused")
            if len(message) < 1 + _FIELDS.size:
                raise ValueError("a message cut short")
            root, base, index, count, _ = _FIELDS.unpack_from(message, 1)
            hashes = message[1 + _FIELDS.size :]
            if (root, base, count) != expected or len(hashes) != count * HASH_BYTES:
                raise ValueError("hashes that were not asked for")
            return index, hashes


async def _part(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    """Close, and see the peer close: it takes one connection an address, and the pull's own comes
    next."""
    writer.write_eof()
    with suppress(TimeoutError):
        async with asyncio.timeout(GOODBYE_S):
            while await reader.read(1 << 16):
                pass


def _root_of(raw_info: bytes) -> bytes:
    document: Any = lt.bdecode(raw_info)
    (entry,) = document[b"file tree"].values()
    root: bytes = entry[b""][b"pieces root"]
    return root


def _gone(info: TorrentInfo, address: str, error: BaseException) -> DistribError:
    why = str(error) or type(error).__name__
    return NetworkError(
        f"torrent {info.infohash[:12]}: no piece hashes from {address}: {why}",
        hint="another peer is asked",
        infohash=info.infohash,
    )
