"""How well caps are kept: bytes on a node's link over 10 s windows, over the cap, as it changes.

A head and two nodes in network namespaces (tests/farm/network.py), real agents. What the last node
of the chain receives is measured: capped by class and then by rollout, as it fetches and as its
parent serves. Nobody reconnects: the caps are set while the rollout runs.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

ROOT = Path(__file__).parents[1]
sys.path.insert(0, str(ROOT))

from tests.farm.farm import Farm, farm_on_network  # noqa: E402
from tests.farm.network import Host, Network  # noqa: E402
from tests.farm.process import eventually  # noqa: E402

MIB = 1 << 20
WINDOW_S = 10.0
STEP_S = 0.25
SETTLE_S = 3.0


def received(host: Host) -> int:
    path = "/sys/class/net/eth0/statistics/rx_bytes"
    done = subprocess.run([*host.prefix, "cat", path], capture_output=True, text=True, check=True)
    return int(done.stdout)


def count_headers(network: Network, host: Host) -> None:
    """Have the card count what a wire would carry: else 64 KiB pass it as one packet with one
    header, and 4.5 % less is counted."""
    port = f"p{network.hosts.index(host) + 1}"
    for namespace, device in ((host.namespace, "eth0"), (network.name, port)):
        command = ["ip", "-n", namespace, "link", "set", device, "gso_max_segs", "1"]
        subprocess.run(command, check=True)


def windows(host: Host, cap_mbit: float, seconds: float) -> dict[str, float]:
    """The least and the most of all 10 s windows, over the cap."""
    seen = []
    until_s = time.monotonic() + seconds
    while time.monotonic() < until_s:
        seen.append((time.monotonic(), received(host)))
        time.sleep(STEP_S)
    shares = []
    for at, (began_s, bytes_then) in enumerate(seen):
        end = next((one for one in seen[at:] if one[0] - began_s >= WINDOW_S), None)
        if end is not None:
            rate = (end[1] - bytes_then) / (end[0] - began_s)
            shares.append(rate / (cap_mbit * 125_000))
    return {"least": round(min(shares), 3), "most": round(max(shares), 3)}


def measure(args: argparse.Namespace) -> dict[str, Any]:
    size = int(args.cap_mbit * 125_000 * (args.seconds + 10) * 6) // MIB * MIB
    with (
        tempfile.TemporaryDirectory(prefix="caps-") as scratch,
        farm_on_network(Path(scratch) / "farm", 0, rate_mbit=args.rate_mbit, names=2) as (
            farm,
            network,
        ),
    ):
        for number in (1, 2):
            host = network.add_host(rate_mbit=args.rate_mbit)
            count_headers(network, host)
            link_bps = int(args.rate_mbit * 125_000)
            farm.add_node(f"wn{number}", host, rack="R1", swarm={"link_bps": link_bps})
        for node in farm.nodes.values():
            node.start()
        farm.publish(size, alias="capped")
        cap = args.cap_mbit
        farm.distrib("swarm", "caps", "--rack", str(cap))
        started = farm.ask("rollout", "start", "capped", "--nodes=all")["id"]
        last = end_of_chain(farm, started)
        figures: dict[str, Any] = {}

        def one(name: str, cap_mbit: float) -> None:
            time.sleep(SETTLE_S)
            figures[name] = windows(last, cap_mbit, args.seconds)

        one("class_download_and_upload", cap)
        farm.distrib("swarm", "caps", "--rack", f"{cap / 2}/0")
        one("class_download_halved", cap / 2)
        farm.distrib("swarm", "caps", "--rack", f"0/{cap}")
        one("class_upload", cap)
        farm.distrib("swarm", "caps", "--rack", "0")
        farm.distrib("swarm", "caps", "--rollout", started, f"--download-mbit={cap}")
        one("rollout_download", cap)
        farm.distrib("swarm", "caps", "--rollout", started, "--download-mbit=0", "--upload-mbit=5")
        one("rollout_upload", 5)
        if farm.ask("rollout", "status", started)["state"] != "running":
            raise AssertionError("it was over too soon: take a larger image")
        farm.ask("rollout", "abort", started)
    return figures | {"cap_mbit": cap, "rate_mbit": args.rate_mbit}


def end_of_chain(farm: Farm, started: str) -> Host:
    """Who fetches from a node."""

    def ahead() -> list[str]:
        rows = farm.ask("rollout", "status", started)["nodes"]
        done = sorted(rows, key=lambda row: -row["bytes_done"])
        return [row["node"] for row in done] if done[-1]["bytes_done"] > 0 else []

    found: Callable[[], Any] = ahead
    _, last = eventually("both fetch", found, limit_s=60, every_s=0.2)
    return farm.nodes[last].host


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rate-mbit", type=float, default=100.0)
    parser.add_argument("--cap-mbit", type=float, default=10.0)
    parser.add_argument("--seconds", type=float, default=20.0, help="of each measurement")
    parser.add_argument("--json", action="store_true")
    args = parser.parse_args()
    figures = measure(args)
    if args.json:
        print(json.dumps(figures, indent=2))
        return
    for key, value in figures.items():
        print(f"{key:28} {value}")


if __name__ == "__main__":
    main()
