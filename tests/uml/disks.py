"""Volume groups on the disks that user-mode Linux has, each test's own."""

from __future__ import annotations

import os
import shutil
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

DISKS = (Path("/dev/ubdb"), Path("/dev/ubdc"), Path("/dev/ubdd"))
VG = "vg0"
NO_UDEV = "activation{udev_sync=0 udev_rules=0}"
"""What the tools must be told where no udev runs, as here."""

_HEADER_BYTES = 2 << 20
_FORMER_BYTES = 16 << 20


def run(*command: str, check: bool = True) -> subprocess.CompletedProcess[str]:
    """Run a tool of the host, as an operator would."""
    done = subprocess.run(command, capture_output=True, text=True, check=False, timeout=100)
    if check and done.returncode != 0:
        raise AssertionError(f"{' '.join(command)}: {done.stdout}{done.stderr}")
    return done


@contextmanager
def volume_group(
    *disks: Path, name: str = VG, extent: str = "64k", former: bytes = b""
) -> Iterator[str]:
    """A new group, on the first disk unless told otherwise. ``former`` fills the
    first extents."""
    chosen = disks or DISKS[:1]
    clear()
    for disk in chosen if former else ():
        with disk.open("r+b") as device:
            block = (former * (1 << 20))[: 1 << 20]
            for _ in range(_FORMER_BYTES >> 20):
                device.write(block)
            device.seek(0)
            device.write(bytes(_HEADER_BYTES))
    run("vgcreate", "-y", "-q", "-s", extent, name, *map(str, chosen))
    try:
        yield name
    finally:
        clear()


def clear() -> None:
    """No mappings, and no physical volumes."""
    run("dmsetup", "remove_all", "--force")
    left = run("dmsetup", "ls").stdout
    assert "No devices found" in left, left
    for group in Path("/dev").iterdir():
        # Without udev, dmsetup leaves LVM's links.
        links = list(group.iterdir()) if group.is_dir() else []
        if links and all(link.is_symlink() and not link.exists() for link in links):
            shutil.rmtree(group)
    for disk in DISKS:
        with disk.open("r+b") as device:
            device.write(bytes(_HEADER_BYTES))
            os.fsync(device.fileno())


def device_bytes(path: Path) -> int:
    """The size of a file or of a device."""
    with path.open("rb") as device:
        return device.seek(0, os.SEEK_END)
