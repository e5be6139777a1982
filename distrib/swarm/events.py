"""What a transfer tells: libtorrent's alerts as frozen dataclasses.

libtorrent's alert objects die at the next ``pop_alerts``, so nothing of theirs is kept.
"""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class PieceDone:
    """A piece passed its hash."""

    index: int


@dataclass(frozen=True)
class HashFailed:
    """A piece did not pass its hash and is missing again."""

    index: int


@dataclass(frozen=True)
class PeerUp:
    """The BitTorrent handshake with a peer is done."""

    address: str


@dataclass(frozen=True)
class PeerDown:
    """A connection ended, or could not be made."""

    address: str
    why: str


@dataclass(frozen=True)
class PeerBanned:
    """A peer sent a block that failed its hash; this session talks to it no more."""

    address: str


@dataclass(frozen=True)
class StorageFault:
    """Reading or writing the volume failed. ``errno`` is 0 when libtorrent gives none."""

    message: str
    errno: int


@dataclass(frozen=True)
class Completed:
    """Nothing is missing any more."""


@dataclass(frozen=True)
class Progress:
    """The counters of the transfer moved."""


TransferEvent = (
    PieceDone | HashFailed | PeerUp | PeerDown | PeerBanned | StorageFault | Completed | Progress
)
