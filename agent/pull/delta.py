"""Which pieces of a new version older ones have, and whether copying them is worth it: pure.

Pieces are the same when their hashes in the verified piece layers are the same; nothing is read to
find that out. A piece that moved by whole pieces is found where it is now.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass


@dataclass(frozen=True)
class Base:
    """An older version that pieces may come from: its piece hashes, in pieces of the new one's
    size."""

    infohash: str
    hashes: Sequence[bytes]


@dataclass(frozen=True)
class Run:
    """``count`` pieces from ``piece`` on are those of ``base`` from ``base_piece`` on."""

    base: str
    base_piece: int
    piece: int
    count: int


def match(
    wanted: Sequence[bytes], missing: Iterable[int], bases: Sequence[Base]
) -> tuple[Run, ...]:
    """Where the ``missing`` pieces (ascending) of a version with the hashes ``wanted`` are found.

    Long runs first of all: what goes on where the piece before it came from; then the same place;
    then any place."""
    anywhere: dict[bytes, tuple[int, int]] = {}
    for number, base in reversed(list(enumerate(bases))):
        # The first of equal pieces is the last to be written down.
        places = range(len(base.hashes) - 1, -1, -1)
        anywhere.update((base.hashes[index], (number, index)) for index in places)
    runs: list[Run] = []
    for piece in missing:
        last = runs[-1] if runs and runs[-1].piece + runs[-1].count == piece else None
        found = anywhere.get(wanted[piece])
        if found is None:
            continue
        if last is not None and _has(bases, last.base, last.base_piece + last.count, wanted[piece]):
            runs[-1] = Run(last.base, last.base_piece, last.piece, last.count + 1)
            continue
        base, index = bases[found[0]], found[1]
        for other in bases:
            if piece < len(other.hashes) and other.hashes[piece] == wanted[piece]:
                base, index = other, piece
                break
        runs.append(Run(base.infohash, index, piece, 1))
    return tuple(runs)


def _has(bases: Sequence[Base], infohash: str, index: int, wanted: bytes) -> bool:
    base = next(base for base in bases if base.infohash == infohash)
    return index < len(base.hashes) and base.hashes[index] == wanted


@dataclass(frozen=True)
class Rates:
    """Bytes per second: of the link, of the disk (writing, or copying), of SHA-512 over it."""

    link_bps: float
    disk_bps: float
    hash_bps: float = 500e6


def plain_s(size_bytes: int, missing_bytes: int, rates: Rates) -> float:
    """Seconds to fetch all that is missing; the digest follows while pieces come."""
    slowest_bps = min(rates.link_bps, rates.disk_bps)
    return max(missing_bytes / slowest_bps, size_bytes / rates.hash_bps)


def delta_s(
    size_bytes: int, missing_bytes: int, copy_bytes: int, rates: Rates, *, shares_blocks: bool
) -> float:
    """Seconds to copy ``copy_bytes`` and fetch the rest beside it, on the same disk.

    ``shares_blocks``: the file system copies without moving bytes."""
    fetch_bytes = missing_bytes - copy_bytes
    disk_bytes = fetch_bytes if shares_blocks else missing_bytes
    return max(
        fetch_bytes / rates.link_bps, disk_bytes / rates.disk_bps, size_bytes / rates.hash_bps
    )


def is_worth_it(
    size_bytes: int, missing_bytes: int, copy_bytes: int, rates: Rates, *, shares_blocks: bool
) -> bool:
    """Whether copying ends a pull sooner than fetching all that is missing."""
    by_delta_s = delta_s(size_bytes, missing_bytes, copy_bytes, rates, shares_blocks=shares_blocks)
    return copy_bytes > 0 and by_delta_s < plain_s(size_bytes, missing_bytes, rates)
