"""The head's image store as a shelf: what a seeder serves over SSH (``distrib serve-pieces``).

The process that sshd starts has no connection to the bus. The seeder, which has, keeps a list of
what it serves in the store, and renews it all the while: a list that is old says nothing.
"""

from __future__ import annotations

import json
import os
import time
from collections.abc import Collection, Iterable, Iterator
from pathlib import Path
from typing import Final

from distrib.errors import DistribError, NotFound, NotReady, Revoked, StorageFailed
from distrib.swarm import IMAGE_FILE, TORRENT_FILE
from distrib.swarm.pieces import piece_hashes
from distrib.swarm.torrent import info_of, parse_info
from distrib.tsunami.protocol import bitmap
from distrib.tsunami.serving import Lent

LIST_FILE: Final = ".served.json"
FRESH_S: Final = 30.0
LOOK_S: Final = 1.0


def tell_served(images_dir: Path, infohashes: Collection[str]) -> None:
    """Say what may be served now. Raises OSError."""
    fresh = images_dir / f"{LIST_FILE}.new"
    fresh.write_text(json.dumps(sorted(infohashes)), "ascii")
    fresh.chmod(0o644)
    fresh.replace(images_dir / LIST_FILE)


class StoreShelf:
    """The images of a directory that its seeder serves."""

    def __init__(self, images_dir: Path) -> None:
        self._images = images_dir

    def lend(self, infohash: str) -> Lent:
        """See ``Shelf.lend``."""
        if infohash not in self._served():
            raise NotFound("no such image here", hint="another peer may have it")
        directory = self._images / infohash
        try:
            torrent = (directory / TORRENT_FILE).read_bytes()
            info = parse_info(info_of(torrent))
            hashes = piece_hashes(torrent, info)
            fd = os.open(directory / IMAGE_FILE, os.O_RDONLY | os.O_CLOEXEC)
        except OSError as error:
            raise StorageFailed(
                f"{directory}: {error.strerror}", hint="may this account read it?"
            ) from None
        return Lent(
            fd,
            info.size_bytes,
            info.piece_bytes,
            bitmap([True] * info.pieces),
            lambda: self._updates(infohash),
            lambda first, count: b"".join(hashes[first : first + count]),
            lambda: None,
        )

    def _served(self) -> list[str]:
        path = self._images / LIST_FILE
        try:
            if time.time() - path.stat().st_mtime > FRESH_S:
                raise NotReady("the seeder does not run", hint="ask again later")
            found: list[str] = json.loads(path.read_text("ascii"))
        except (OSError, ValueError):
            raise NotReady(
                "the seeder has not said what it serves", hint="ask again later"
            ) from None
        return found

    def _updates(self, infohash: str) -> Iterator[Iterable[tuple[int, int]]]:
        while True:
            time.sleep(LOOK_S)
            try:
                gone = infohash not in self._served()
            except DistribError:
                # Restarting: what was lent may be read on until it says otherwise.
                continue
            if gone:
                raise Revoked("the image is not served any more", hint="do not use it any more")
            yield ()
