"""v1 beside v2 in a chain, by piece size, and what hash requests cost: libtorrent with our profile,
over shaped links.

A chain of hosts, each told its parent when its torrent is opened, one after the other; the clock
runs from the first to begin to the last one's last piece. `v1`: all SHA-1 are in what nodes
are given. `v2`: nodes have the info dictionary, as over our bus, and ask their parents for piece
hashes. `v2_layers`: they are given the piece hashes too. Kinds take turns.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import os
import statistics
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import libtorrent as lt

from benchmarks.largeparts.chain import peer_on, tell, told
from distrib.swarm.profile import Link, lan_profile
from distrib.swarm.torrent import document_of, info_of, make_torrent
from tests.farm.network import Host, shaped_network

MIB = 1 << 20
PORT = 6881
KINDS = ("v1", "v2", "v2_layers")


def measured(options: argparse.Namespace) -> dict[str, object]:
    """Last node over size ÷ link, by kind and piece size: medians."""
    bound_s = options.size_mb * MIB * 8 / (options.rate_mbit * 1e6)
    rows: dict[str, object] = {
        "nodes": options.nodes,
        "size_mb": options.size_mb,
        "rate_mbit": options.rate_mbit,
        "bound_s": round(bound_s, 2),
    }
    cases = [(kind, kib) for kib in options.piece_kib for kind in KINDS]
    ran: dict[tuple[str, int], list[float]] = {case: [] for case in cases}
    with tempfile.TemporaryDirectory(prefix="distrib-kinds-") as folder, shaped_network() as net:
        hosts = [net.add_host(rate_mbit=options.rate_mbit) for _ in range(options.nodes + 1)]
        image = Path(folder) / "h0" / "image.raw"
        image.parent.mkdir()
        image.write_bytes(os.urandom(options.size_mb * MIB))
        for _ in range(options.rounds):
            for kind, kib in cases:
                torrents = _torrents(Path(folder), image, kind, kib * 1024)
                seconds = _run(hosts, Path(folder), torrents, options.rate_mbit)
                ran[kind, kib].append(seconds)
                print(f"{kind} {kib} KiB {seconds / bound_s:.3f}", file=sys.stderr, flush=True)
    for (kind, kib), seconds_of in ran.items():
        name = f"{kind}_{kib}_kib_last_over_bound"
        rows[name] = round(statistics.median(seconds_of) / bound_s, 3)
    return rows


def _torrents(folder: Path, image: Path, kind: str, piece_bytes: int) -> tuple[Path, Path]:
    """What the seeder opens, and what nodes do."""
    whole, part = folder / f"{kind}.torrent", folder / f"{kind}.node.torrent"
    if kind == "v1":
        files = lt.file_storage()
        files.add_file(image.name, image.stat().st_size)
        made = lt.create_torrent(files, piece_bytes, lt.create_torrent.v1_only)
        # As ours are: peers that told each other of peers would be no chain.
        made.set_priv(True)
        lt.set_piece_hashes(made, str(image.parent))
        whole.write_bytes(lt.bencode(made.generate()))
        return whole, whole
    make_torrent(image, piece_bytes=piece_bytes, out=whole)
    part.write_bytes(document_of(info_of(whole.read_bytes())))
    return whole, part if kind == "v2" else whole


def _run(hosts: list[Host], folder: Path, torrents: tuple[Path, Path], rate_mbit: float) -> float:
    """Seconds until the last has all."""
    with contextlib.ExitStack() as stack:
        peers = []
        for number, host in enumerate(hosts):
            directory = folder / f"h{number}"
            directory.mkdir(exist_ok=True)
            if number:
                (directory / "image.raw").unlink(missing_ok=True)
            asked = {
                "address": host.address,
                "torrent": str(torrents[min(number, 1)]),
                "directory": str(directory),
                "parent": hosts[number - 1].address if number else "",
                "rate_bps": int(rate_mbit * 125_000),
            }
            peers.append(stack.enter_context(peer_on(host, __name__, json.dumps(asked))))
        for peer in peers:
            told(peer, "listening")
        began_s = time.monotonic()
        for peer in peers:
            tell(peer, "begin")
            # A child of a parent that is not ready would be refused, and come again much later.
            told(peer, "opened")
        for peer in peers[1:]:
            told(peer, "done")
        return time.monotonic() - began_s


def _serve(asked: dict[str, Any]) -> None:
    """One host: a seeder without a parent, else it fetches from it."""
    link = Link(asked["rate_bps"])
    settings: Any = lan_profile(address=asked["address"], port=PORT, link=link) | {
        "alert_mask": lt.alert.category_t.status_notification
    }
    session = lt.session(settings)
    params = lt.load_torrent_file(asked["torrent"])
    params.save_path = asked["directory"]
    flags = lt.torrent_flags.no_verify_files | lt.torrent_flags.update_subscribe
    seeds = not asked["parent"]
    params.flags = flags | (
        lt.torrent_flags.seed_mode if seeds else lt.torrent_flags.sequential_download
    )
    params.peers = [] if seeds else [(asked["parent"], PORT)]
    print("listening", flush=True)
    sys.stdin.readline()
    session.add_torrent(params)
    print("opened", flush=True)
    while not seeds:
        session.wait_for_alert(1000)
        if any(isinstance(alert, lt.torrent_finished_alert) for alert in session.pop_alerts()):
            print("done", flush=True)
            break
    sys.stdin.read()


if __name__ == "__main__":
    _serve(json.loads(sys.argv[1]))
