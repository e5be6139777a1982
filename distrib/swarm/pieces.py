"""Piece hashes of a v2 torrent, computed without libtorrent: to verify a volume that is at rest.

Algorithm: BEP 52 (``distrib.swarm.merkle``).
"""

from __future__ import annotations

import hashlib
import os
from collections.abc import Iterator
from typing import Any

import libtorrent as lt

from distrib.errors import StorageFailed, TorrentMismatch
from distrib.swarm.merkle import (
    BLOCK_BYTES,
    HASH_BYTES,
    layer_root,
    leaves_of,
    piece_hash,
    root_of,
)
from distrib.swarm.torrent import TorrentInfo


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
    if len(hashes) != info.pieces or layer_root(hashes, info.piece_bytes) != root:
        raise TorrentMismatch(
            f"torrent {info.infohash[:12]}: its piece layer is another's",
            hint="fetch the image again",
        )
    return hashes


def torrent_with_layer(raw_info: bytes, layer: bytes) -> bytes:
    """The torrent file of an info dictionary and the piece hashes of its file, one after another;
    none for a file of one piece. Nothing is checked: see ``piece_hashes``."""
    document: Any = lt.bdecode(raw_info)
    (entry,) = document[b"file tree"].values()
    layers = {entry[b""][b"pieces root"]: layer} if layer else {}
    torrent: Any = {b"info": document, b"piece layers": layers}
    return lt.bencode(torrent)


def coarser(hashes: list[bytes], *, piece_bytes: int, wanted_bytes: int) -> list[bytes]:
    """The hashes of the pieces of ``wanted_bytes`` (a larger power of two) of the same file.

    As BEP 52 builds them: what is missing at the end counts as hashes of nothing."""
    padding = piece_hash(b"", leaves=piece_bytes // BLOCK_BYTES)
    level = list(hashes)
    while piece_bytes < wanted_bytes:
        level += [padding] * (len(level) % 2)
        level = [
            hashlib.sha256(left + right).digest()
            for left, right in zip(level[::2], level[1::2], strict=True)
        ]
        padding = hashlib.sha256(padding + padding).digest()
        piece_bytes *= 2
    return level


def torrent_from_resume_data(data: bytes, info: TorrentInfo) -> bytes:
    """The torrent file, with its piece layer, out of libtorrent's resume data.

    libtorrent can write it itself (``write_torrent_file``), in time that grows with the square of
    the pieces: 5 s for 4,096. Its resume data hold a binary tree in one array, root first
    (node i has the children 2i+1 and 2i+2): ``mask`` says which nodes ``hashes`` has, in order.
    Raises TorrentMismatch when a piece's hash is in it neither itself nor by its blocks."""
    document: Any = lt.bdecode(data)
    raw = document[b"info"]
    (entry,) = raw[b"file tree"].values()
    layers = {}
    if info.pieces > 1:
        tree = document[b"trees"][0]
        layers[entry[b""][b"pieces root"]] = b"".join(_layer_of_tree(tree, info))
    torrent: Any = {b"info": raw, b"piece layers": layers}
    return lt.bencode(torrent)


def torrent_from_volume(fd: int, raw_info: bytes, info: TorrentInfo) -> bytes:
    """The torrent file, with its piece layer computed from the bytes in ``fd``; reads all of it.

    Raises TorrentMismatch when the bytes are not those of the info dictionary."""
    document: Any = lt.bdecode(raw_info)
    (entry,) = document[b"file tree"].values()
    root = entry[b""][b"pieces root"]
    hashes = [
        piece_hash(_read_piece(fd, index, info), leaves=piece_leaves(info))
        for index in range(info.pieces)
    ]
    found = hashes[0] if info.pieces == 1 else layer_root(hashes, info.piece_bytes)
    if found != root:
        raise TorrentMismatch(
            f"torrent {info.infohash[:12]}: the volume holds other bytes",
            hint="fetch the image again",
        )
    return torrent_with_layer(raw_info, b"".join(hashes) if info.pieces > 1 else b"")


def _layer_of_tree(tree: dict[bytes, bytes], info: TorrentInfo) -> Iterator[bytes]:
    mask, hashes = tree[b"mask"], tree[b"hashes"]
    held: dict[int, bytes] = {}
    for node in range(len(mask) * 8):
        if mask[node >> 3] & (0x80 >> (node & 7)):
            at = len(held) * HASH_BYTES
            held[node] = hashes[at : at + HASH_BYTES]
    blocks = -(-info.size_bytes // BLOCK_BYTES)
    width = 1 << (blocks - 1).bit_length()
    blocks_per_piece = info.piece_bytes // BLOCK_BYTES
    first_leaf, first_piece = width - 1, width // blocks_per_piece - 1
    for index in range(info.pieces):
        known = held.get(first_piece + index)
        if known is None:
            level = [
                held.get(first_leaf + block, bytes(HASH_BYTES) if block >= blocks else b"")
                for block in range(index * blocks_per_piece, (index + 1) * blocks_per_piece)
            ]
            if b"" in level:
                raise TorrentMismatch(
                    f"torrent {info.infohash[:12]}: the hash of piece {index} is not known",
                    hint="it comes from peers once the piece is fetched",
                )
            known = root_of(level)
        yield known


def check_volume(fd: int, torrent: bytes, info: TorrentInfo) -> Iterator[bool]:
    """For every piece in order, whether the bytes in ``fd`` are the right ones.

    Reads the volume once. Raises TorrentMismatch, or StorageFailed where it cannot be read."""
    for index, expected in enumerate(piece_hashes(torrent, info)):
        data = _read_piece(fd, index, info)
        yield piece_hash(data, leaves=piece_leaves(info)) == expected


def _read_piece(fd: int, index: int, info: TorrentInfo) -> bytes:
    try:
        return os.pread(fd, info.piece_size(index), index * info.piece_bytes)
    except OSError as error:
        raise StorageFailed(
            f"reading piece {index}: {error.strerror}",
            hint="see the kernel's log for the device",
            piece=index,
        ) from None


def piece_leaves(info: TorrentInfo) -> int:
    """Blocks that the hash of a piece is built over."""
    return leaves_of(info.size_bytes, info.piece_bytes)
