"""The torrents that a node knows: info dictionaries from the bus, piece layers once complete.

Files: docs/formats/state.md, ``torrents/``. What is read back is checked like what arrives.
"""

from __future__ import annotations

from pathlib import Path
from typing import Protocol

import structlog

from agent.cache import durable
from distrib.errors import DistribError, TorrentMismatch
from distrib.swarm.pieces import piece_hashes, torrent_from_volume
from distrib.swarm.torrent import TorrentInfo, check_info, info_of

log = structlog.get_logger(__name__)


class Known(Protocol):
    """What the site list says of a version: an entry of it, or a volume's record."""

    @property
    def infohash(self) -> str: ...

    @property
    def size_bytes(self) -> int: ...

    @property
    def piece_bytes(self) -> int: ...


class TorrentFiles:
    """``<infohash>.info`` is the info dictionary, ``<infohash>.torrent`` has the layers too."""

    def __init__(self, directory: Path) -> None:
        self._directory = directory
        durable.make_directory(directory)
        durable.sweep(directory)

    def accept(self, info: bytes, image: Known) -> TorrentInfo:
        """Keep an info dictionary that is the one of the site list. Raises TorrentMismatch."""
        parsed = _checked(info, image)
        durable.replace(self._info(image.infohash), info)
        return parsed

    def info(self, image: Known) -> tuple[TorrentInfo, bytes] | None:
        """The info dictionary as parsed and raw, or None while it is not here."""
        try:
            raw = self._info(image.infohash).read_bytes()
            return _checked(raw, image), raw
        except FileNotFoundError:
            return None
        except (OSError, TorrentMismatch) as error:
            log.warning("torrent-unreadable", infohash=image.infohash, why=str(error))
            return None

    def keep_layers(self, image: Known, torrent: bytes) -> None:
        """Keep a torrent file with piece layers. Raises TorrentMismatch when they do not fit."""
        piece_hashes(torrent, _checked(info_of(torrent), image))
        durable.replace(self._torrent(image.infohash), torrent)

    def with_layers(self, image: Known) -> tuple[TorrentInfo, bytes] | None:
        """The torrent file with all piece layers, or None: then only the info is known."""
        try:
            torrent = self._torrent(image.infohash).read_bytes()
            info = _checked(info_of(torrent), image)
            piece_hashes(torrent, info)
        except (OSError, DistribError):
            return None
        return info, torrent

    def layers_of(self, image: Known, volume: Path) -> tuple[TorrentInfo, bytes] | None:
        """The same, with layers that are made from a volume's bytes, and kept, where only the info
        dictionary is here. Raises TorrentMismatch where these are other bytes, StorageFailed."""
        found, known = self.with_layers(image), self.info(image)
        if found is not None or known is None:
            return found
        info, raw = known
        with durable.storage_errors("reading", volume), volume.open("rb") as file:
            torrent = torrent_from_volume(file.fileno(), raw, info)
        self.keep_layers(image, torrent)
        return info, torrent

    def known(self) -> frozenset[str]:
        """The info-hashes that there are files of."""
        return durable.stems(self._directory)

    def files(self, infohash: str) -> tuple[Path, ...]:
        """The files of an info-hash that are there."""
        both = (self._info(infohash), self._torrent(infohash))
        return tuple(file for file in both if file.exists())

    def discard(self, infohash: str) -> None:
        """Forget a torrent. Raises StorageFailed."""
        for file in self.files(infohash):
            durable.remove(file)

    def _info(self, infohash: str) -> Path:
        return self._directory / f"{infohash}.info"

    def _torrent(self, infohash: str) -> Path:
        return self._directory / f"{infohash}.torrent"


def _checked(info: bytes, image: Known) -> TorrentInfo:
    return check_info(
        info,
        infohash=image.infohash,
        size_bytes=image.size_bytes,
        piece_bytes=image.piece_bytes,
    )
