"""Loop devices over files of the cache: attached, found again, detached (losetup(8)).

Which are there is read from sysfs, ``/sys/block/loopN/loop/backing_file``: the kernel follows the
renaming of a file, and marks one that is gone.
"""

from __future__ import annotations

import os
import subprocess
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from distrib.errors import StorageFailed, ToolMissing

_SYS_BLOCK: Final = Path("/sys/block")
_GONE: Final = " (deleted)"
_TIMEOUT_S: Final = 30.0


@dataclass(frozen=True)
class Loop:
    """An attached loop device. ``gone``: its file has no name any more. ``direct``: direct I/O."""

    device: Path
    backing: Path
    gone: bool
    direct: bool


def attached(under: Path) -> tuple[Loop, ...]:
    """The loop devices over files in ``under``, however deep."""
    found = []
    root = under.resolve()
    for described in sorted(_SYS_BLOCK.glob("loop*/loop/backing_file")):
        try:
            name = described.read_text().rstrip("\n")
            direct = (described.parent / "dio").read_text().strip() == "1"
        except OSError:
            continue  # detached meanwhile
        backing = Path(name.removesuffix(_GONE))
        if backing.is_relative_to(root):
            device = Path("/dev") / described.parts[-3]
            found.append(Loop(device, backing, name.endswith(_GONE), direct))
    return tuple(found)


def over(file: Path) -> Path | None:
    """The loop device over a file that has its name still."""
    whole = file.resolve()
    return next(
        (x.device for x in attached(file.parent) if x.backing == whole and not x.gone), None
    )


def attach(file: Path) -> Path:
    """Attach a file for reading and writing, with direct I/O; the device that it has already.

    Raises ToolMissing or StorageFailed."""
    there = over(file)
    if there is not None:
        return there
    made = _losetup("--find", "--show", "--nooverlap", "--direct-io=on", str(file))
    return Path(made.strip())


def detach(device: Path) -> None:
    """Detach a device, now or when its last user closes it. Raises StorageFailed."""
    _losetup("--detach", str(device))


def give_back(device: Path) -> None:
    """To root alone again, as the kernel makes them: its node outlives the detaching."""
    os.chown(device, 0, 0)
    device.chmod(0o600)


def _losetup(*arguments: str) -> str:
    try:
        done = subprocess.run(
            ["losetup", *arguments],
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
            errors="replace",
            timeout=_TIMEOUT_S,
            check=False,
            env={"PATH": "/usr/sbin:/usr/bin:/sbin:/bin", "LC_ALL": "C"},
        )
    except FileNotFoundError:
        raise ToolMissing(
            "losetup is not there", hint="install mount (util-linux)", tool="losetup"
        ) from None
    except subprocess.TimeoutExpired:
        raise StorageFailed(
            f"losetup took more than {_TIMEOUT_S:g} s", hint="see the kernel's log"
        ) from None
    if done.returncode != 0:
        raise StorageFailed(
            done.stderr.strip()[-500:] or "losetup failed",
            hint="is the module loop loaded, and is the agent root? see `losetup -l`",
        )
    return done.stdout
