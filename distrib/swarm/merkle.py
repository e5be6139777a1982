"""SHA-256 trees of v2 torrents, pure: the hash of a piece, and of all pieces together.

Algorithm: BEP 52. A piece's hash is the root of a binary SHA-256 tree over its 16 KiB blocks,
padded with zero *hashes* to the piece's full width; a file that fits into one piece is padded to
the next power of two only. The processes that hash large images import this and nothing else.
"""

from __future__ import annotations

from hashlib import sha256

BLOCK_BYTES = 16 * 1024
HASH_BYTES = 32


def piece_hash(data: bytes | memoryview, *, leaves: int) -> bytes:
    """SHA-256 tree root of ``data`` over ``leaves`` blocks (a power of two); 32 bytes."""
    level = [
        sha256(data[at : at + BLOCK_BYTES]).digest() for at in range(0, len(data), BLOCK_BYTES)
    ]
    return root_of(level + [bytes(HASH_BYTES)] * (leaves - len(level)))


def leaves_of(size_bytes: int, piece_bytes: int) -> int:
    """Blocks that the hash of a piece is built over, in a file of ``size_bytes``."""
    if size_bytes > piece_bytes:
        return piece_bytes // BLOCK_BYTES
    blocks = -(-size_bytes // BLOCK_BYTES)
    return 1 << (blocks - 1).bit_length()


def layer_root(hashes: list[bytes], piece_bytes: int) -> bytes:
    """The hash of a file of several pieces, by theirs in order."""
    padding = piece_hash(b"", leaves=piece_bytes // BLOCK_BYTES)
    return root_of(hashes + [padding] * ((1 << (len(hashes) - 1).bit_length()) - len(hashes)))


def root_of(level: list[bytes]) -> bytes:
    """The root over a level of the tree: as many hashes as a power of two."""
    while len(level) > 1:
        pairs = zip(level[::2], level[1::2], strict=True)
        level = [sha256(left + right).digest() for left, right in pairs]
    return level[0]
