"""Hosts as network namespaces on one bridge, with links of a given rate in both directions.

Recipe: a bridge in a namespace of its own, a veth pair per host, a token bucket (tc-tbf(8)) on both
ends. Everything goes with the namespaces.
"""

from __future__ import annotations

import itertools
import os
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field

_numbers = itertools.count(1)


@dataclass(frozen=True)
class Host:
    """One namespace with an address. ``prefix`` goes before a command to run it there."""

    namespace: str
    address: str

    @property
    def prefix(self) -> tuple[str, ...]:
        return ("ip", "netns", "exec", self.namespace)


@dataclass
class Network:
    """A bridge and its hosts; made by ``shaped_network``."""

    name: str
    hosts: list[Host] = field(default_factory=list)

    def add_rack(self, *, rate_mbit: float) -> None:
        """A second bridge, joined to the first by a link that carries ``rate_mbit`` each way."""
        inside = ("netns", "exec", self.name, "ip", "link")
        _ip(*inside, "add", "br1", "type", "bridge")
        _ip(*inside, "set", "br1", "up")
        _ip(*inside, "add", "up0", "type", "veth", "peer", "name", "up1")
        for rack, end in enumerate(("up0", "up1")):
            _ip(*inside, "set", end, "master", f"br{rack}", "up")
            _tc(self.name, "qdisc", "replace", "dev", end, "root", *_shaper(rate_mbit))

    def between_racks_bytes(self) -> tuple[int, int]:
        """What went over the link between the racks: into the second, and back."""
        into, back = (self._sent_bytes(self.name, end) for end in ("up0", "up1"))
        return into, back

    def add_host(self, *, rate_mbit: float | None = None, rack: int = 0) -> Host:
        """A host; its link carries ``rate_mbit`` each way, or as much as it can."""
        number = len(self.hosts) + 1
        host = Host(f"{self.name}-h{number}", f"10.77.{number // 250}.{number % 250 + 1}")
        near, far = f"p{number}", "eth0"
        _ip("netns", "add", host.namespace)
        self.hosts.append(host)
        inside = ("netns", "exec", self.name, "ip")
        _ip(*inside, "link", "add", near, "type", "veth", "peer", far, "netns", host.namespace)
        _ip(*inside, "link", "set", near, "master", f"br{rack}", "up")
        _ip("-n", host.namespace, "link", "set", "lo", "up")
        _ip("-n", host.namespace, "addr", "add", f"{host.address}/16", "dev", far)
        _ip("-n", host.namespace, "link", "set", far, "up")
        # As most clusters have it; what the kernel of this machine prefers may be BBR, which fills
        # the queues of a slow link.
        _ip(
            "-n", host.namespace, "route", "replace", "10.77.0.0/16", "dev", far,
            "src", host.address, "congctl", "cubic",
        )  # fmt: skip
        if rate_mbit is not None:
            self.shape(host, rate_mbit)
        return host

    def shape(self, host: Host, rate_mbit: float) -> None:
        """Give a host's link another rate, each way."""
        near = f"p{self.hosts.index(host) + 1}"
        shaper = _shaper(rate_mbit)
        _tc(self.name, "qdisc", "replace", "dev", near, "root", *shaper)
        _tc(host.namespace, "qdisc", "replace", "dev", "eth0", "root", *shaper)

    def cut(self, host: Host) -> None:
        """Lose all that comes from and goes to a host, which keeps its carrier: nobody is told."""
        self._forward(host, "0")

    def mend(self, host: Host) -> None:
        """Take back ``cut``."""
        self._forward(host, "3")

    def _forward(self, host: Host, state: str) -> None:
        # States of a bridge's port (bridge(8)): 0 disabled, 3 forwarding.
        port = f"p{self.hosts.index(host) + 1}"
        bridge = ("netns", "exec", self.name, "bridge", "link", "set", "dev", port, "state", state)
        _ip(*bridge)

    def sent_bytes(self, host: Host) -> int:
        """What a host has put on its link since it was made."""
        return self._sent_bytes(host.namespace, "eth0")

    def _sent_bytes(self, namespace: str, device: str) -> int:
        counter = f"/sys/class/net/{device}/statistics/tx_bytes"
        command = ["ip", "netns", "exec", namespace, "cat", counter]
        return int(subprocess.run(command, capture_output=True, text=True, check=True).stdout)


@contextmanager
def shaped_network() -> Iterator[Network]:
    """A bridge without hosts; all that was added is gone afterwards. Needs root."""
    network = Network(f"dt{os.getpid()}-{next(_numbers)}")
    _ip("netns", "add", network.name)
    try:
        _ip("-n", network.name, "link", "add", "br0", "type", "bridge")
        _ip("-n", network.name, "link", "set", "br0", "up")
        yield network
    finally:
        for host in network.hosts:
            subprocess.run(["ip", "netns", "delete", host.namespace], check=False)
        _ip("netns", "delete", network.name)


def _shaper(rate_mbit: float) -> tuple[str, ...]:
    return ("tbf", "rate", f"{rate_mbit}mbit", "burst", "128kb", "latency", "30ms")


def _ip(*arguments: str) -> None:
    subprocess.run(["ip", *arguments], check=True, capture_output=True)


def _tc(namespace: str, *arguments: str) -> None:
    subprocess.run(
        ["ip", "netns", "exec", namespace, "tc", *arguments], check=True, capture_output=True
    )
