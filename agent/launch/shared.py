"""A user's directory that a guest shares: opened as that user, and looked at again in QEMU.

A path is only a name: between a look at it and its use its owner may put a link in its place. So
the rules are held against a directory that was opened in the user's name, and the guest, which
starts suspended, runs on only when the directory that its QEMU has open is that one.
"""

from __future__ import annotations

import json
import os
import pwd
import stat
import subprocess
import sys
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import Any, Final

from agent.launch.domain import Share
from distrib.errors import Forbidden, LaunchFailed, TimedOut

LIMIT_S: Final = 20.0
"""A home directory may lie on a file server that is away."""

# Runs as the user: what the user may not reach or read cannot be opened here.
_OPEN: Final = """
import json, os, sys
fd = os.open(sys.argv[1], os.O_RDONLY | os.O_DIRECTORY)
there = os.fstat(fd)
path = os.readlink(f"/proc/self/fd/{fd}")
print(json.dumps([path, there.st_dev, there.st_ino, there.st_uid]))
"""


@dataclass(frozen=True)
class Opened:
    """A directory as its user opened it: without links in its path, and what it is."""

    path: Path
    device: int
    inode: int
    owner: int


def opened_as(uid: int, directory: Path) -> Opened:
    """Open a directory as a user would. Raises Forbidden where the user could not, TimedOut."""
    try:
        done = subprocess.run(
            [sys.executable, "-I", "-c", _OPEN, os.fsencode(directory)],
            stdin=subprocess.DEVNULL,
            capture_output=True,
            check=False,
            timeout=LIMIT_S,
            cwd="/",
            env={"LC_ALL": "C.UTF-8"},
            **_account(uid),
        )
    except subprocess.TimeoutExpired:
        raise TimedOut(
            f"{directory} could not be opened in {LIMIT_S:g} s", hint="is its file server there?"
        ) from None
    except OSError as error:
        raise LaunchFailed(
            f"nothing can be run as user {uid} to open {directory}: {error.strerror}",
            hint="the agent must be root, and its interpreter readable for all",
        ) from None
    if done.returncode != 0:
        raise Forbidden(
            f"{directory} is no directory that you may read",
            hint="name one of your own; without --share it is copied",
        )
    path, device, inode, owner = json.loads(done.stdout)
    return Opened(Path(path), device, inode, owner)


def share_of(directory: Path, uid: int, roots: tuple[Path, ...]) -> Share:
    """What is shared. Raises Forbidden unless the site shares what lies there, and it is the
    user's own; TimedOut."""
    # Before anything is opened: whoever may share nothing learns nothing of a path.
    if not roots:
        raise _not_shared(directory)
    if uid == 0:
        raise Forbidden(f"{directory}: root shares nothing with a guest", hint="as another user")
    found = opened_as(uid, directory)
    if not any(found.path.is_relative_to(root.resolve()) for root in roots):
        raise _not_shared(directory)
    if found.owner != uid:
        raise Forbidden(f"{directory} is no directory of your own", hint="name one that is")
    return Share(PurePosixPath(found.path), identity=(found.device, found.inode))


def require_held(domain: str, share: Share) -> None:
    """Raises LaunchFailed unless every QEMU of that name has the very directory open that was
    looked at."""
    held = [_directories(pid) for pid in _qemus(domain)]
    if not held:
        raise LaunchFailed(
            f"no QEMU of {domain} is seen, so what it shares cannot be looked at",
            hint="agent and libvirt must see the same processes (no containers of their own)",
        )
    if not all(share.identity in one for one in held):
        raise LaunchFailed(
            f"{share.path} is not the directory any more that was to be shared",
            hint="leave it in its place while a job is started",
        )


def _not_shared(directory: Path) -> Forbidden:
    return Forbidden(
        f"{directory} may not be shared with a guest",
        hint="setting launch.share_roots; without --share it is copied",
    )


def _account(uid: int) -> dict[str, Any]:
    """Whom a child is to be. Nothing where we are that user; one that is not root can be nobody
    else, and subprocess says so. Raises Forbidden."""
    if uid == os.geteuid():
        return {}
    try:
        account = pwd.getpwuid(uid)
    except KeyError:
        raise Forbidden(
            f"uid {uid} has no account on this node", hint="a share is opened in a user's name"
        ) from None
    groups = os.getgrouplist(account.pw_name, account.pw_gid)
    return {"user": uid, "group": account.pw_gid, "extra_groups": groups}


def _qemus(domain: str) -> Iterator[int]:
    """Processes that libvirt started for a domain. Somebody may run one that only looks like it:
    then its own launch fails."""
    wanted = f"guest={domain},".encode()
    for entry in Path("/proc").iterdir():
        if entry.name.isdecimal():
            with suppress(OSError):
                words = (entry / "cmdline").read_bytes().split(b"\0")
                if b"-name" in words and any(word.startswith(wanted) for word in words):
                    yield int(entry.name)


def _directories(pid: int) -> set[tuple[int, int]]:
    found = set()
    with suppress(OSError):
        for entry in Path(f"/proc/{pid}/fd").iterdir():
            with suppress(OSError):
                status = entry.stat()
                if stat.S_ISDIR(status.st_mode):
                    found.add((status.st_dev, status.st_ino))
    return found
