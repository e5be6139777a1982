"""Which pieces are safely on disk: written only after an fsync of the volume.

Format: docs/formats/state.md, ``resume/<infohash>.json``. Bits that are lost only cost fetching
again; bits that claim too much are impossible by the order flush, fsync, write.
"""

from __future__ import annotations

import base64
import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import structlog

from agent.cache import durable

log = structlog.get_logger(__name__)


@dataclass(frozen=True)
class Resume:
    """``have``: a flag per piece. The counters run over all starts of a pull."""

    have: tuple[bool, ...]
    fetched_bytes: int = 0
    wasted_bytes: int = 0


class ResumeFiles:
    """The directory of resume files."""

    def __init__(self, directory: Path) -> None:
        self._directory = directory
        durable.make_directory(directory)

    def load(self, infohash: str, pieces: int) -> Resume | None:
        """What is known of a volume, or None; a file that does not fit counts as none."""
        path = self._path(infohash)
        try:
            document = json.loads(path.read_bytes())
            bitmap = base64.b64decode(document["pieces"], validate=True)
            fits = document["infohash"] == infohash and len(bitmap) == -(-pieces // 8)
            counters = int(document["fetched_bytes"]), int(document["wasted_bytes"])
        except FileNotFoundError:
            return None
        except (OSError, ValueError, KeyError, TypeError) as error:
            log.warning("resume-unreadable", path=str(path), why=str(error))
            return None
        if not fits:
            log.warning("resume-does-not-fit", path=str(path))
            return None
        have = tuple(bool(bitmap[i // 8] & (0x80 >> i % 8)) for i in range(pieces))
        return Resume(have, *counters)

    def save(self, infohash: str, resume: Resume) -> None:
        """Replace the file. Raises StorageFailed."""
        document = {
            "v": 1,
            "infohash": infohash,
            "pieces": base64.b64encode(_bitmap(resume.have)).decode(),
            "fetched_bytes": resume.fetched_bytes,
            "wasted_bytes": resume.wasted_bytes,
        }
        durable.replace(self._path(infohash), json.dumps(document).encode())

    def discard(self, infohash: str) -> None:
        durable.remove(self._path(infohash))

    def _path(self, infohash: str) -> Path:
        return self._directory / f"{infohash}.json"


def _bitmap(have: Sequence[bool]) -> bytes:
    """Most significant bit first, as BitTorrent's bitfield (BEP 3)."""
    bitmap = bytearray(-(-len(have) // 8))
    for index, held in enumerate(have):
        if held:
            bitmap[index // 8] |= 0x80 >> index % 8
    return bytes(bitmap)
