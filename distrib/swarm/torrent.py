"""Torrents: v2-only, private, one file, no trackers (docs/formats/torrent.md).

Format: BEP 52 (https://www.bittorrent.org/beps/bep_0052.html). What travels on the bus is the info
dictionary alone; its SHA-256 is the info-hash.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import libtorrent as lt

from distrib.errors import ImageError, NotFound, OperatorError, StorageFailed, TorrentMismatch
from distrib.swarm import IMAGE_FILE

INFO_MAX_BYTES = 64 * 1024
PIECE_MIN_BYTES = 16 * 1024
PIECE_MAX_BYTES = 16 * 1024 * 1024


@dataclass(frozen=True)
class TorrentInfo:
    """What an info dictionary says. Sizes in bytes; ``infohash`` is v2, 64 hex digits."""

    infohash: str
    size_bytes: int
    piece_bytes: int

    @property
    def pieces(self) -> int:
        return -(-self.size_bytes // self.piece_bytes)

    def piece_size(self, index: int) -> int:
        """Bytes in piece ``index``: the last one may be short."""
        return min(self.piece_bytes, self.size_bytes - index * self.piece_bytes)


def piece_bytes_for(size_bytes: int) -> int:
    """The piece size for an image: 64 KiB up to 1 GiB, 128 KiB up to 2 GiB, 256 KiB up to 64 GiB,
    then at most 262,144 pieces, at most 4 MiB.

    Small pieces make relay chains start sooner, and a new version differs in fewer bytes; many
    cost hash requests and bookkeeping. Figures: docs/decisions/0021-delta.md."""
    piece = 64 * 1024
    while piece < 4 * 1024 * 1024 and size_bytes > piece * (
        16_384 if piece < 256 * 1024 else 262_144
    ):
        piece *= 2
    return piece


def make_torrent(
    image: Path,
    *,
    piece_bytes: int,
    out: Path,
    on_progress: Callable[[int], None] | None = None,
) -> TorrentInfo:
    """Hash ``image``, which must be called ``image.raw``, and write the torrent to ``out``.

    Blocks (use a worker thread); ``on_progress`` gets bytes hashed so far. Raises NotFound,
    OperatorError for a piece size that is none, ImageError for an empty image, StorageFailed.
    """
    if piece_bytes & (piece_bytes - 1) or not PIECE_MIN_BYTES <= piece_bytes <= PIECE_MAX_BYTES:
        raise OperatorError(
            f"piece size {piece_bytes} is not possible",
            hint=f"a power of two from {PIECE_MIN_BYTES} to {PIECE_MAX_BYTES}",
        )
    try:
        size_bytes = image.stat().st_size
    except FileNotFoundError:
        raise NotFound(f"{image}: no such file", hint="name an image file") from None
    if size_bytes == 0:
        raise ImageError(f"{image}: empty file", hint="an image has at least one byte")
    entry = lt.create_file_entry(IMAGE_FILE, size_bytes)
    torrent = lt.create_torrent([entry], piece_bytes, lt.create_torrent.v2_only)
    torrent.set_priv(True)
    progress = on_progress or (lambda _: None)
    # libtorrent looks for <directory>/<name>; the name in the torrent is always image.raw.
    directory = _directory_with(image)
    try:
        lt.set_piece_hashes(torrent, str(directory), lambda i: progress((i + 1) * piece_bytes))
    except RuntimeError as error:
        raise StorageFailed(f"{image}: {error}", hint="check the disk") from None
    document: Any = torrent.generate()
    for key in set(document) - {b"info", b"piece layers"}:
        del document[key]
    out.write_bytes(lt.bencode(document))
    return parse_info(lt.bencode(document[b"info"]))


def _directory_with(image: Path) -> Path:
    if image.name != IMAGE_FILE:
        raise OperatorError(f"{image}: must be called {IMAGE_FILE}", hint="rename or link it")
    return image.parent


def info_of(torrent: bytes) -> bytes:
    """The bencoded info dictionary in a torrent file's bytes. Raises TorrentMismatch."""
    try:
        document: Any = lt.bdecode(torrent)
        return lt.bencode(document[b"info"])
    except (RuntimeError, KeyError, TypeError):
        raise TorrentMismatch("not a torrent file", hint="publish the image again") from None


def parse_info(info: bytes) -> TorrentInfo:
    """Read a bencoded info dictionary of ours.

    Raises TorrentMismatch for what is not a v2-only, private, one-file torrent of ``image.raw``.
    """
    if len(info) > INFO_MAX_BYTES:
        raise TorrentMismatch(f"info dictionary of {len(info)} bytes", hint="refused unread")
    infohash = hashlib.sha256(info).hexdigest()
    try:
        fields: Any = lt.bdecode(info)
        tree = fields[b"file tree"]
        shape_holds = (
            fields[b"meta version"] == 2
            and fields[b"private"] == 1
            and b"pieces" not in fields
            and list(tree) == [IMAGE_FILE.encode()]
            and lt.bencode(fields) == info
        )
        size_bytes = int(tree[IMAGE_FILE.encode()][b""][b"length"])
        piece_bytes = int(fields[b"piece length"])
        lt.torrent_info(document_of(info))
    except (RuntimeError, KeyError, TypeError, ValueError) as error:
        raise TorrentMismatch(
            f"torrent {infohash[:12]}: not an info dictionary: {error}", hint="publish it again"
        ) from None
    if not shape_holds:
        raise TorrentMismatch(
            f"torrent {infohash[:12]}: not a private v2-only torrent of {IMAGE_FILE}",
            hint="publish it again",
        )
    return TorrentInfo(infohash, size_bytes, piece_bytes)


def check_info(info: bytes, *, infohash: str, size_bytes: int, piece_bytes: int) -> TorrentInfo:
    """``parse_info``, and compare it with what the site list says.

    Raises TorrentMismatch; the hash is compared before anything is parsed.
    """
    got = hashlib.sha256(info).hexdigest()
    if got != infohash:
        raise TorrentMismatch(
            f"torrent {got[:12]} in the place of {infohash[:12]}",
            hint="somebody replaced it on the bus, or the seeder is broken",
            infohash=infohash,
        )
    parsed = parse_info(info)
    if (parsed.size_bytes, parsed.piece_bytes) != (size_bytes, piece_bytes):
        raise TorrentMismatch(
            f"torrent {infohash[:12]}: {parsed.size_bytes} bytes in pieces of"
            f" {parsed.piece_bytes}, the site list says {size_bytes} and {piece_bytes}",
            hint="approve the image again",
            infohash=infohash,
        )
    return parsed


def document_of(info: bytes) -> bytes:
    """A minimal torrent file around a bencoded info dictionary."""
    return b"d4:info" + info + b"e"
