"""Files that jobs write to, made over a volume: reflink copies, qcow2 overlays, whole copies."""

from __future__ import annotations

import errno
import fcntl
import os
import subprocess
from pathlib import Path
from typing import Final

from agent.cache import durable
from agent.cache.store import Volume
from distrib.errors import NoSpace, StorageFailed, ToolMissing

SECTOR_BYTES: Final = 512
_FICLONE: Final = 0x40049409  # linux/fs.h
_CANNOT_REFLINK: Final = frozenset(
    {errno.EOPNOTSUPP, errno.EXDEV, errno.EINVAL, errno.ENOTTY, errno.EPERM, errno.ETXTBSY}
)
_COPY_BYTES: Final = 8 << 20


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
            if error.errno in durable.NO_ROOM:
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


def clone(source_path: Path, target: Path) -> bool:
    """A reflink copy; False where the file system makes none. Raises NoSpace, StorageFailed."""
    source = os.open(source_path, os.O_RDONLY | os.O_CLOEXEC)
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
        if error.errno in durable.NO_ROOM:
            raise full_disk(target.parent, 0) from error
        raise StorageFailed(
            f"cloning {source_path}: {error.strerror}",
            hint="look at the kernel's log and the health of the disk",
            path=str(source_path),
        ) from error
    finally:
        os.close(source)
    return True


def copy(volume: Volume, target: Path) -> None:
    """A whole copy, allocated in full, of whole sectors. Raises NoSpace, StorageFailed."""
    allocate(target, whole_sectors(volume.size_bytes), mode=0o600)
    with durable.storage_errors("copying", target):
        source = os.open(volume.path, os.O_RDONLY | os.O_CLOEXEC)
        try:
            fd = os.open(target, os.O_WRONLY | os.O_CLOEXEC)
            try:
                left = volume.size_bytes
                while left:
                    moved = os.sendfile(fd, source, None, min(left, _COPY_BYTES))
                    if not moved:
                        raise OSError(f"{volume.path} ends before its {volume.size_bytes} bytes")
                    left -= moved
            finally:
                os.close(fd)
        finally:
            os.close(source)


def whole_sectors(size_bytes: int) -> int:
    """Devices and QEMU count in sectors; what an image lacks to a whole one is zeros."""
    return -(-size_bytes // SECTOR_BYTES) * SECTOR_BYTES


def overlay(volume: Volume, target: Path, *, timeout_s: float) -> None:
    """A qcow2 file over a volume. Raises ToolMissing, NoSpace, StorageFailed."""
    # The size is given: a device is larger than its image. QEMU counts in sectors.
    size_bytes = whole_sectors(volume.size_bytes)
    command = ["qemu-img", "create", "-q", "-f", "qcow2"]
    command += ["-b", str(volume.path.absolute()), "-F", "raw", str(target), str(size_bytes)]
    try:
        done = subprocess.run(
            command,
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
            errors="replace",
            timeout=timeout_s,
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
            f"qemu-img took more than {timeout_s:g} s for {target}",
            hint="look at the load and the health of the disk",
            path=str(target),
        ) from None
    if done.returncode == 0:
        target.chmod(0o600)
        return
    if os.strerror(errno.ENOSPC) in done.stderr:
        raise full_disk(target.parent, 0)
    raise StorageFailed(
        f"qemu-img: {done.stderr.strip()[-500:]}", hint="see the message", path=str(target)
    )
