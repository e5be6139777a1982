"""The parts of the benchmark over shaped links: an sshd and an agent on every node, in a network
namespace each. `last_over_bound`: the last node's time over what one link needs for the image.

`farm`: a rollout over SSH, one over BitTorrent, and whole files by `scp` in a tree in which who has
the file sends it to one other at a time, in the same run. `faults`: a rollout over SSH as it is;
one with a node below the seeder that spoils one of a hundred pieces that it sends, and is to be
named; one in which the node that is ahead dies, agent and sshd, with a third of the image.
"""

from __future__ import annotations

import argparse
import os
import shlex
import subprocess
import sys
import tempfile
import time
from concurrent.futures import ThreadPoolExecutor, wait
from pathlib import Path
from typing import Any

from benchmarks.track import MIB, Started, Track
from tests.farm.farm import Image, Node
from tests.farm.network import Host
from tests.farm.process import eventually
from tests.tsunami.farm import SSH_PORT, SshFarm, ssh_farm
from tests.tsunami.sshd import USER

SIZE_MB = 64

SPOILED = 100
"""One piece in so many."""

SPOILER = """
import os, sys
from pathlib import Path
from agent.serving_pieces import AgentShelf
from distrib.tsunami.serving import PieceSession
class Spoiling(PieceSession):
    sent = 0
    def _piece(self, lent, index):
        data = super()._piece(lent, index)
        Spoiling.sent += 1
        if Spoiling.sent % {every} != {every} // 2:
            return data
        return data[:-1] + bytes([data[-1] ^ 1])
Spoiling(0, 1, AgentShelf(Path(sys.argv[1]))).run()
"""


def farm(given: argparse.Namespace) -> dict[str, Any]:
    """Ours over SSH, ours over BitTorrent, and a tree of scp."""
    with _running(given) as (running, track):
        found = {
            "tsunami": _rollout(running, track, "tsunami"),
            "swarm": _rollout(running, track, "swarm"),
        }
        found["scp_tree"] = _scp_tree(running, track)
        return _told(given, track, found)


def faults(given: argparse.Namespace) -> dict[str, Any]:
    """Over SSH: as it is, with a spoiler, with a death."""
    with _running(given) as (running, track):
        plain = _rollout(running, track, "tsunami")
        spoiled, named = _spoiled(running, track)
        killed = _killed(running, track)
        told = _told(given, track, {"plain": plain, "spoiled": spoiled, "killed": killed})
        told["cost"] = {
            name: round(seconds / plain - 1, 3)
            for name, seconds in (("spoiled", spoiled), ("killed", killed))
        }
        return told | {"spoiler_named": named}


class _running:  # noqa: N801 - used as a function
    """The farm, and a track over it."""

    def __init__(self, given: argparse.Namespace) -> None:
        self._given = given

    def __enter__(self) -> tuple[SshFarm, Track]:
        given = self._given
        self._scratch = tempfile.TemporaryDirectory()
        place = Path(self._scratch.name)
        self._farm = ssh_farm(place, given.nodes, rate_mbit=given.rate_mbit)
        running = self._farm.__enter__()
        size_bytes = (given.size_mb or SIZE_MB) * MIB
        return running, Track(running.farm, running.network, given.rate_mbit, size_bytes, place)

    def __exit__(self, *error: Any) -> None:
        self._farm.__exit__(*error)
        self._scratch.cleanup()


def _told(given: argparse.Namespace, track: Track, found: dict[str, float]) -> dict[str, Any]:
    return {
        "nodes": given.nodes,
        "size_mb": (given.size_mb or SIZE_MB),
        "rate_mbit": given.rate_mbit,
        "bound_s": round(track.bound_s, 3),
        "last_over_bound": {name: round(s / track.bound_s, 3) for name, s in found.items()},
    }


def _start(track: Track, transport: str) -> Started:
    track.published += 1
    image = track.farm.publish(track.size_bytes, alias=f"course{track.published}")
    accepted = track.farm.ask(
        "rollout", "start", image.alias, "--nodes=all", f"--transport={transport}"
    )
    return Started(accepted["id"], image, 0.0)


def _rollout(running: SshFarm, track: Track, transport: str) -> float:
    started = _start(track, transport)
    seconds = track.seconds(started, asked_from=0.9)
    for node in track.nodes:
        by = (node.image(started.image) or {})["by_transport"]
        if set(by) != {transport}:
            raise AssertionError(f"{node.name}: not by {transport} alone: {by}")
    track.compare(started.image)
    return max(seconds.values())


def _ahead(track: Track, image: Image) -> Node:
    """Who has most, with more than a third of it."""

    def found() -> Node | None:
        first = track.in_order(image)[0]
        there = (first.image(image) or {}).get("bytes_done", 0)
        return first if there > 0.3 * track.size_bytes else None

    node: Node = eventually("somebody is ahead", found, limit_s=6 * track.bound_s, every_s=0.5)
    return node


def _killed(running: SshFarm, track: Track) -> float:
    started = _start(track, "tsunami")
    victim = _ahead(track, started.image)
    victim.kill()
    for pid in _of_namespace(victim.host):
        subprocess.run(["kill", "-9", str(pid)], check=False, stderr=subprocess.DEVNULL)
    return max(track.seconds(started, but=[victim.name]).values())


def _of_namespace(host: Host) -> list[int]:
    told = subprocess.run(
        ["ip", "netns", "pids", host.namespace], capture_output=True, text=True, check=True
    )
    return [int(line) for line in told.stdout.split()]


def _spoiled(running: SshFarm, track: Track) -> tuple[float, bool]:
    """The node that was first before is first again: from it most of the others have it."""
    place = track.scratch / "spoiler.py"
    place.write_text(SPOILER.format(every=SPOILED))
    spoiler = _first_in_plan(track)
    keys = running.key.parent / spoiler.name / "authorized_keys"
    before = keys.read_text()
    words = shlex.join([sys.executable, str(place), str(spoiler.socket)])
    kind, key = before.split('" ', 1)[1].split()[:2]
    keys.write_text(f'restrict,command="{words}" {kind} {key}\n')
    try:
        started = _start(track, "tsunami")
        seconds = track.seconds(started, asked_from=0.5)
        track.compare(started.image)
    finally:
        keys.write_text(before)
    logs = (track.farm.directory / "nodes").glob("*/agent.log")
    lines = [line for log in logs for line in log.read_text("utf-8").splitlines()]
    named = any("bad-peer" in line and spoiler.host.address in line for line in lines)
    return max(seconds.values()), named


def _first_in_plan(track: Track) -> Node:
    """A node that is fed by the seeder in the rollout before, and feeds others."""
    shown = track.farm.ask("swarm", "show", f"course{track.published}")
    for row in shown["nodes"]:
        if any(parent == "seeder" or parent.get("node") == "seeder" for parent in row["parents"]):
            return track.farm.nodes[row["node"]]
    return track.nodes[0]


def _scp_tree(running: SshFarm, track: Track) -> float:
    """Whole files: in each round who has it sends it to one that has not."""
    file = track.scratch / "whole.raw"
    file.write_bytes(os.urandom(track.size_bytes))
    keys = {name: running.key.parent / name / "authorized_keys" for name in track.farm.nodes}
    before = {name: path.read_text() for name, path in keys.items()}
    key = running.key.with_name("key.pub").read_text()
    for path in keys.values():
        path.write_text(key)
    known = track.scratch / "known"
    known.write_text("".join(_known(running, name) for name in track.farm.nodes))
    options = [
        "-q", "-P", str(SSH_PORT), "-i", str(running.key), "-F", "/dev/null",
        "-o", f"UserKnownHostsFile={known}", "-o", "IdentitiesOnly=yes",
    ]  # fmt: skip
    began_s = time.monotonic()
    have: list[tuple[Host, Path]] = [(track.farm.head_host, file)]
    waiting = list(track.nodes)
    try:
        with ThreadPoolExecutor(len(waiting)) as threads:
            while waiting:
                sent = []
                for host, copy in list(have)[: len(waiting)]:
                    node = waiting.pop(0)
                    target = node.directory / "whole.raw"
                    to = f"{USER}@{node.host.address}:{target}"
                    command = [*host.prefix, "scp", *options, str(copy), to]
                    sent.append(threads.submit(subprocess.run, command, check=True))
                    have.append((node.host, target))
                for one in wait(sent).done:
                    one.result()
        return time.monotonic() - began_s
    finally:
        for name, path in keys.items():
            path.write_text(before[name])
        for _, copy in have:
            copy.unlink(missing_ok=True)


def _known(running: SshFarm, name: str) -> str:
    key = (running.key.parent / f"{name}-key.pub").read_text()
    return f"[{running.farm.nodes[name].host.address}]:{SSH_PORT} {' '.join(key.split()[:2])}\n"
