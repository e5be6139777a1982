"""What a job keeps of its network beside a rollout: in the background, in the foreground, over uTP.

The job is an iperf3 of one TCP stream between two nodes, along the relay chain's own way. Hosts are
network namespaces on one bridge, shaped both ways (tests/farm/network.py); agents, broker and head
are the real ones. ``job_share`` is the job's goodput beside a background rollout over its goodput
alone; ``progress_share`` what the rollout got of the link meanwhile. For uTP two plain sessions
stand for the rollout: libtorrent yields by delay there, and nothing is measured at the host.
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
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

ROOT = Path(__file__).parents[1]
sys.path.insert(0, str(ROOT))

from distrib.swarm.torrent import make_torrent  # noqa: E402
from tests.farm.farm import Farm, Image, farm_on_network  # noqa: E402
from tests.farm.network import Host  # noqa: E402
from tests.farm.process import eventually  # noqa: E402

MIB = 1 << 20
JOB_PORT = 5201


@contextmanager
def job_server(host: Host) -> Iterator[None]:
    """The far end of the job."""
    server = subprocess.Popen(
        [*host.prefix, "iperf3", "-s", "-p", str(JOB_PORT)], stdout=subprocess.DEVNULL
    )
    try:
        eventually("iperf3 listens", lambda: str(JOB_PORT) in listening(host), limit_s=10)
        yield
    finally:
        server.terminate()
        server.wait()


def listening(host: Host) -> str:
    done = subprocess.run([*host.prefix, "ss", "-Hltn"], capture_output=True, text=True, check=True)
    return done.stdout


def sent_bytes(host: Host) -> int:
    path = "/sys/class/net/eth0/statistics/tx_bytes"
    done = subprocess.run([*host.prefix, "cat", path], capture_output=True, text=True, check=True)
    return int(done.stdout)


def job(near: Host, far: Host, seconds: int, wants_mbit: float) -> float:
    """The job's goodput in bytes per second; ``wants_mbit`` 0: it takes what it can get."""
    command = ["iperf3", "-c", far.address, "-p", str(JOB_PORT), "-t", str(seconds), "-J"]
    done = subprocess.run(
        [*near.prefix, *command, "-b", f"{wants_mbit:g}M"],
        capture_output=True,
        text=True,
        check=True,
    )
    bits: float = json.loads(done.stdout)["end"]["sum_received"]["bits_per_second"]
    return bits / 8


def beside_rollout(
    farm: Farm, image: Image, *options: str, args: argparse.Namespace, link_bps: float
) -> dict[str, float]:
    """The job beside a rollout that has been going for ``settle_s``, whose second half is what the
    rollout has without a job. ``link_share``: of both, on the link that the job leaves by, as the
    card counts (of a large packet one header)."""
    near, far = farm.nodes["wn1"], farm.nodes["wn2"]
    started = farm.ask("rollout", "start", image.alias, "--nodes=all", *options)
    eventually("it moves", lambda: done_bytes(farm, started) > 0, limit_s=60, every_s=0.2)
    time.sleep(args.settle_s / 2)
    before, at_s = done_bytes(farm, started), time.monotonic()
    time.sleep(args.settle_s / 2)
    alone = (done_bytes(farm, started) - before) / (time.monotonic() - at_s)
    before, at_s = done_bytes(farm, started), time.monotonic()
    sent = sent_bytes(near.host)
    goodput = job(near.host, far.host, args.seconds, args.job_mbit)
    took_s = time.monotonic() - at_s
    both = (sent_bytes(near.host) - sent) / took_s
    moved = (done_bytes(farm, started) - before) / took_s
    shown = farm.ask("rollout", "status", started["id"])
    if shown["state"] != "running":
        raise AssertionError("the rollout was over before the job: take a larger image")
    farm.ask("rollout", "abort", started["id"])
    return {
        "job_bps": goodput,
        "progress_share_without_job": round(alone / len(farm.nodes) / link_bps, 3),
        "progress_share": round(moved / len(farm.nodes) / link_bps, 3),
        "link_share": round(both / link_bps, 3),
    }


def done_bytes(farm: Farm, started: dict[str, Any]) -> int:
    shown = farm.ask("rollout", "status", started["id"])
    return sum(row["bytes_done"] for row in shown["nodes"])


_PEER = """
import sys, time
sys.path.insert(0, sys.argv[1])
import libtorrent as lt
from distrib.swarm.profile import Link, lan_profile
_, _, role, address, other, torrent, directory, link, utp = sys.argv
params = lt.session_params()
settings = lan_profile(address=address, port=26881, link=Link(int(link)))
on = utp == "utp"
settings |= {"enable_incoming_utp": on, "enable_outgoing_utp": on, "enable_outgoing_tcp": not on,
             "enable_incoming_tcp": not on}
params.settings = settings
session = lt.session(params)
given = lt.load_torrent_file(torrent)
given.save_path = directory
flags = lt.torrent_flags
given.flags = flags.no_verify_files | (flags.seed_mode if role == "seed" else flags.default_flags)
handle = session.add_torrent(given)
print("up", flush=True)
while sys.stdin.readline():
    if role == "fetch":
        handle.connect_peer((other, 26881))
    print(handle.status().total_payload_download, flush=True)
"""


class Sessions:
    """One plain session that seeds on ``near`` and one that fetches on ``far``."""

    def __init__(self, directory: Path, near: Host, far: Host, *, link_bps: float, utp: bool):
        self._children = []
        for role, host, other in (("seed", near, far), ("fetch", far, near)):
            held = directory / ("image" if role == "seed" else f"fetched-{utp}")
            held.mkdir(exist_ok=True)
            command = [sys.executable, "-c", _PEER, str(ROOT), role, host.address, other.address]
            command += [
                str(directory / "t"),
                str(held),
                str(int(link_bps)),
                "utp" if utp else "tcp",
            ]
            child = subprocess.Popen(
                [*host.prefix, *command], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
            )
            self._children.append(child)
            assert child.stdout is not None
            child.stdout.readline()

    def fetched(self) -> int:
        """Bytes of payload so far."""
        child = self._children[1]
        assert child.stdin is not None
        assert child.stdout is not None
        child.stdin.write("\n")
        child.stdin.flush()
        return int(child.stdout.readline())

    def end(self) -> None:
        for child in self._children:
            child.kill()
            child.wait()


def beside_sessions(
    directory: Path,
    near: Host,
    far: Host,
    *,
    link_bps: float,
    utp: bool,
    args: argparse.Namespace,
) -> dict[str, float]:
    sessions = Sessions(directory, near, far, link_bps=link_bps, utp=utp)
    try:
        eventually("it moves", lambda: sessions.fetched() > 0, limit_s=30, every_s=0.3)
        time.sleep(4)
        before, at_s = sessions.fetched(), time.monotonic()
        goodput = job(near, far, args.seconds, args.job_mbit)
        moved = (sessions.fetched() - before) / (time.monotonic() - at_s)
    finally:
        sessions.end()
    return {"job_bps": goodput, "progress_share": round(moved / link_bps, 3)}


def measure(args: argparse.Namespace) -> dict[str, Any]:
    link_bps = args.rate_mbit * 125_000
    size = int(link_bps * (args.seconds + args.settle_s + 25)) // MIB * MIB
    figures: dict[str, Any] = {"rate_mbit": args.rate_mbit, "nodes": args.nodes, "runs": args.runs}
    with (
        tempfile.TemporaryDirectory(prefix="jobs-first-") as scratch,
        farm_on_network(Path(scratch) / "farm", 0, rate_mbit=args.rate_mbit, names=args.nodes) as (
            farm,
            network,
        ),
    ):
        for number in range(1, args.nodes + 1):
            host = network.add_host(rate_mbit=args.rate_mbit)
            farm.add_node(f"wn{number}", host, swarm={"link_bps": int(link_bps)})
        for node in farm.nodes.values():
            node.start()
        near, far = farm.nodes["wn1"].host, farm.nodes["wn2"].host
        with job_server(far):
            alone = statistics.median(
                job(near, far, args.seconds, args.job_mbit) for _ in range(args.runs)
            )
            figures["job_alone_mbit"] = round(alone * 8 / 1e6, 2)
            for name, options in (("background", ["--background"]), ("foreground", [])):
                runs = []
                for number in range(args.runs):
                    image = farm.publish(size, alias=f"{name}{number}")
                    runs.append(
                        beside_rollout(
                            farm,
                            image,
                            *options,
                            args=args,
                            link_bps=link_bps,
                        )
                    )
                figures[name] = medians(runs, alone)
            if args.utp:
                image_dir = Path(scratch) / "image"
                image_dir.mkdir()
                (image_dir / "image.raw").write_bytes(os.urandom(size))
                make_torrent(
                    image_dir / "image.raw", piece_bytes=256 << 10, out=Path(scratch) / "t"
                )
                for name, utp in (("plain_tcp", False), ("utp", True)):
                    found = beside_sessions(
                        Path(scratch), near, far, link_bps=link_bps, utp=utp, args=args
                    )
                    figures[name] = medians([found], alone)
    figures["job_share"] = figures["background"]["job_share"]
    figures["job_share_foreground"] = figures["foreground"]["job_share"]
    return figures


def medians(runs: list[dict[str, float]], alone: float) -> dict[str, float]:
    found = {key: round(statistics.median(run[key] for run in runs), 3) for key in runs[0]}
    share = round(found.pop("job_bps") / alone, 3)
    return {"job_share": share} | found


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--nodes", type=int, default=3)
    parser.add_argument("--rate-mbit", type=float, default=50.0)
    parser.add_argument("--seconds", type=int, default=15, help="how long the job runs")
    parser.add_argument("--job-mbit", type=float, default=0.0, help="what the job wants; 0: all")
    parser.add_argument("--settle-s", type=float, default=8.0, help="rollout alone before the job")
    parser.add_argument("--runs", type=int, default=1)
    parser.add_argument("--utp", action="store_true", help="measure uTP and plain TCP as well")
    parser.add_argument("--json", action="store_true")
    args = parser.parse_args()
    figures = measure(args)
    if args.json:
        print(json.dumps(figures, indent=2))
        return
    for key, value in figures.items():
        print(f"{key:24} {value}")


if __name__ == "__main__":
    main()
