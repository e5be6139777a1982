"""Run as a program: seeds images on loopback; for each line on standard input one with the bytes
that it has sent of each, by info-hash."""

from __future__ import annotations

import asyncio
import json
import sys
from pathlib import Path

from distrib.swarm.profile import lan_profile
from distrib.swarm.session import SwarmSession
from distrib.swarm.torrent import info_of, parse_info


async def seed(address: str, port: int, rate_bps: int, directories: list[Path]) -> None:
    session = SwarmSession(lan_profile(address=address, port=port), backend="pread")
    async with session.running():
        transfers = []
        for directory in directories:
            torrent = (directory / "image.torrent").read_bytes()
            info = parse_info(info_of(torrent))
            transfer = session.add(info, torrent, directory, seed=True)
            transfer.limit(download_bps=0, upload_bps=rate_bps)
            transfers.append(transfer)
        print("seeding", flush=True)
        while await asyncio.to_thread(sys.stdin.readline):
            for transfer in transfers:
                await transfer.count()
            print(json.dumps({one.infohash: one.uploaded_bytes for one in transfers}), flush=True)


if __name__ == "__main__":
    where, port, rate, *names = sys.argv[1:]
    asyncio.run(seed(where, int(port), int(rate), [Path(name) for name in names]))
