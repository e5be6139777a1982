"""Files that are replaced as a whole and on disk before anything relies on them.

The order is: temporary name, write, fsync, rename, fsync of the directory. A reader finds the old
bytes or the new ones, also after a power cut. What cannot be read is set aside as ``<name>.bad``.
"""

from __future__ import annotations

import errno
import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TypeVar

from distrib.errors import DiskFull, StateCorrupt, StorageFailed

BAD_SUFFIX = ".bad"

NO_ROOM = frozenset({errno.ENOSPC, errno.EDQUOT, errno.EFBIG})

T = TypeVar("T")


@contextmanager
def storage_errors(what: str, path: Path) -> Iterator[None]:
    """Turn an OSError of the block into StorageFailed that says what was tried, and where; into
    DiskFull, which is one, where room is all that it lacks."""
    try:
        yield
    except OSError as error:
        if error.errno in NO_ROOM:
            raise DiskFull(
                f"{what} {path}: {error.strerror}",
                hint="free space on that file system",
                path=str(path),
            ) from error
        raise StorageFailed(
            f"{what} {path}: {error.strerror or error}",
            hint="look at the kernel's log and the health of the disk",
            path=str(path),
        ) from error


def fsync_directory(directory: Path) -> None:
    """Make names that were made, renamed or removed in ``directory`` last."""
    fd = os.open(directory, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        os.fsync(fd)
    finally:
        os.close(fd)


def make_directory(directory: Path) -> None:
    """Make ``directory`` and its parents; each new name is on disk on return."""
    if directory.is_dir():
        return
    with storage_errors("making the directory", directory):
        if not directory.parent.is_dir():
            make_directory(directory.parent)
        directory.mkdir(exist_ok=True)
        fsync_directory(directory.parent)


def _fill(fd: int, data: bytes) -> None:
    view = memoryview(data)
    while view:
        view = view[os.write(fd, view) :]
    os.fsync(fd)


def replace(path: Path, data: bytes) -> None:
    """Put ``data`` in the place of ``path``, whole and durable. Raises StorageFailed.

    One writer per path: the temporary name is fixed, so that a crash leaves at most one of it and
    the next replacement takes it over.
    """
    temporary = path.with_name(f".{path.name}.tmp")
    flags = os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_NOFOLLOW | os.O_CLOEXEC
    with storage_errors("writing", path):
        fd = os.open(temporary, flags, 0o600)
        try:
            _fill(fd, data)
            temporary.replace(path)
        except OSError:
            temporary.unlink(missing_ok=True)
            raise
        finally:
            os.close(fd)
        fsync_directory(path.parent)


def write(path: Path, data: bytes) -> None:
    """Write a new file; its bytes are on disk on return, its name once its directory is. For
    directories that are filled and then renamed. Raises StorageFailed, and leaves no file."""
    flags = os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW | os.O_CLOEXEC
    with storage_errors("writing", path):
        fd = os.open(path, flags, 0o600)
        try:
            _fill(fd, data)
        except OSError:
            path.unlink(missing_ok=True)
            raise
        finally:
            os.close(fd)


def sweep(directory: Path) -> None:
    """Remove what interrupted replacements left in a directory. Raises StorageFailed."""
    with storage_errors("sweeping", directory):
        for temporary in directory.glob(".*.tmp"):
            temporary.unlink(missing_ok=True)


def stems(directory: Path) -> frozenset[str]:
    """What the files of a directory are named after: their names up to the first dot."""
    return frozenset(file.name.partition(".")[0] for file in directory.iterdir()) - {""}


def remove(path: Path) -> None:
    """Unlink ``path``; nothing when it is not there. Durable on return. Raises StorageFailed."""
    with storage_errors("removing", path):
        path.unlink(missing_ok=True)
        fsync_directory(path.parent)


def remove_directory(directory: Path) -> None:
    """Remove a directory of plain files and links, and follow none. Raises StorageFailed."""
    with storage_errors("removing", directory):
        try:
            entries = list(directory.iterdir())
        except FileNotFoundError:
            return
        for entry in entries:
            entry.unlink(missing_ok=True)
        directory.rmdir()
        fsync_directory(directory.parent)


def load(path: Path, parse: Callable[[bytes], T]) -> T:
    """Read and parse ``path``; ``parse`` raises ValueError for what it does not understand.

    Raises FileNotFoundError when there is none, and StateCorrupt once the file is set aside as
    ``<name>.bad`` (an earlier one of that name is overwritten).
    """
    try:
        return parse(path.read_bytes())
    except FileNotFoundError:
        raise
    except (OSError, ValueError) as error:
        first_line = (str(error).splitlines() or [type(error).__name__])[0]
        bad = path.with_name(path.name + BAD_SUFFIX)
        with storage_errors("setting aside", path):
            path.replace(bad)
            fsync_directory(path.parent)
        raise StateCorrupt(
            f"{path} cannot be read: {first_line}",
            hint=f"kept as {bad.name}; what it spoke of is verified anew",
            path=str(bad),
        ) from error
