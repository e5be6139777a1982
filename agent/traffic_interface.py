"""The host's own network interfaces: whose an address is, what has passed, how fast the link is."""

from __future__ import annotations

import array
import fcntl
import ipaddress
import socket
import struct
from dataclasses import dataclass
from pathlib import Path

_SIOCGIFCONF = 0x8912
_IFREQ = struct.Struct("16s2x2x4s16x")
_ROOM = 256


@dataclass(frozen=True)
class Passed:
    """Bytes that an interface has received and sent since it was made."""

    received_bytes: int
    sent_bytes: int


def own_addresses() -> dict[str, str]:
    """The interface of each address of this host (its network namespace)."""
    found = {}
    for line in _lines(Path("/proc/net/if_inet6")):
        digits, name = line.split()[0], line.split()[-1]
        found[str(ipaddress.IPv6Address(int(digits, 16)))] = name
    buffer = array.array("B", bytes(_IFREQ.size * _ROOM))
    start, size = buffer.buffer_info()
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as asking:
        answer = fcntl.ioctl(asking, _SIOCGIFCONF, struct.pack("iL", size, start))
    used = struct.unpack("iL", answer)[0]
    for name, address in _IFREQ.iter_unpack(buffer.tobytes()[:used]):
        # A label of an address ("eth0:1") is no interface.
        found[str(ipaddress.IPv4Address(address))] = name.rstrip(b"\0").decode().split(":")[0]
    return found


def carrier(address: str, *, named: str = "") -> str | None:
    """The interface that carries the traffic of ``address``; of any address: of the default route.

    ``named`` is what the operator says that it is."""
    if named:
        return named
    if not ipaddress.ip_address(address).is_unspecified:
        return own_addresses().get(address)
    for line in _lines(Path("/proc/net/route"))[1:]:
        name, destination = line.split()[:2]
        if destination == "00000000":
            return name
    return None


def passed(interface: str) -> Passed | None:
    """The counters of an interface; None where there is none of this name."""
    for line in _lines(Path("/proc/net/dev")):
        name, colon, counters = line.partition(":")
        if colon and name.strip() == interface:
            numbers = counters.split()
            return Passed(int(numbers[0]), int(numbers[8]))
    return None


def speed_bps(interface: str) -> int:
    """What the interface says of its link, bytes per second; 0: nothing."""
    try:
        mbit = int((Path("/sys/class/net") / interface / "speed").read_text("ascii"))
    except (OSError, ValueError):
        return 0
    return max(mbit, 0) * 125_000


def _lines(path: Path) -> list[str]:
    try:
        return path.read_text("ascii").splitlines()
    except OSError:
        return []
