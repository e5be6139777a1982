"""Which pieces are in the volume: safely on disk, or handed to this boot's kernel.

Format: docs/formats/state.md, ``resume/``. ``<infohash>.json`` is written only after an fsync of
the volume and outlives a power cut; ``<infohash>.boot.json`` is written more often, without any,
and counts only while the same kernel runs: what it says survives the agent, not the machine. Bits
that are lost only cost fetching again; bits that claim too much are impossible by the order flush,
(fsync,) write.
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
    copied_bytes: int = 0


class ResumeFiles:
    """The directory of resume files."""

    def __init__(self, directory: Path, *, boot_id: str) -> None:
        self._directory = directory
        self._boot_id = boot_id
        durable.make_directory(directory)
        durable.sweep(directory)

    def load(self, infohash: str, pieces: int) -> Resume | None:
        """What is known of a volume, or None; a file that does not fit counts as none."""
        this_boot = self._read(self._boot_path(infohash), infohash, pieces)
        return this_boot or self._read(self._path(infohash), infohash, pieces)

    def save(self, infohash: str, resume: Resume) -> None:
        """After an fsync of the volume: replace both files. Raises StorageFailed."""
        durable.replace(self._path(infohash), _document(infohash, resume, ""))
        self.save_for_this_boot(infohash, resume)

    def save_for_this_boot(self, infohash: str, resume: Resume) -> None:
        """What the kernel has, flushed or not. Raises StorageFailed."""
        path = self._boot_path(infohash)
        temporary = path.with_name(f".{path.name}.tmp")
        with durable.storage_errors("writing", path):
            temporary.write_bytes(_document(infohash, resume, self._boot_id))
            temporary.replace(path)

    def discard(self, infohash: str) -> None:
        durable.remove(self._boot_path(infohash))
        durable.remove(self._path(infohash))

    def known(self) -> frozenset[str]:
        """The info-hashes that there are files of."""
        return durable.stems(self._directory)

    def files(self, infohash: str) -> tuple[Path, ...]:
        """The files of an info-hash that are there."""
        both = (self._boot_path(infohash), self._path(infohash))
        return tuple(file for file in both if file.exists())

    def _path(self, infohash: str) -> Path:
        return self._directory / f"{infohash}.json"

    def _boot_path(self, infohash: str) -> Path:
        return self._directory / f"{infohash}.boot.json"

    def _read(self, path: Path, infohash: str, pieces: int) -> Resume | None:
        try:
            document = json.loads(path.read_bytes())
            bitmap = base64.b64decode(document["pieces"], validate=True)
            fits = document["infohash"] == infohash and len(bitmap) == -(-pieces // 8)
            of_this_boot = document["boot_id"] in ("", self._boot_id)
            counters = (
                int(document["fetched_bytes"]),
                int(document["wasted_bytes"]),
                int(document.get("copied_bytes", 0)),
            )
        except FileNotFoundError:
            return None
        except (OSError, ValueError, KeyError, TypeError) as error:
            log.warning("resume-unreadable", path=str(path), why=str(error))
            return None
        if not fits:
            log.warning("resume-does-not-fit", path=str(path))
        if not (fits and of_this_boot):
            return None
        have = tuple(bool(bitmap[i // 8] & (0x80 >> i % 8)) for i in range(pieces))
        return Resume(have, *counters)


def _document(infohash: str, resume: Resume, boot_id: str) -> bytes:
    document = {
        "v": 1,
        "infohash": infohash,
        "boot_id": boot_id,
        "pieces": base64.b64encode(_bitmap(resume.have)).decode(),
        "fetched_bytes": resume.fetched_bytes,
        "wasted_bytes": resume.wasted_bytes,
        "copied_bytes": resume.copied_bytes,
    }
    return json.dumps(document).encode()


def _bitmap(have: Sequence[bool]) -> bytes:
    """Most significant bit first, as BitTorrent's bitfield (BEP 3)."""
    bitmap = bytearray(-(-len(have) // 8))
    for index, held in enumerate(have):
        if held:
            bitmap[index // 8] |= 0x80 >> index % 8
    return bytes(bitmap)
