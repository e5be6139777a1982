"""Piece hashes of a v2 torrent, computed without libtorrent: to verify a volume that is at rest.

Algorithm: BEP 52. A piece's hash is the root of a binary SHA-256 tree over its 16 KiB blocks,
padded with zero *hashes* to the piece's full width; a file that fits into one piece is padded to
the next power of two only.
"""

from __future__ import annotations

import hashlib
import os
from collections.abc import Iterator
from typing import Any

import libtorrent as lt

from distrib.errors import StorageFailed, TorrentMismatch
from distrib.swarm.torrent import TorrentInfo

BLOCK_BYTES = 16 * 1024
HASH_BYTES = 32


def piece_hash(data: bytes, *, leaves: int) -> bytes:
    """SHA-256 tree root of ``data`` over ``leaves`` blocks (a power of two); 32 bytes."""
    level = [
        hashlib.sha256(data[at : at + BLOCK_BYTES]).digest()
        for at in range(0, len(data), BLOCK_BYTES)
    ]
    return _root(level + [bytes(HASH_BYTES)] * (leaves - len(level)))


def piece_hashes(torrent: bytes, info: TorrentInfo) -> list[bytes]:
    """The hash of every piece, from a torrent file with piece layers, in order.

    Raises TorrentMismatch when the layers are missing or not those of the info dictionary."""
    try:
        document: Any = lt.bdecode(torrent)
        (entry,) = document[b"info"][b"file tree"].values()
        root: bytes = entry[b""][b"pieces root"]
        if info.pieces == 1:
            return [root]
        layer: bytes = document[b"piece layers"][root]
    except (RuntimeError, KeyError, TypeError, ValueError):
        raise TorrentMismatch(
            f"torrent {info.infohash[:12]}: no piece layers", hint="fetch the image again"
        ) from None
    hashes = [layer[at : at + HASH_BYTES] for at in range(0, len(layer), HASH_BYTES)]
    if len(hashes) != info.pieces or _layer_root(hashes, info.piece_bytes) != root:
        raise TorrentMismatch(
            f"torrent {info.infohash[:12]}: its piece layer is another's",
            hint="fetch the image again",
        )
    return hashes


def check_volume(fd: int, torrent: bytes, info: TorrentInfo) -> Iterator[bool]:
    """For every piece in order, whether the bytes in ``fd`` are the right ones.

    Reads the volume once. Raises TorrentMismatch, or StorageFailed where it cannot be read."""
    for index, expected in enumerate(piece_hashes(torrent, info)):
        try:
            data = os.pread(fd, info.piece_size(index), index * info.piece_bytes)
        except OSError as error:
            raise StorageFailed(
                f"reading piece {index}: {error.strerror}",
                hint="see the kernel's log for the device",
                piece=index,
            ) from None
        yield piece_hash(data, leaves=_leaves(info)) == expected


def _leaves(info: TorrentInfo) -> int:
    if info.pieces > 1:
        return info.piece_bytes // BLOCK_BYTES
    blocks = -(-info.size_bytes // BLOCK_BYTES)
    return 1 << (blocks - 1).bit_length()


def _layer_root(hashes: list[bytes], piece_bytes: int) -> bytes:
    padding = piece_hash(b"", leaves=piece_bytes // BLOCK_BYTES)
    return _root(hashes + [padding] * ((1 << (len(hashes) - 1).bit_length()) - len(hashes)))


def _root(level: list[bytes]) -> bytes:
    while len(level) > 1:
        pairs = zip(level[::2], level[1::2], strict=True)
        level = [hashlib.sha256(left + right).digest() for left, right in pairs]
    return level[0]
