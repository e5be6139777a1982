"""One image to all nodes at the same moment, over links of one rate: how near the bound.

The bound is F/R: what one link needs to carry the image once. Ours: whole agents over the real
broker, from the controller's accepting the rollout to the last `ready` that it received, SHA-512
included; the command line's own time is apart. Beside it, over the same links in the same run:
libtorrent with its defaults, aria2, uftp (multicast). Hosts are network namespaces on one bridge,
shaped both ways (tests/farm/network.py). Rounds alternate; medians; every copy is compared.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from datetime import datetime
from pathlib import Path

ROOT = Path(__file__).parents[1]
sys.path.insert(0, str(ROOT))

from benchmarks.peers.others import COMPETITORS, Course, NotThere, measured  # noqa: E402
from tests.farm.farm import SWARM_PORT, Farm, Image, farm_on_network  # noqa: E402
from tests.farm.network import Host, Network  # noqa: E402
from tests.farm.process import eventually  # noqa: E402

MIB = 1 << 20
LIMIT_S = 900
OURS = "distrib"


@dataclass
class Figures:
    """One competitor's runs: seconds of each host, by round."""

    rounds: list[list[float]] = field(default_factory=list)
    command_s: list[float] = field(default_factory=list)

    def last_over(self, bound_s: float) -> float:
        return round(statistics.median(max(run) for run in self.rounds) / bound_s, 3)

    def median_over(self, bound_s: float) -> float:
        return round(statistics.median(statistics.median(run) for run in self.rounds) / bound_s, 3)


@dataclass
class Track:
    """A farm whose agents run, and the links between them."""

    farm: Farm
    network: Network
    rate_mbit: float
    size_bytes: int
    scratch: Path

    @property
    def bound_s(self) -> float:
        return self.size_bytes * 8 / (self.rate_mbit * 1e6)

    @property
    def hosts(self) -> list[Host]:
        return [node.host for node in self.farm.nodes.values()]

    def ours(self, number: int) -> tuple[list[float], float]:
        """A rollout to all: seconds of each node from its acceptance, and of the command."""
        image = self.farm.publish(self.size_bytes, alias=f"course{number}")
        self._quiet()
        began_s = time.monotonic()
        started = self.farm.ask("rollout", "start", image.alias, "--nodes=all")
        command_s = time.monotonic() - began_s
        # Asked seldom: the asking must not be what is measured.
        time.sleep(self.bound_s * 0.9)
        ended = eventually("done", lambda: self._ended(started["id"]), limit_s=LIMIT_S, every_s=0.5)
        if ended["state"] != "done":
            raise AssertionError(f"rollout: {ended['state']}: {ended['summary']}")
        accepted = datetime.fromisoformat(ended["accepted_at"])
        seconds = [
            (datetime.fromisoformat(row["ready_at"]) - accepted).total_seconds()
            for row in ended["nodes"]
        ]
        self._compare(image)
        return seconds, command_s

    def other(self, name: str, number: int) -> list[float]:
        """Another program, over the same links."""
        file = self.scratch / "source" / f"course{number}.raw"
        file.parent.mkdir(exist_ok=True)
        with file.open("wb") as out:
            for _ in range(0, self.size_bytes, MIB):
                out.write(os.urandom(min(MIB, self.size_bytes)))
        self._quiet()
        try:
            course = Course(file, self.farm.head_host, self.hosts, self.rate_mbit, self.scratch)
            return measured(name, course)
        finally:
            file.unlink()

    def _ended(self, rollout: str) -> dict[str, object] | None:
        shown: dict[str, object] = self.farm.ask("rollout", "status", rollout)
        return shown if shown["state"] != "running" else None

    def _compare(self, image: Image) -> None:
        for node in self.farm.nodes.values():
            same = subprocess.run(["cmp", "-s", image.file, node.volume(image)], check=False)
            if same.returncode != 0:
                raise AssertionError(f"{node.name} has other bytes")

    def _quiet(self) -> None:
        """Until nothing moves on any link and nobody listens but agents and head."""

        def silent() -> bool:
            before = [self.network.sent_bytes(host) for host in self.network.hosts]
            time.sleep(0.5)
            after = [self.network.sent_bytes(host) for host in self.network.hosts]
            moved = sum(after) - sum(before)
            return moved < 200_000

        eventually("links are quiet", silent, limit_s=60)
        for host in self.hosts:
            listening = subprocess.run(
                [*host.prefix, "ss", "-Hltn"], capture_output=True, text=True, check=True
            ).stdout
            ports = {int(line.split()[3].rpartition(":")[2]) for line in listening.splitlines()}
            if ports - set(range(SWARM_PORT, SWARM_PORT + 4)):
                raise AssertionError(f"{host.address}: somebody of an earlier run listens: {ports}")


@contextmanager
def track(directory: Path, *, nodes: int, size_mb: int, rate_mbit: float) -> Iterator[Track]:
    """A farm with its agents online, each told the rate of its link."""
    with farm_on_network(directory / "farm", 0, rate_mbit=rate_mbit, names=nodes) as (farm, net):
        for number in range(1, nodes + 1):
            host = net.add_host(rate_mbit=rate_mbit)
            farm.add_node(f"wn{number}", host, swarm={"link_bps": int(rate_mbit * 125_000)})
        for node in farm.nodes.values():
            node.start()
        eventually(
            "all online",
            lambda: all(one["online"] for one in farm.ask("node", "list")["nodes"]),
            limit_s=60,
        )
        yield Track(farm, net, rate_mbit, size_mb * MIB, directory)


def compare(options: argparse.Namespace, say: Callable[[str], None]) -> dict[str, object]:
    """All competitors in turn, as often as asked."""
    names = [options.only] if options.only else [OURS, *COMPETITORS]
    figures = {name: Figures() for name in names}
    with tempfile.TemporaryDirectory() as scratch:
        course = track(
            Path(scratch), nodes=options.nodes, size_mb=options.size_mb, rate_mbit=options.rate_mbit
        )
        with course as running:
            for number in range(1, options.rounds + 1):
                for name in names:
                    if name == OURS:
                        seconds, command_s = running.ours(number)
                        figures[name].command_s.append(command_s)
                    else:
                        seconds = running.other(name, number)
                    figures[name].rounds.append(seconds)
                    say(f"round {number} {name}: last {max(seconds):.2f} s")
            bound_s = running.bound_s
    return {
        "nodes": options.nodes,
        "size_mb": options.size_mb,
        "rate_mbit": options.rate_mbit,
        "rounds": options.rounds,
        "bound_s": round(bound_s, 3),
        "last_over_bound": {name: one.last_over(bound_s) for name, one in figures.items()},
        "median_over_bound": {name: one.median_over(bound_s) for name, one in figures.items()},
        "last_s": {name: [round(max(r), 3) for r in f.rounds] for name, f in figures.items()},
        "command_s": [round(value, 3) for f in figures.values() for value in f.command_s],
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--nodes", type=int, default=16)
    parser.add_argument("--size-mb", type=int, default=64, help="size of the image in MiB")
    parser.add_argument("--rate-mbit", type=float, default=20.0, help="rate of every link")
    parser.add_argument("--rounds", type=int, default=3, help="runs of each competitor")
    parser.add_argument("--only", choices=[OURS, *COMPETITORS], help="one competitor")
    parser.add_argument("--json", action="store_true", help="print one JSON object")
    options = parser.parse_args()
    if os.geteuid() != 0:
        parser.exit(2, "distribution: network namespaces need root\n")
    try:
        figures = compare(options, lambda line: print(line, file=sys.stderr, flush=True))
    except NotThere as error:
        parser.exit(2, f"distribution: {error}\n")
    if options.json:
        print(json.dumps(figures))
        return
    for name, value in figures.items():
        print(f"{name:20} {value}")


if __name__ == "__main__":
    main()
