"""Real parts for the tests of the cache: loop devices, small file systems, a clock to turn."""

from __future__ import annotations

import os
import subprocess
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest

from agent.cache.records import ImageVersion

MIB = 1 << 20


class Clock:
    """A clock that moves when told."""

    def __init__(self) -> None:
        self.now = datetime(2026, 3, 1, 12, tzinfo=UTC)

    def __call__(self) -> datetime:
        return self.now

    def forward(self, **step: float) -> None:
        self.now += timedelta(**step)


@pytest.fixture
def clock() -> Clock:
    return Clock()


@pytest.fixture
def image() -> Callable[..., ImageVersion]:
    """Makes image versions: the n-th one, of any size; ``of`` names the identifier's number."""

    def make(n: int, size_bytes: int = MIB, *, of: int | None = None) -> ImageVersion:
        return ImageVersion(
            infohash=f"{n:064x}",
            identifier=f"{of or n:08x}-0000-4000-8000-000000000000",
            version=f"1.{n}",
            sha512=f"{n:0128x}",
            size_bytes=size_bytes,
            piece_bytes=1 << 18,
        )

    return make


@contextmanager
def loop_device(file: Path, size_bytes: int) -> Iterator[Path]:
    with file.open("wb") as disk:
        disk.write(os.urandom(min(size_bytes, MIB)))
        disk.truncate(size_bytes)
    found = subprocess.run(
        ["losetup", "--find", "--show", str(file)], capture_output=True, text=True, check=True
    )
    device = Path(found.stdout.strip())
    try:
        yield device
    finally:
        # The read-only flag of a sealed device outlives the detaching.
        subprocess.run(["blockdev", "--setrw", str(device)], check=True)
        subprocess.run(["losetup", "--detach", str(device)], check=True)


@contextmanager
def mounted(device: Path, at: Path) -> Iterator[Path]:
    at.mkdir(exist_ok=True)
    subprocess.run(["mount", str(device), str(at)], check=True)
    try:
        yield at
    finally:
        subprocess.run(["umount", str(at)], check=True)


def _need_root() -> None:
    if os.geteuid() != 0:
        pytest.skip("needs root for loop devices")


@pytest.fixture
def devices(tmp_path: Path) -> Iterator[Callable[..., list[Path]]]:
    """Attaches loop devices of so many bytes each; all are detached at the end."""
    _need_root()
    with ExitStack() as attached:

        def attach(*sizes: int) -> list[Path]:
            return [
                attached.enter_context(loop_device(tmp_path / f"disk-{os.urandom(4).hex()}", size))
                for size in sizes
            ]

        yield attach


@pytest.fixture
def file_system(tmp_path: Path) -> Iterator[Callable[..., Path]]:
    """Makes and mounts a file system of its own: its type and size, mkfs's arguments."""
    _need_root()
    with ExitStack() as made:

        def make(kind: str, size_bytes: int, *arguments: str) -> Path:
            device = made.enter_context(loop_device(tmp_path / f"{kind}.img", size_bytes))
            subprocess.run(
                [f"mkfs.{kind}", *arguments, str(device)], check=True, capture_output=True
            )
            return made.enter_context(mounted(device, tmp_path / kind))

        yield make
