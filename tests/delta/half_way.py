"""Run as a program: pulls a version, stops copying half-way, says so, and waits to be killed."""

from __future__ import annotations

import asyncio
import json
import sys
import time
from pathlib import Path
from unittest.mock import patch

from agent.pull import copying
from agent.pull.delta import Run
from distrib.bus.messages import Peer
from distrib.swarm.torrent import info_of, parse_info
from tests.delta.node import MIB, Node
from tests.pull.conftest import Published

HALF_BYTES = 6 * MIB


def _noted_bytes(file: Path) -> int:
    try:
        return int(json.loads(file.read_bytes())["copied_bytes"])
    except FileNotFoundError:
        return 0


async def pull_half(directory: Path, published: Path, seeder: Peer) -> None:
    torrent = (published / "image.torrent").read_bytes()
    info = parse_info(info_of(torrent))
    node = Node(directory)
    noted = directory / "resume" / f"{info.infohash}.boot.json"
    copied_bytes = 0
    copy = copying.Copying._copy

    def stopping(self: copying.Copying, run: Run, source_fd: int) -> int:
        nonlocal copied_bytes
        if copied_bytes >= HALF_BYTES:
            while _noted_bytes(noted) < copied_bytes:
                time.sleep(0.01)
            print("half", flush=True)
            time.sleep(600)
        copied_bytes += run.count * info.piece_bytes
        return copy(self, run, source_fd)

    with patch.object(copying, "STEP_BYTES", MIB), patch.object(copying.Copying, "_copy", stopping):
        async with node.running():
            await node.pull(Published(published, info, torrent), "2.0", (seeder,))


if __name__ == "__main__":
    address, port = sys.argv[3:]
    peer = Peer(node="seeder", address=address, port=int(port))
    asyncio.run(pull_half(Path(sys.argv[1]), Path(sys.argv[2]), peer))
