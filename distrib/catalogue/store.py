"""The head's directories of images and lists (docs/formats/head-state.md).

A file is written beside its place, flushed, and renamed: whoever opens it by name sees all or
nothing, also after a power cut.
"""

from __future__ import annotations

import errno
import os
import re
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from urllib.parse import quote

from distrib.errors import NoSpace, StorageFailed
from distrib.swarm import IMAGE_FILE

TORRENT_FILE = "image.torrent"
_READ_ONLY_FILE = 0o444
_SITE_LIST = re.compile(r"(\d+)\.smime")


@dataclass(frozen=True)
class ImageStore:
    """Where things are under the head's state directory; ``prepare`` makes the folders."""

    state_dir: Path

    @property
    def images(self) -> Path:
        """One folder an info-hash; what seeders seed."""
        return self.state_dir / "images"

    @property
    def quarantine(self) -> Path:
        """One folder an image version that is being taken in."""
        return self.state_dir / "quarantine"

    @property
    def lists(self) -> Path:
        """Every signed image list that was accepted."""
        return self.state_dir / "lists"

    @property
    def site_lists(self) -> Path:
        """Every site list that was signed here, by version."""
        return self.state_dir / "site-lists"

    @property
    def site_list_file(self) -> Path:
        """The newest site list."""
        return self.state_dir / "site-list.smime"

    def image_file(self, infohash: str) -> Path:
        """The raw bytes of an approved image."""
        return self.images / infohash / IMAGE_FILE

    def torrent_file(self, infohash: str) -> Path:
        """Its torrent, with piece layers."""
        return self.images / infohash / TORRENT_FILE

    def list_file(self, sha512: str) -> Path:
        """A signed image list, raw."""
        return self.lists / f"{sha512}.smime"

    def word_file(self, sha512: str) -> Path:
        """What a user said of an image that they proposed; JSON that nobody signed."""
        return self.lists / f"{sha512}.json"

    def site_list_version_file(self, version: int) -> Path:
        """A signed site list of that version."""
        return self.site_lists / f"{version}.smime"

    def quarantine_dir(self, identifier: str, version: str) -> Path:
        """The folder of one image version; a version may hold slashes, a file name may not."""
        return self.quarantine / f"{identifier}@{quote(version, safe='+,~')}"

    def prepare(self) -> None:
        """Make the folders. Raises StorageFailed."""
        try:
            for folder in (self.images, self.quarantine, self.lists, self.site_lists):
                folder.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise StorageFailed(
                f"{self.state_dir}: {error.strerror}", hint="check rights of the state directory"
            ) from None

    def newest_site_list_version(self) -> int:
        """The highest version among the kept site lists; 0 if there is none."""
        names = (_SITE_LIST.fullmatch(entry.name) for entry in self.site_lists.iterdir())
        return max((int(found[1]) for found in names if found), default=0)

    def keep_list(self, sha512: str, message: bytes) -> None:
        """Keep a signed list for ever; one that is there already stays as it is."""
        file = self.list_file(sha512)
        if not file.exists():
            write_atomically(file, message, mode=_READ_ONLY_FILE)

    def keep_word(self, sha512: str, document: bytes) -> None:
        """Keep what a user said of a proposed image."""
        write_atomically(self.word_file(sha512), document, mode=_READ_ONLY_FILE)

    def move_in(self, quarantined: Path, infohash: str) -> None:
        """Rename a quarantine folder (image and torrent) to its place among the images, read-only.

        The same bytes may be there already, approved under another name: then those stay.
        """
        with named_faults(quarantined):
            for name in (IMAGE_FILE, TORRENT_FILE):
                file = quarantined / name
                sync(file)
                file.chmod(_READ_ONLY_FILE)
            sync(quarantined)
            target = self.images / infohash
            if target.exists():
                shutil.rmtree(quarantined)
            else:
                quarantined.rename(target)
                sync(self.images)
                sync(self.quarantine)


def write_atomically(file: Path, data: bytes, *, mode: int = 0o644) -> None:
    """Replace ``file`` as a whole. Raises NoSpace, StorageFailed; then nothing has changed."""
    part = file.with_name(f".{file.name}.new")
    with named_faults(file):
        try:
            part.unlink(missing_ok=True)
            # The mode is right from the first byte: this may be a secret.
            descriptor = os.open(part, os.O_WRONLY | os.O_CREAT | os.O_EXCL, mode)
            with os.fdopen(descriptor, "wb") as stream:
                stream.write(data)
                stream.flush()
                os.fsync(descriptor)
            part.replace(file)
        finally:
            part.unlink(missing_ok=True)
        sync(file.parent)


def sync(path: Path) -> None:
    """Flush a file, or the entries of a folder, to disk."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


@contextmanager
def named_faults(path: Path) -> Iterator[None]:
    """Turn what the file system says into NoSpace or StorageFailed that name ``path``."""
    try:
        yield
    except OSError as error:
        if error.errno in {errno.ENOSPC, errno.EDQUOT}:
            raise NoSpace(
                f"{path}: {error.strerror}", hint="make room on the head's disk", path=str(path)
            ) from error
        raise StorageFailed(
            f"{path}: {error.strerror}", hint="check disk and rights", path=str(path)
        ) from error
