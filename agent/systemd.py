"""systemd's notification protocol (sd_notify(3)): ready, stopping, still alive."""

from __future__ import annotations

import os
import socket


def notify(state: str) -> None:
    """Tell the service manager; nothing outside of a Type=notify service."""
    path = os.environ.get("NOTIFY_SOCKET")
    if not path:
        return
    # A leading @ stands for the abstract name space.
    address = f"\0{path[1:]}" if path.startswith("@") else path
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM | socket.SOCK_CLOEXEC) as sender:
        sender.sendto(state.encode(), address)


def watchdog_interval_s() -> float | None:
    """How often to say WATCHDOG=1: half of what the unit asks for; None without a watchdog."""
    limit_us = os.environ.get("WATCHDOG_USEC")
    mine = os.environ.get("WATCHDOG_PID") in (None, str(os.getpid()))
    return int(limit_us) / 2_000_000 if limit_us and mine else None
