"""Store ``file``: a thick raw file per volume, in a directory with a quota.

``volumes/<infohash>/image.raw`` is allocated in full before the first byte; the directory is made
as ``<infohash>.new`` and goes as ``<infohash>.gone``, so a volume is whole or not there, and an
interrupted operation is finished by the next start or by doing it again.

**Seal.** The file is made 0444, but root ignores modes: what counts is the mark ``sealed`` beside
it, written last, with the file's inode, size and modification time. Whoever writes to the file
moves its time, the mark no longer fits, and the volume is verified anew. (A plain file rather
than an extended attribute: every file system keeps it, and every backup and copy shows it.)

**Quota.** Volumes count by their nominal size: it is theirs from ``reserve`` on, whatever the file
system has written. ``st_blocks`` would count a reflink copy's shared blocks twice, and metadata
that no image has. Instances: see ``instances.py``.
"""

from __future__ import annotations

import json
import os
import stat
from collections.abc import Collection, Iterator
from contextlib import contextmanager
from pathlib import Path
from threading import RLock
from typing import Final

from agent.cache import durable
from agent.cache.homes import HomeStore
from agent.cache.instances import Instances
from agent.cache.roots import allocate, free_on_disk_bytes, full_disk
from agent.cache.store import Space, Volume, WriteTarget
from distrib.errors import Conflict, NoSpace, StorageFailed
from distrib.swarm import IMAGE_FILE

_MARK: Final = "sealed"
_PROBE_BYTES: Final = 4096


class FileStore(HomeStore):
    """Volumes as files. Safe to call from several threads."""

    name: str = "file"
    volume_per_device: bool = False

    def __init__(
        self, root: Path, capacity_bytes: int, *, reflink: bool = True, tool_timeout_s: float = 60.0
    ) -> None:
        """``root`` is the cache directory; one process at a time. Finishes what was interrupted."""
        self._root = root
        self._capacity_bytes = capacity_bytes
        lock = RLock()
        instances = Instances(
            root / "instances", lock, reflink=reflink, tool_timeout_s=tool_timeout_s
        )
        super().__init__(root / "volumes", instances, lock)

    def space(self) -> Space:
        with self._lock:
            used = sum(v.size_bytes for v in self.volumes()) + self._instances.used_bytes()
            return Space(self._capacity_bytes, used)

    def check_room(self, size_bytes: int, *, without: Collection[str] = ()) -> None:
        gone = frozenset(without)
        with self._lock:
            freed = sum(v.size_bytes for v in self.volumes() if v.infohash in gone)
            used = self.space().used_bytes - freed
            if used + size_bytes > self._capacity_bytes:
                raise NoSpace(
                    f"{size_bytes} bytes are needed, the cache {self._root} uses {used} of the "
                    f"{self._capacity_bytes} that it may",
                    hint="raise the cache's capacity, unpin or evict images, or end jobs",
                    path=str(self._root),
                    need_bytes=size_bytes,
                    free_bytes=max(0, self._capacity_bytes - used),
                )
            if size_bytes > free_on_disk_bytes(self._root) + freed:
                raise full_disk(self._root, size_bytes)

    def reserve(self, infohash: str, size_bytes: int) -> Volume:
        if size_bytes <= 0:
            raise ValueError(f"a volume of {size_bytes} bytes")
        home = self._home(infohash)
        with self._lock:
            there = self._read(home)
            if there is not None:
                if there.size_bytes != size_bytes:
                    raise Conflict(
                        f"volume {infohash} has {there.size_bytes} bytes, not {size_bytes}",
                        hint="evict it first",
                        infohash=infohash,
                    )
                return there
            self.check_room(size_bytes)
            with self._making(home) as new:
                allocate(new / IMAGE_FILE, size_bytes, mode=0o644)
            return self._existing(infohash)

    @contextmanager
    def writing(self, volume: Volume) -> Iterator[WriteTarget]:
        home = self._home(self._unsealed(volume.infohash).infohash)
        image = home / IMAGE_FILE
        with durable.storage_errors("opening", image):
            image.chmod(0o644)  # an interrupted seal may have got as far as the mode
            fd = os.open(image, os.O_RDWR | os.O_NOFOLLOW | os.O_CLOEXEC)
        try:
            yield WriteTarget(home, "pread", fd)
            with durable.storage_errors("flushing", image):
                os.fsync(fd)
        finally:
            os.close(fd)

    def seal(self, volume: Volume) -> Volume:
        home = self._home(volume.infohash)
        there = self._existing(volume.infohash)
        if there.sealed:
            return there
        image = home / IMAGE_FILE
        with durable.storage_errors("sealing", image):
            fd = os.open(image, os.O_RDONLY | os.O_NOFOLLOW | os.O_CLOEXEC)
            try:
                os.fchmod(fd, 0o444)
                os.fsync(fd)
                # So that the first and last block below come from the disk.
                os.posix_fadvise(fd, 0, 0, os.POSIX_FADV_DONTNEED)
                found = os.fstat(fd)
            finally:
                os.close(fd)
            if found.st_size != volume.size_bytes:
                raise StorageFailed(
                    f"{image} has {found.st_size} bytes, the image {volume.size_bytes}",
                    hint="evict the image; something else writes into the cache",
                    infohash=volume.infohash,
                )
            durable.fsync_directory(home)
            read_ends(image, volume.size_bytes)
        mark = {"v": 1, "infohash": volume.infohash, **_identity(found)}
        durable.replace(home / _MARK, json.dumps(mark).encode())
        return self._existing(volume.infohash)

    def unseal(self, volume: Volume) -> Volume:
        home = self._home(volume.infohash)
        with self._lock:
            self._instances.refuse_if_stood_on(volume.infohash)
            durable.remove(home / _MARK)
            with durable.storage_errors("unsealing", home):
                (home / IMAGE_FILE).chmod(0o644)
            return self._existing(volume.infohash)

    def _check_instance_room(self, need_bytes: int) -> None:
        self.check_room(need_bytes)

    def _read(self, home: Path) -> Volume | None:
        try:
            found = (home / IMAGE_FILE).lstat()
        except (FileNotFoundError, NotADirectoryError):
            return None
        if not stat.S_ISREG(found.st_mode):
            return None
        return Volume(
            infohash=home.name,
            path=home / IMAGE_FILE,
            size_bytes=found.st_size,
            block=False,
            sealed=_fits(home / _MARK, found),
        )


def read_ends(path: Path, size_bytes: int) -> None:
    """Open by name as a launcher would, and read the first and the last block. Raises OSError."""
    fd = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
    try:
        for offset in (0, max(0, size_bytes - _PROBE_BYTES)):
            want = min(_PROBE_BYTES, size_bytes)
            if len(os.pread(fd, want, offset)) != want:
                raise OSError(f"ends before its {size_bytes} bytes")
    finally:
        os.close(fd)


def _identity(found: os.stat_result) -> dict[str, int]:
    return {"inode": found.st_ino, "size_bytes": found.st_size, "mtime_ns": found.st_mtime_ns}


def _fits(mark: Path, found: os.stat_result) -> bool:
    try:
        said = json.loads(mark.read_bytes())
    except (OSError, ValueError):
        return False
    return isinstance(said, dict) and _identity(found).items() <= said.items()
