"""Pieces over SSH, beside OpenSSH's own tools on the same machine in the same run.

`pair`: one file from one sshd of this machine, unshaped, by `scp` and as pieces through
`serve-pieces` and its client, both with the cipher named, turn about, both into a file on tmpfs.
Ours is not hashed here: a pull has libtorrent do that. `ours_over_scp` is the ratio of rates of the
better half of the rounds. `farm` and `faults`: whole agents over shaped links, with as many sshd as
nodes (benchmarks/tsunami_farm.py).

    benchmarks/tsunami.py [pair] [--size-mb 512] [--rounds 6] [--json]
    benchmarks/tsunami.py farm faults [--nodes 16] [--size-mb 64] [--rate-mbit 20] [--json]
"""

from __future__ import annotations

import argparse
import asyncio
import base64
import contextlib
import json
import os
import shutil
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from statistics import mean
from typing import Any

ROOT = Path(__file__).parents[1]
sys.path.insert(0, str(ROOT))

from agent.serving_pieces import key_line  # noqa: E402
from agent.socket.caller import Caller  # noqa: E402
from agent.socket.server import Args, Send, SocketServer  # noqa: E402
from benchmarks.tsunami_farm import farm, faults  # noqa: E402
from distrib.swarm.torrent import piece_bytes_for  # noqa: E402
from distrib.tsunami.client import COMMAND, PieceClient  # noqa: E402
from distrib.tsunami.protocol import Piece, bitmap  # noqa: E402
from distrib.tsunami.ssh import Limits  # noqa: E402
from tests.tsunami.sshd import Sshd, make_key, public, running  # noqa: E402

MIB = 1 << 20
INFOHASH = "ab" * 32
CIPHERS = ("aes128-gcm@openssh.com", "aes256-gcm@openssh.com", "aes128-ctr")


@contextlib.contextmanager
def lending(socket: Path, file: Path, piece_bytes: int) -> Iterator[None]:
    """The agent's socket, with this file as its one image."""
    size_bytes = file.stat().st_size
    loop, ready, over = asyncio.new_event_loop(), threading.Event(), asyncio.Event()

    async def pieces(caller: Caller, args: Args, send: Send) -> dict[str, object]:
        fd = os.open(file, os.O_RDONLY)
        try:
            have = base64.b64encode(bitmap([1] * -(-size_bytes // piece_bytes))).decode()
            said = {"image": "x", "size_bytes": size_bytes, "piece_bytes": piece_bytes}
            await send.lend(said | {"have": have}, fd)
            await asyncio.Event().wait()
        finally:
            os.close(fd)
        return {}

    async def serve() -> None:
        async with SocketServer(socket, {"pieces": pieces}, admin_groups=()).running():
            ready.set()
            await over.wait()

    thread = threading.Thread(target=lambda: loop.run_until_complete(serve()))
    thread.start()
    ready.wait()
    try:
        yield
    finally:
        loop.call_soon_threadsafe(over.set)
        thread.join()
        loop.close()


def by_pieces(sshd: Sshd, key: Path, cipher: str, file: Path, piece_bytes: int) -> float:
    """Seconds for all pieces, from the log-in on."""
    size_bytes, out = file.stat().st_size, file.with_name("copy")
    out.unlink(missing_ok=True)
    began_s, done = time.perf_counter(), 0
    with (
        out.open("wb") as stream,
        sshd.connect(key, limits=Limits(ciphers=(cipher,))) as connection,
    ):
        assert connection.cipher == cipher
        client = PieceClient(connection.run(COMMAND), INFOHASH, peer="pair")
        have = client.open(size_bytes=size_bytes, piece_bytes=piece_bytes)
        client.subscribe(have)
        while done < size_bytes:
            message = client.next()
            assert isinstance(message, Piece)
            os.pwrite(stream.fileno(), message.data, message.index * piece_bytes)
            done += len(message.data)
        return time.perf_counter() - began_s


def by_scp(sshd: Sshd, key: Path, cipher: str, file: Path, known: Path) -> float:
    """Seconds for the whole file, from the log-in on."""
    out = file.with_name("copy")
    out.unlink(missing_ok=True)
    began_s = time.perf_counter()
    subprocess.run(
        ["scp", "-q", "-F", "/dev/null", "-c", cipher, "-i", str(key), "-P", str(sshd.port),
         "-o", f"UserKnownHostsFile={known}", f"{sshd.address}:{file}", str(out)],
        check=True,
    )  # fmt: skip
    return time.perf_counter() - began_s


def pair(given: argparse.Namespace) -> dict[str, Any]:
    """Ours against scp, with each cipher."""
    size_mb = given.size_mb or 512
    piece_bytes = piece_bytes_for(size_mb * MIB)
    place = Path(tempfile.mkdtemp(dir="/dev/shm"))
    try:
        file = place / "image"
        file.write_bytes(os.urandom(MIB) * size_mb)
        whole, limited = make_key(place / "whole"), make_key(place / "limited")
        with running(place / "host") as sshd, lending(place / "sock", file, piece_bytes):
            sshd.admit(public(whole))
            sshd.admit(key_line(public(limited), agent_socket=place / "sock"))
            known = place / "known"
            known.write_text(sshd.known_hosts_line)
            rows = []
            for cipher in CIPHERS:
                ours, scp = [], []
                for _ in range(given.rounds):
                    scp.append(size_mb / by_scp(sshd, whole, cipher, file, known))
                    took_s = by_pieces(sshd, limited, cipher, file, piece_bytes)
                    ours.append(size_mb / took_s)
                best = [mean(sorted(one)[given.rounds // 2 :]) for one in (ours, scp)]
                rows.append(
                    {
                        "cipher": cipher,
                        "ours_mib_s": round(best[0], 1),
                        "scp_mib_s": round(best[1], 1),
                        "ours_over_scp": round(best[0] / best[1], 3),
                    }
                )
    finally:
        shutil.rmtree(place)
    return {"size_mb": size_mb, "piece_bytes": piece_bytes, "ciphers": rows}


PARTS: dict[str, Callable[[argparse.Namespace], dict[str, Any]]] = {
    "pair": pair,
    "farm": farm,
    "faults": faults,
}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("parts", nargs="*", choices=[*PARTS, []], default=[])
    parser.add_argument("--size-mb", type=int, help="512 for a pair, else 64")
    parser.add_argument("--nodes", type=int, default=16)
    parser.add_argument("--rate-mbit", type=float, default=20.0)
    parser.add_argument("--rounds", type=int, default=6)
    parser.add_argument("--json", action="store_true")
    given = parser.parse_args()
    found = {name: PARTS[name](given) for name in given.parts or PARTS}
    if given.json:
        print(json.dumps(found))
        return
    for name in ("farm", "faults"):
        for key, value in found.get(name, {}).items():
            print(f"{name} {key}: {value}")
    for row in found.get("pair", {}).get("ciphers", ()):
        print(
            f"{row['cipher']:24} ours {row['ours_mib_s']:7.1f} MiB/s, scp"
            f" {row['scp_mib_s']:7.1f} MiB/s: {row['ours_over_scp']:.2f}"
        )


if __name__ == "__main__":
    main()
