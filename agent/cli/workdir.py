"""A job's directory on its way to the guest and back: read and written as the user, by tar(1).

The agent never opens a user's file: the command that launches does, in the user's own process.
"""

from __future__ import annotations

import contextlib
import os
import subprocess
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import IO

from distrib.errors import OperatorError, StorageFailed

_ENVIRONMENT = {"PATH": os.defpath, "LC_ALL": "C"}


def write_all(fd: int, data: bytes) -> None:
    """Write every byte."""
    view = memoryview(data)
    while view:
        view = view[os.write(fd, view) :]


class Directory:
    """A directory that is copied in and out."""

    def __init__(self, path: Path) -> None:
        self._path = path

    def packed(self) -> IO[bytes]:
        """A tar of it. Raises OperatorError for what cannot be read."""
        spool = tempfile.TemporaryFile()  # noqa: SIM115 - the caller's
        done = subprocess.run(
            ["tar", "-c", "-C", str(self._path), "--sparse", "."],
            check=False,
            stdin=subprocess.DEVNULL,
            stdout=spool,
            stderr=subprocess.PIPE,
            env=_ENVIRONMENT,
        )
        if done.returncode != 0:
            spool.close()
            said = done.stderr.decode(errors="replace").strip().splitlines()
            raise OperatorError(
                f"--workdir {self._path}: {said[0] if said else 'tar failed'}",
                hint="every file in it must be readable",
            )
        spool.seek(0)
        return spool

    @contextlib.contextmanager
    def unpacking(self) -> Iterator[Callable[[bytes], None]]:
        """Where the bytes of a tar go that becomes the directory's content at the end.

        What lies there and is not in the tar stays. The guest wrote the tar: it is unpacked apart,
        where no link waits, and moved in without following one. Raises StorageFailed."""
        with tempfile.TemporaryFile() as spool:
            yield lambda data: write_all(spool.fileno(), data)
            if spool.seek(0, os.SEEK_END) == 0:
                return
            spool.seek(0)
            try:
                with tempfile.TemporaryDirectory(prefix=".distrib-", dir=self._path) as apart:
                    said = _unpacked(spool, Path(apart))
                    _move_in(Path(apart), self._path)
            except OSError as error:
                said = error.strerror or str(error)
            if said:
                raise StorageFailed(
                    f"{self._path}: not all came back: {said}",
                    hint="room in it, and permissions",
                    path=str(self._path),
                )


def _unpacked(spool: IO[bytes], apart: Path) -> str:
    """What tar(1) complains of, which keeps members and links to be from leaving a directory that
    is empty at first."""
    done = subprocess.run(
        ["tar", "-x", "-C", str(apart), "--no-same-owner", "--no-same-permissions",
         "--delay-directory-restore"],
        check=False,
        stdin=spool,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.PIPE,
        env=_ENVIRONMENT,
    )  # fmt: skip
    lines = done.stderr.decode(errors="replace").strip().splitlines()
    return "" if done.returncode == 0 else lines[0] if lines else "tar failed"


def _move_in(source: Path, target: Path) -> None:
    """Put what is in ``source`` in the place of what is in ``target``: files, links and
    directories, nothing else. Raises OSError."""
    source.chmod(0o700)
    for entry in list(os.scandir(source)):
        mode, place = entry.stat(follow_symlinks=False).st_mode, target / entry.name
        if entry.is_dir(follow_symlinks=False):
            if place.is_symlink():
                place.unlink()
            place.mkdir(mode=0o700, exist_ok=True)
            place.chmod(0o700)
            _move_in(Path(entry.path), place)
            place.chmod(mode & 0o777)
        elif entry.is_symlink():
            Path(entry.path).replace(place)
        elif entry.is_file(follow_symlinks=False):
            Path(entry.path).chmod(mode & 0o777)
            Path(entry.path).replace(place)
