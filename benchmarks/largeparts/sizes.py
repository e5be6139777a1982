"""What the size of pieces costs a chain: plain sessions with our profile, over shaped links.

A chain of hosts, one session each; the clock runs from the moment at which all are told to begin
to the last one's last piece. `announced`: with libtorrent's `predictive_piece_announce`, which
tells of a piece before it has passed its hash. `parent_dies`: the second host ends without a word
when a third of the image is through; the third has the seeder as its other peer.
"""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import json
import os
import statistics
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

from benchmarks.largeparts.chain import peer_on, tell, told
from distrib.swarm.profile import Link, lan_profile
from distrib.swarm.session import SwarmSession
from distrib.swarm.torrent import info_of, make_torrent, parse_info
from tests.farm.network import Host, shaped_network

MIB = 1 << 20
PORT = 6881
LIMIT_S = 120.0


def measured(options: argparse.Namespace) -> dict[str, object]:
    """Every piece size, with and without announcing early, and with a parent that dies."""
    bound_s = options.size_mb * MIB * 8 / (options.rate_mbit * 1e6)
    rows: dict[str, object] = {
        "nodes": options.nodes,
        "size_mb": options.size_mb,
        "rate_mbit": options.rate_mbit,
        "bound_s": round(bound_s, 2),
    }
    with tempfile.TemporaryDirectory(prefix="distrib-sizes-") as folder, shaped_network() as net:
        hosts = [net.add_host(rate_mbit=options.rate_mbit) for _ in range(options.nodes + 1)]
        image = Path(folder) / "h0" / "image.raw"
        image.parent.mkdir()
        image.write_bytes(os.urandom(options.size_mb * MIB))
        for kib in options.piece_kib:
            torrent = Path(folder) / f"{kib}.torrent"
            make_torrent(image, piece_bytes=kib * 1024, out=torrent)
            for early_ms in (0, 500):
                for dies in (False, True):
                    ran = [
                        _run(hosts, Path(folder), torrent, options.rate_mbit, early_ms, dies=dies)
                        for _ in range(options.rounds)
                    ]
                    name = f"{kib}_kib{'_announced' if early_ms else ''}"
                    name += "_parent_dies" if dies else ""
                    rows[f"{name}_last_over_bound"] = round(statistics.median(ran) / bound_s, 3)
                    print(name, rows[f"{name}_last_over_bound"], file=sys.stderr, flush=True)
    return rows


def _run(
    hosts: list[Host],
    folder: Path,
    torrent: Path,
    rate_mbit: float,
    early_ms: int,
    *,
    dies: bool,
) -> float:
    """Seconds until the last has all; of those that live."""
    with contextlib.ExitStack() as stack:
        peers = []
        for number, host in enumerate(hosts):
            directory = folder / f"h{number}"
            directory.mkdir(exist_ok=True)
            if number:
                (directory / "image.raw").unlink(missing_ok=True)
            parents = [hosts[number - 1].address] if number else []
            if number > 1:
                parents.append(hosts[number - 2].address)
            asked = {
                "address": host.address,
                "torrent": str(torrent),
                "directory": str(directory),
                "parents": parents,
                "rate_bps": int(rate_mbit * 125_000),
                "early_ms": early_ms,
            }
            peers.append(stack.enter_context(peer_on(host, __name__, json.dumps(asked))))
        for peer in peers:
            told(peer, "listening")
        began_s = time.monotonic()
        for peer in peers:
            tell(peer, "begin")
        if dies:
            told(peers[1], "third")
            peers[1].kill()
        for number, peer in enumerate(peers[1:], start=1):
            if not (dies and number == 1):
                told(peer, "done")
        return time.monotonic() - began_s


async def _serve(asked: dict[str, Any], torrent: bytes) -> None:
    """One host: a seeder without parents, else it fetches from the first, then from the next."""
    address, directory = asked["address"], Path(asked["directory"])
    link = Link(asked["rate_bps"])
    profile = lan_profile(address=address, port=PORT, link=link)
    profile["predictive_piece_announce"] = asked["early_ms"]
    info = parse_info(info_of(torrent))
    parents = asked["parents"]
    session = SwarmSession(profile, backend="pread")
    async with session.running():
        print("listening", flush=True)
        await asyncio.to_thread(sys.stdin.readline)
        transfer = session.add(info, torrent if not parents else info_of(torrent), directory,
                               seed=not parents)  # fmt: skip
        if not parents:
            await asyncio.Event().wait()
        transfer.connect(parents[0], PORT)
        third, at, asked_s = False, 0, time.monotonic()
        async with asyncio.timeout(LIMIT_S):
            while not transfer.is_complete:
                await asyncio.sleep(0.02)
                if not third and transfer.done_bytes > info.size_bytes // 3:
                    third = True
                    print("third", flush=True)
                # As the node's own repair does it: a parent that was not ready is asked again, one
                # that is gone has another in its place. libtorrent would wait for a minute.
                if parents[at] in transfer.peers or time.monotonic() - asked_s < 1.0:
                    continue
                at = (at + 1) % len(parents) if transfer.done_bytes else 0
                transfer.leave(parents[at])
                transfer.connect(parents[at], PORT)
                asked_s = time.monotonic()
        print("done", flush=True)
        await asyncio.Event().wait()


if __name__ == "__main__":
    given = json.loads(sys.argv[1])
    asyncio.run(_serve(given, Path(given["torrent"]).read_bytes()))
