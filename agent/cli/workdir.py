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

        What lies there and is not in the tar stays. tar(1) keeps members from leaving the
        directory. Raises StorageFailed."""
        with tempfile.TemporaryFile() as spool:
            yield lambda data: write_all(spool.fileno(), data)
            if spool.seek(0, os.SEEK_END) == 0:
                return
            spool.seek(0)
            done = subprocess.run(
                [
                    "tar",
                    "-x",
                    "-C",
                    str(self._path),
                    "--no-same-owner",
                    "--delay-directory-restore",
                ],
                check=False,
                stdin=spool,
                stdout=subprocess.DEVNULL,
                stderr=subprocess.PIPE,
                env=_ENVIRONMENT,
            )
            if done.returncode != 0:
                said = done.stderr.decode(errors="replace").strip().splitlines()
                raise StorageFailed(
                    f"{self._path}: not all came back: {said[0] if said else 'tar failed'}",
                    hint="room in it, and permissions",
                    path=str(self._path),
                )
