"""Who is at the other end of a local connection, as the kernel names it."""

from __future__ import annotations

import grp
import os
import pwd
import socket
import struct
from collections.abc import Collection
from dataclasses import dataclass
from pathlib import Path

from distrib.errors import Forbidden

_UCRED = struct.Struct("3i")


@dataclass(frozen=True)
class Caller:
    """A connected process. ``admin`` may do everything; others what is theirs."""

    pid: int
    uid: int
    user: str
    admin: bool

    def require_admin(self, what: str) -> None:
        """Raise Forbidden unless the caller is an administrator."""
        if not self.admin:
            raise Forbidden(
                f"{what}: not for user {self.user}",
                hint="root, the agent's user and the groups in admin_groups may",
                user=self.user,
            )


def uid_of(connection: socket.socket) -> int:
    """The uid of the peer of a Unix socket. Raises OSError."""
    return _peer(connection)[1]


def caller_of(connection: socket.socket, *, admin_groups: Collection[str]) -> Caller:
    """The peer of a Unix socket, by SO_PEERCRED (unix(7))."""
    pid, uid, gid = _peer(connection)
    try:
        account = pwd.getpwuid(uid)
        user, groups = account.pw_name, os.getgrouplist(account.pw_name, gid)
    except KeyError:
        user, groups = str(uid), [gid]
    admin = uid in (0, os.geteuid()) or any(_name(group) in admin_groups for group in groups)
    return Caller(pid, uid, user, admin)


def owner_of_process(pid: int) -> int | None:
    """The uid that a process runs as, None when there is no such process."""
    try:
        return Path(f"/proc/{pid}").stat().st_uid
    except OSError:
        return None


def _peer(connection: socket.socket) -> tuple[int, int, int]:
    raw = connection.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, _UCRED.size)
    pid, uid, gid = _UCRED.unpack(raw)
    return pid, uid, gid


def _name(group: int) -> str:
    try:
        return grp.getgrgid(group).gr_name
    except KeyError:
        return str(group)
