"""Writable instances of sealed volumes, as files: a directory per lease.

``root.raw`` is a reflink copy where the file system can make one, else ``root.qcow2`` an overlay
over the volume; ``scratch.raw`` an allocated raw file; ``instance.json`` what was reserved. A
directory is filled under the name ``<lease>.new`` and renamed: an instance is whole or not there.
"""

from __future__ import annotations

import errno
import fcntl
import json
import os
import re
import stat
import subprocess
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from threading import RLock
from typing import Final, Literal

from agent.cache import durable
from agent.cache.store import Instance, Volume
from distrib.errors import Conflict, NoSpace, StorageFailed, ToolMissing

_FICLONE: Final = 0x40049409  # linux/fs.h
_CANNOT_REFLINK: Final = frozenset(
    {errno.EOPNOTSUPP, errno.EXDEV, errno.EINVAL, errno.ENOTTY, errno.EPERM, errno.ETXTBSY}
)
NO_ROOM: Final = frozenset({errno.ENOSPC, errno.EDQUOT, errno.EFBIG})
_LEASE: Final = re.compile(r"[A-Za-z0-9][A-Za-z0-9_-]{0,63}")
_SECTOR_BYTES: Final = 512
_DESCRIPTION: Final = "instance.json"


@dataclass(frozen=True)
class _Described:
    instance: Instance
    cow_bytes: int
    scratch_bytes: int


def allocate(path: Path, size_bytes: int, *, mode: int) -> None:
    """Make a file of ``size_bytes`` with all its blocks allocated, durably.

    Raises NoSpace, and leaves no file, when the file system has not the room. Wants a file system
    that has fallocate (ext4, XFS, Btrfs, tmpfs): the C library's stand-in writes to every block.
    """
    with durable.storage_errors("allocating", path):
        fd = os.open(path, os.O_RDWR | os.O_CREAT | os.O_NOFOLLOW | os.O_CLOEXEC, mode)
        try:
            os.fchmod(fd, mode)
            os.posix_fallocate(fd, 0, size_bytes)
            os.fsync(fd)
        except OSError as error:
            path.unlink(missing_ok=True)
            if error.errno in NO_ROOM:
                raise full_disk(path.parent, size_bytes) from error
            raise
        finally:
            os.close(fd)


def free_on_disk_bytes(path: Path) -> int:
    """What the file system of ``path`` has left for anybody."""
    found = os.statvfs(path)
    return found.f_bavail * found.f_frsize


def full_disk(path: Path, need_bytes: int) -> NoSpace:
    """NoSpace for a file system that others have filled."""
    free_bytes = free_on_disk_bytes(path)
    return NoSpace(
        f"{need_bytes} bytes are needed, the file system of {path} has {free_bytes} left",
        hint="free space on that file system; something else than the cache fills it",
        path=str(path),
        need_bytes=need_bytes,
        free_bytes=free_bytes,
    )


def give_to(instance: Instance, uid: int) -> None:
    """Give an instance's files to a user, who alone may open them. Raises StorageFailed."""
    with durable.storage_errors("giving away", instance.path):
        for path in filter(None, (instance.path, instance.scratch)):
            os.chown(path, uid, -1, follow_symlinks=False)
            path.chmod(0o600)
        for home in (instance.path.parent, instance.path.parent.parent):
            home.chmod(stat.S_IMODE(home.stat().st_mode) | 0o111)


class Instances:
    """A directory of instances. ``lock`` is its store's: ``make`` takes it, except while an
    instance is filled; the others are called under it."""

    def __init__(
        self, root: Path, lock: RLock, *, reflink: bool = True, tool_timeout_s: float = 60.0
    ) -> None:
        self._root = root
        self._lock = lock
        self._making: dict[str, _Described] = {}
        self._reflink = reflink
        self._tool_timeout_s = tool_timeout_s
        durable.make_directory(root)
        for leftover in [*root.glob("*.new"), *root.glob("*.gone")]:
            durable.remove_directory(leftover)

    @property
    def root(self) -> Path:
        return self._root

    def make(
        self,
        volume: Volume,
        lease: str,
        *,
        cow_bytes: int,
        scratch_bytes: int,
        check_room: Callable[[int], None],
    ) -> Instance:
        """Make an instance; the same one when the lease has it. It counts from ``check_room`` on.

        Raises Conflict, NoSpace, StorageFailed or ToolMissing, and then leaves nothing behind."""
        home = self._home(lease)
        with self._lock:
            there = self._there(home, volume)
            if there is not None:
                return there
            check_room(cow_bytes + scratch_bytes)
            planned = Instance(lease, volume.infohash, home / "root.raw", "raw", False, None)
            self._making[lease] = _Described(planned, cow_bytes, scratch_bytes)
        new = home.with_name(f"{lease}.new")
        try:
            for leftover in (new, home):  # a directory without a description is half removed
                durable.remove_directory(leftover)
            durable.make_directory(new)
            try:
                self._fill(new, volume, lease, cow_bytes, scratch_bytes)
                with durable.storage_errors("naming", home):
                    new.rename(home)
                    durable.fsync_directory(self._root)
            except BaseException:
                durable.remove_directory(new)
                raise
        finally:
            with self._lock:
                del self._making[lease]
        made = self._read(home)
        if made is None:
            raise StorageFailed(
                f"{home} was made and cannot be read back",
                hint="look at the health of the disk",
                path=str(home),
            )
        return made.instance

    def _there(self, home: Path, volume: Volume) -> Instance | None:
        """The lease's instance, if it has one. Raises Conflict when none can be made."""
        there = self._read(home)
        if there is not None and there.instance.infohash == volume.infohash:
            return there.instance
        if there is not None or home.name in self._making:
            raise Conflict(
                f"lease {home.name} has an instance of another image, or one is being made",
                hint="release the lease",
                lease=home.name,
            )
        if not volume.sealed:
            raise Conflict(
                f"volume {volume.infohash} is not sealed: no instance of it can be made",
                hint="wait until the image is ready",
                infohash=volume.infohash,
            )
        return None

    def _fill(
        self, new: Path, volume: Volume, lease: str, cow_bytes: int, scratch_bytes: int
    ) -> None:
        format_ = self._make_root(volume, new)
        if scratch_bytes > 0:
            allocate(new / "scratch.raw", scratch_bytes, mode=0o600)
        described = {
            "v": 1,
            "lease": lease,
            "infohash": volume.infohash,
            "format": format_,
            "cow_bytes": cow_bytes,
            "scratch_bytes": scratch_bytes,
        }
        durable.replace(new / _DESCRIPTION, json.dumps(described).encode())

    def all(self) -> tuple[Instance, ...]:
        """All instances that are there."""
        return tuple(one.instance for one in self._described())

    def drop(self, lease: str) -> None:
        """Remove the lease's instance; nothing when there is none. Raises StorageFailed."""
        home = self._home(lease)
        gone = home.with_name(f"{lease}.gone")
        durable.remove_directory(gone)
        if home.is_dir():
            with durable.storage_errors("removing", home):
                home.rename(gone)
            durable.remove_directory(gone)

    def stands_on(self, infohash: str) -> tuple[str, ...]:
        """The leases whose instances stand on a volume."""
        found = (one.instance for one in self._counted())
        return tuple(one.lease for one in found if one.infohash == infohash)

    def used_bytes(self) -> int:
        """What the instances may take: the reserved copy-on-write and scratch bytes, or what an
        overlay has grown to where that is more.

        The bytes of a reflink copy cannot be told from those it shares with the volume (st_blocks
        counts both), so it counts as reserved."""
        return sum(
            max(one.cow_bytes, _overlay_bytes(one.instance)) + one.scratch_bytes
            for one in self._counted()
        )

    def refuse_if_stood_on(self, infohash: str) -> None:
        """Raise Conflict when an instance stands on the volume."""
        leases = self.stands_on(infohash)
        if leases:
            raise Conflict(
                f"volume {infohash} carries the instances of {', '.join(leases)}",
                hint="release these leases first",
                infohash=infohash,
            )

    def _home(self, lease: str) -> Path:
        if not _LEASE.fullmatch(lease):
            raise ValueError(f"not a lease: {lease!r}")
        return self._root / lease

    def _described(self) -> list[_Described]:
        homes = (h for h in sorted(self._root.iterdir()) if _LEASE.fullmatch(h.name))
        return [one for one in map(self._read, homes) if one is not None]

    def _counted(self) -> list[_Described]:
        """What is there and what is being made."""
        there = {one.instance.lease: one for one in self._described()}
        return list((self._making | there).values())

    def _read(self, home: Path) -> _Described | None:
        try:
            found = json.loads((home / _DESCRIPTION).read_bytes())
            format_: Literal["raw", "qcow2"] = "raw" if found["format"] == "raw" else "qcow2"
            scratch_bytes = int(found["scratch_bytes"])
            return _Described(
                Instance(
                    lease=home.name,
                    infohash=str(found["infohash"]),
                    path=home / f"root.{format_}",
                    format=format_,
                    block=False,
                    scratch=home / "scratch.raw" if scratch_bytes > 0 else None,
                ),
                int(found["cow_bytes"]),
                scratch_bytes,
            )
        except (OSError, ValueError, KeyError, TypeError):
            return None

    def _make_root(self, volume: Volume, home: Path) -> Literal["raw", "qcow2"]:
        if self._reflink and not volume.block and self._clone(volume, home / "root.raw"):
            return "raw"
        self._overlay(volume, home / "root.qcow2")
        return "qcow2"

    def _clone(self, volume: Volume, target: Path) -> bool:
        source = os.open(volume.path, os.O_RDONLY | os.O_CLOEXEC)
        try:
            fd = os.open(target, os.O_RDWR | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600)
            try:
                fcntl.ioctl(fd, _FICLONE, source)
            finally:
                os.close(fd)
        except OSError as error:
            target.unlink(missing_ok=True)
            if error.errno in _CANNOT_REFLINK:
                return False
            if error.errno in NO_ROOM:
                raise full_disk(self._root, 0) from error
            raise StorageFailed(
                f"cloning {volume.path}: {error.strerror}",
                hint="look at the kernel's log and the health of the disk",
                path=str(volume.path),
            ) from error
        finally:
            os.close(source)
        return True

    def _overlay(self, volume: Volume, target: Path) -> None:
        # The size is given: a device is larger than its image. QEMU counts in sectors.
        size_bytes = -(-volume.size_bytes // _SECTOR_BYTES) * _SECTOR_BYTES
        command = ["qemu-img", "create", "-q", "-f", "qcow2"]
        command += ["-b", str(volume.path.absolute()), "-F", "raw", str(target), str(size_bytes)]
        try:
            done = subprocess.run(
                command,
                stdin=subprocess.DEVNULL,
                capture_output=True,
                text=True,
                errors="replace",
                timeout=self._tool_timeout_s,
                check=False,
                env={"PATH": os.environ.get("PATH", os.defpath), "LC_ALL": "C"},
            )
        except FileNotFoundError:
            raise ToolMissing(
                "qemu-img is not there, and the file system cannot make reflink copies",
                hint="install qemu-utils, or put the cache on XFS or Btrfs",
                tool="qemu-img",
            ) from None
        except subprocess.TimeoutExpired:
            raise StorageFailed(
                f"qemu-img took more than {self._tool_timeout_s:g} s for {target}",
                hint="look at the load and the health of the disk",
                path=str(target),
            ) from None
        if done.returncode == 0:
            target.chmod(0o600)
            return
        if os.strerror(errno.ENOSPC) in done.stderr:
            raise full_disk(self._root, 0)
        raise StorageFailed(
            f"qemu-img: {done.stderr.strip()[-500:]}", hint="see the message", path=str(target)
        )


def _overlay_bytes(instance: Instance) -> int:
    if instance.format != "qcow2":
        return 0
    try:
        return instance.path.stat().st_blocks * _SECTOR_BYTES
    except OSError:
        return 0
