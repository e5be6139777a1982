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
    """A connection with a peer is there; ``port`` is its other end, of which there may be two."""

    address: str
    port: int


@dataclass(frozen=True)
class PeerDown:
    """A connection ended, or could not be made. There may be another one with that peer."""

    address: str
    port: int
    why: str


@dataclass(frozen=True)
class PeerBanned:
    """A peer sent a block that failed its hash, and was cut off."""

    address: str


@dataclass(frozen=True)
class PeerSample:
    """A connected peer at one moment. Payload only: bytes since it was connected, and per second.

    ``interesting``: it has pieces that are wanted here."""

    address: str
    port: int
    interesting: bool
    received_bytes: int
    sent_bytes: int
    download_bps: int
    upload_bps: int


@dataclass(frozen=True)
class PeersSampled:
    """All connected peers, some times a second while something moves or is waited for."""

    peers: tuple[PeerSample, ...]


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
    PieceDone
    | HashFailed
    | PeerUp
    | PeerDown
    | PeerBanned
    | PeersSampled
    | StorageFault
    | Completed
    | Progress
)
