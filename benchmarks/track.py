"""A farm of whole agents over shaped links, and what is timed on it.

Hosts are network namespaces on a bridge, or on two with a link between them, shaped both ways
(tests/farm/network.py). A node's clock runs from the controller's accepting the rollout to the
`ready` that it received. Every copy is compared; between two runs the links are quiet.
"""

from __future__ import annotations

import subprocess
import time
from collections.abc import Collection, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from datetime import datetime
from pathlib import Path
from typing import Any

from tests.farm.farm import SWARM_PORT, Farm, Image, Node, farm_on_network
from tests.farm.network import Host, Network
from tests.farm.process import eventually

MIB = 1 << 20
LIMIT = 6.0
"""After so many times the bound a run has failed."""

OWN_PORTS = range(SWARM_PORT, SWARM_PORT + 4)
"""What an agent listens on, for files, devices and stripes."""


def _ticks() -> tuple[int, int]:
    """Idle and all clock ticks of the machine (proc(5), /proc/stat)."""
    with Path("/proc/stat").open(encoding="ascii") as stat:
        ticks = [int(text) for text in stat.readline().split()[1:9]]
    return ticks[3] + ticks[4], sum(ticks)


@dataclass
class Processor:
    """The share of the whole machine's processors that was busy since this was made."""

    began: tuple[int, int] = field(default_factory=_ticks)

    def share(self) -> float:
        idle, total = (now - before for now, before in zip(_ticks(), self.began, strict=True))
        return round(1 - idle / max(total, 1), 3)


@dataclass(frozen=True)
class Started:
    """A rollout that was accepted."""

    rollout: str
    image: Image
    command_s: float


@dataclass
class Track:
    """A farm whose agents run, and the links between them."""

    farm: Farm
    network: Network
    rate_mbit: float
    size_bytes: int
    scratch: Path
    published: int = 0

    @property
    def bound_s(self) -> float:
        """What one link needs to carry the image once."""
        return self.size_bytes * 8 / (self.rate_mbit * 1e6)

    @property
    def hosts(self) -> list[Host]:
        return [node.host for node in self.farm.nodes.values()]

    @property
    def nodes(self) -> list[Node]:
        return list(self.farm.nodes.values())

    def publish(self) -> Image:
        """A new image of random bytes; nothing moves on return."""
        self.published += 1
        image = self.farm.publish(self.size_bytes, alias=f"course{self.published}")
        self.quiet()
        return image

    def start(self, image: Image, nodes: str = "all") -> Started:
        """Order a rollout."""
        began_s = time.monotonic()
        accepted = self.farm.ask("rollout", "start", image.alias, f"--nodes={nodes}")
        return Started(accepted["id"], image, time.monotonic() - began_s)

    def seconds(
        self, started: Started, *, but: Collection[str] = (), asked_from: float = 0.0
    ) -> dict[str, float]:
        """Seconds of each node from acceptance, once all (but those in ``but``) are ready.

        Asked seldom, and from ``asked_from`` times the bound on: the asking must not be what is
        measured."""
        time.sleep(asked_from * self.bound_s)

        def ready() -> dict[str, float] | None:
            shown = self.farm.ask("rollout", "status", started.rollout)
            accepted = datetime.fromisoformat(shown["accepted_at"])
            rows = {row["node"]: row for row in shown["nodes"]}
            if any(row["state"] == "failed" for name, row in rows.items() if name not in but):
                raise AssertionError(f"rollout: {shown['state']}: {shown['summary']}")
            came = {
                name: (datetime.fromisoformat(row["ready_at"]) - accepted).total_seconds()
                for name, row in rows.items()
                if row.get("ready_at")
            }
            return came if rows.keys() - set(but) <= came.keys() else None

        limit_s = LIMIT * self.bound_s + 30
        came: dict[str, float] = eventually("all are ready", ready, limit_s=limit_s, every_s=0.5)
        return came

    def half_way(self, node: Node, image: Image, share: float = 0.5) -> None:
        """Return once ``node`` has that share of the image."""

        def there() -> bool:
            found = node.image(image)
            return found is not None and found["bytes_done"] >= share * self.size_bytes

        eventually(f"{node.name} has {share:.0%}", there, limit_s=6 * self.bound_s, every_s=0.1)

    def compare(self, image: Image) -> None:
        """Every node has the same bytes, or AssertionError."""
        for node in self.nodes:
            same = subprocess.run(["cmp", "-s", image.file, node.volume(image)], check=False)
            if same.returncode != 0:
                raise AssertionError(f"{node.name} has other bytes")

    def in_order(self, image: Image) -> list[Node]:
        """The nodes as pieces reach them: those that have most come first."""

        def done(node: Node) -> int:
            found: dict[str, Any] = node.image(image) or {}
            return int(found.get("bytes_done", 0))

        return sorted(self.nodes, key=done, reverse=True)

    def quiet(self) -> None:
        """Until nothing moves on any link and nobody listens but agents and head."""

        def silent() -> bool:
            before = [self.network.sent_bytes(host) for host in self.network.hosts]
            time.sleep(0.5)
            after = [self.network.sent_bytes(host) for host in self.network.hosts]
            return sum(after) - sum(before) < 200_000

        eventually("links are quiet", silent, limit_s=60)
        for host in self.hosts:
            listening = subprocess.run(
                [*host.prefix, "ss", "-Hltn"], capture_output=True, text=True, check=True
            ).stdout
            ports = {int(line.split()[3].rpartition(":")[2]) for line in listening.splitlines()}
            if ports - set(OWN_PORTS):
                raise AssertionError(f"{host.address}: somebody of an earlier run listens: {ports}")


@contextmanager
def track(
    directory: Path,
    *,
    nodes: int,
    size_mb: int,
    rate_mbit: float,
    racks: int = 1,
    shaped: bool = True,
) -> Iterator[Track]:
    """A farm with its agents online, each told the rate of its link.

    With two ``racks`` the second half of the nodes is on a bridge of its own, and a link of the
    same rate joins the two; the head is in the first. Links that are not ``shaped`` carry what they
    can."""
    link_mbit = rate_mbit if shaped else None
    with farm_on_network(directory / "farm", 0, rate_mbit=link_mbit, names=nodes) as (farm, net):
        if racks == 2:
            net.add_rack(rate_mbit=rate_mbit)
        for number in range(1, nodes + 1):
            rack = 0 if racks == 1 or number <= nodes // 2 else 1
            host = net.add_host(rate_mbit=link_mbit, rack=rack)
            swarm = {"link_bps": int(rate_mbit * 125_000)}
            # The images of all rounds.
            cache = {"capacity_bytes": max(1 << 30, 8 * size_mb * MIB)}
            farm.add_node(f"wn{number}", host, swarm=swarm, cache=cache, rack=f"R{rack + 1}")
        for node in farm.nodes.values():
            node.start()
        running = Track(farm, net, rate_mbit, size_mb * MIB, directory)
        wait_online(running)
        yield running


def wait_online(running: Track) -> None:
    """Until the controller knows all agents."""

    def online() -> bool:
        return all(one["online"] for one in running.farm.ask("node", "list")["nodes"])

    eventually("all online", online, limit_s=60)
