"""Torrents: v2-only, private, one file, no trackers (docs/formats/torrent.md).

Format: BEP 52 (https://www.bittorrent.org/beps/bep_0052.html). What travels on the bus is the info
dictionary alone; its SHA-256 is the info-hash.
"""

from __future__ import annotations

import hashlib
import os
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import libtorrent as lt

from distrib.errors import ImageError, NotFound, OperatorError, StorageFailed, TorrentMismatch
from distrib.swarm import IMAGE_FILE
from distrib.swarm.hashing import hash_file
from distrib.swarm.merkle import layer_root

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
    """The piece size for an image: 64 KiB up to 1 GiB, 128 KiB up to 2 GiB, 256 KiB up to 8 GiB,
    then at most 32,768 pieces, at most 4 MiB.

    Small pieces make relay chains start sooner, and a new version differs in fewer bytes; many
    cost hash requests, and memory of all who seed: 1 MiB for 32,768. Figures:
    docs/decisions/0021-delta.md, docs/decisions/0030-making-torrents.md."""
    piece = 64 * 1024
    while piece < 4 * 1024 * 1024 and size_bytes > piece * (
        16_384 if piece < 256 * 1024 else 32_768
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
    """Hash the file ``image`` (in a torrent it is always ``image.raw``), and write the torrent.

    Blocks (use a worker thread); ``on_progress`` gets bytes hashed so far. ``out`` is replaced as a
    whole, or left as it was. Raises NotFound, OperatorError for a piece size that is none,
    ImageError for an empty image or one that is written to meanwhile, StorageFailed.
    """
    return _make(image, piece_bytes, out, on_progress, digest=False)[0]


def make_torrent_and_digest(
    image: Path,
    *,
    piece_bytes: int,
    out: Path,
    on_progress: Callable[[int], None] | None = None,
) -> tuple[TorrentInfo, str]:
    """``make_torrent``, and the SHA-512 (hex) of the very bytes that the torrent is of."""
    info, sha512 = _make(image, piece_bytes, out, on_progress, digest=True)
    return info, sha512 or ""


def _make(
    image: Path,
    piece_bytes: int,
    out: Path,
    on_progress: Callable[[int], None] | None,
    *,
    digest: bool,
) -> tuple[TorrentInfo, str | None]:
    if piece_bytes & (piece_bytes - 1) or not PIECE_MIN_BYTES <= piece_bytes <= PIECE_MAX_BYTES:
        raise OperatorError(
            f"piece size {piece_bytes} is not possible",
            hint=f"a power of two from {PIECE_MIN_BYTES} to {PIECE_MAX_BYTES}",
        )
    try:
        stream = image.open("rb", buffering=0)
    except FileNotFoundError:
        raise NotFound(f"{image}: no such file", hint="name an image file") from None
    with stream:
        size_bytes, before = _written(stream.fileno())
        if size_bytes == 0:
            raise ImageError(f"{image}: empty file", hint="an image has at least one byte")
        try:
            hashed = hash_file(
                stream.fileno(),
                size_bytes,
                piece_bytes=piece_bytes,
                digest=digest,
                on_progress=on_progress or (lambda _bytes: None),
            )
        except StorageFailed as error:
            raise StorageFailed(f"{image}: {error.message}", hint=error.hint) from None
        if _written(stream.fileno()) != (size_bytes, before):
            raise ImageError(
                f"{image}: written to while it was hashed", hint="try again once it is at rest"
            )
    torrent = torrent_of(hashed.hashes, size_bytes=size_bytes, piece_bytes=piece_bytes)
    temporary = out.with_name(f".{out.name}.new")
    try:
        temporary.write_bytes(torrent)
        temporary.replace(out)
    except OSError:
        temporary.unlink(missing_ok=True)
        raise
    return parse_info(info_of(torrent)), hashed.sha512


def _written(fd: int) -> tuple[int, int]:
    """Size of an open file, and when it was last written to."""
    found = os.fstat(fd)
    return found.st_size, found.st_mtime_ns


def torrent_of(hashes: list[bytes], *, size_bytes: int, piece_bytes: int) -> bytes:
    """The torrent file of an image by the hashes of its pieces."""
    root = hashes[0] if len(hashes) == 1 else layer_root(hashes, piece_bytes)
    name, entry = IMAGE_FILE.encode(), {b"length": size_bytes, b"pieces root": root}
    document: Any = {
        b"info": {
            b"file tree": {name: {b"": entry}},
            b"meta version": 2,
            b"name": name,
            b"piece length": piece_bytes,
            b"private": 1,
        },
        b"piece layers": {root: b"".join(hashes)} if len(hashes) > 1 else {},
    }
    return lt.bencode(document)


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
