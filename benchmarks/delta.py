"""What a new version of an image costs a node that has the older one.

Pairs of a Debian guest (benchmarks/guests.py; needs root once, they are kept): after an upgrade,
and after a change of configuration. For each pair: bytes to fetch at piece sizes from 64 KiB to
4 MiB, as the product's own plan says; what a real pull through two libtorrent sessions fetched at
the size that the product chooses; 4 KiB blocks that differ, as the floor; and the chunks that
casync's index of the newer version names and that of the older one does not (its default chunk
sizes). `fetched_over_casync` is the worst pair's, at the chosen size, both uncompressed.
"""

from __future__ import annotations

import argparse
import asyncio
import filecmp
import hashlib
import json
import os
import random
import shutil
import struct
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import structlog

ROOT = Path(__file__).parents[1]
sys.path.insert(0, str(ROOT))

from agent.cache.file import FileStore  # noqa: E402
from agent.pull.delta import Base, match  # noqa: E402
from benchmarks.guests import Pair, debian_pairs  # noqa: E402
from distrib.swarm.pieces import coarser, piece_hashes  # noqa: E402
from distrib.swarm.torrent import (  # noqa: E402
    TorrentInfo,
    info_of,
    make_torrent,
    parse_info,
    piece_bytes_for,
)
from tests.delta.node import Node  # noqa: E402
from tests.pull.conftest import Published, seeding  # noqa: E402

KIB, MIB = 1 << 10, 1 << 20
PIECE_SIZES = tuple(64 * KIB << n for n in range(7))
BLOCK_BYTES = 4 * KIB


def synthetic_pairs(work: Path, *, size_mb: int) -> list[Pair]:
    """Random bytes, with edits of 4 KiB, and with a part that moved."""
    chance = random.Random(1)
    home = work / f"synthetic-{size_mb}"
    data = chance.randbytes(size_mb * MIB)
    edited = bytearray(data)
    for _ in range(max(size_mb // 4, 1)):
        at = chance.randrange(len(data) // BLOCK_BYTES) * BLOCK_BYTES
        edited[at : at + BLOCK_BYTES] = chance.randbytes(BLOCK_BYTES)
    moved = data[: MIB // 2] + chance.randbytes(MIB) + data[MIB // 2 : -MIB]
    files = {}
    for name, content in (("before", data), ("edited", bytes(edited)), ("moved", moved)):
        files[name] = home / name / "image.raw"
        files[name].parent.mkdir(parents=True, exist_ok=True)
        files[name].write_bytes(content)
    return [Pair(name, files["before"], files[name]) for name in ("edited", "moved")]


def torrent_of(image: Path, piece_bytes: int) -> tuple[TorrentInfo, bytes]:
    """Info and torrent file, made once for an image and a piece size."""
    out = image.with_name(f"{piece_bytes}.torrent")
    if not out.exists() or out.stat().st_mtime < image.stat().st_mtime:
        make_torrent(image, piece_bytes=piece_bytes, out=out)
    torrent = out.read_bytes()
    return parse_info(info_of(torrent)), torrent


def planned_bytes(pair: Pair) -> dict[int, int]:
    """What is left to fetch by the plan of the product, for each piece size. Each image is hashed
    once, in the smallest pieces; the hashes of larger ones follow from those."""
    fine = PIECE_SIZES[0]
    older, old_torrent = torrent_of(pair.before, fine)
    newer, new_torrent = torrent_of(pair.after, fine)
    old, new = piece_hashes(old_torrent, older), piece_hashes(new_torrent, newer)
    left = {}
    for piece_bytes in PIECE_SIZES:
        had, wanted = (
            coarser(hashes, piece_bytes=fine, wanted_bytes=piece_bytes) for hashes in (old, new)
        )
        runs = match(wanted, range(len(wanted)), [Base(older.infohash, had)])
        coarse = TorrentInfo(newer.infohash, newer.size_bytes, piece_bytes)
        copied = sum(coarse.piece_size(run.piece + at) for run in runs for at in range(run.count))
        left[piece_bytes] = newer.size_bytes - copied
    return left


def floor_bytes(pair: Pair) -> dict[str, int]:
    """4 KiB blocks of the newer version: other than the older one's in their place, and nowhere in
    the older one."""
    known, changed, unknown = set(), 0, 0
    with pair.before.open("rb") as before:
        while block := before.read(BLOCK_BYTES):
            known.add(hashlib.blake2b(block, digest_size=16).digest())
    with pair.before.open("rb") as before, pair.after.open("rb") as after:
        while block := after.read(BLOCK_BYTES):
            changed += len(block) * (block != before.read(BLOCK_BYTES))
            unknown += len(block) * (hashlib.blake2b(block, digest_size=16).digest() not in known)
    return {"in_place": changed, "anywhere": unknown}


def casync_bytes(pair: Pair, scratch: Path) -> dict[str, int]:
    """What casync would fetch: chunks of the newer version that the older one has not."""
    store = scratch / "store.castr"
    chunks = []
    for image in (pair.before, pair.after):
        index = scratch / f"{image.parent.name}.caibx"
        subprocess.run(
            ["casync", "make", f"--store={store}", index, image],
            check=True,
            stdout=subprocess.DEVNULL,
        )
        chunks.append(chunks_of(index.read_bytes()))
    fetched = {chunk: size for chunk, size in chunks[1].items() if chunk not in chunks[0]}
    packed = sum((store / c[:4] / f"{c}.cacnk").stat().st_size for c in fetched)
    return {"chunks": len(fetched), "bytes": sum(fetched.values()), "compressed_bytes": packed}


def chunks_of(index: bytes) -> dict[str, int]:
    """Chunk identifiers of a casync index, and their sizes in bytes.

    Format: casync's caformat.h: a header whose first number is its length, a table header of two
    numbers, then (end of chunk, SHA-256 or SHA-512/256) until an end of 0."""
    (header_bytes,) = struct.unpack_from("<Q", index)
    sizes: dict[str, int] = {}
    at, began = header_bytes + 16, 0
    while True:
        end, identifier = struct.unpack_from("<Q32s", index, at)
        if end == 0:
            return sizes
        sizes[identifier.hex()] = end - began
        at, began = at + 40, end


async def pulled_bytes(pair: Pair, scratch: Path, piece_bytes: int) -> dict[str, Any]:
    """A real pull of the newer version by a node that pulled the older one."""
    older, newer = (
        Published(image.parent, *torrent_of(image, piece_bytes))
        for image in (pair.before, pair.after)
    )
    room = older.info.size_bytes + newer.info.size_bytes
    store = FileStore(scratch / "cache", 2 * room)
    node = Node(scratch / "node", stores=(store,))
    async with node.running():
        async with seeding(older) as seeder:
            await node.pull(older, "1.0", (seeder,))
        async with seeding(newer) as seeder:
            began_s = time.monotonic()
            record = await node.pull(newer, "2.0", (seeder,))
            took_s = time.monotonic() - began_s
    volume = node.cache.volume(newer.info.infohash)
    return {
        "identical": filecmp.cmp(pair.after, volume.path, shallow=False),
        "state": str(record.state),
        "fetched_bytes": record.fetched_bytes,
        "copied_bytes": record.copied_bytes,
        "took_s": round(took_s, 2),
    }


def measure(pair: Pair) -> dict[str, Any]:
    size = pair.after.stat().st_size
    chosen = piece_bytes_for(size)
    with tempfile.TemporaryDirectory(dir=pair.after.parent) as scratch:
        casync = casync_bytes(pair, Path(scratch))
    with tempfile.TemporaryDirectory(dir=pair.after.parent) as scratch:
        pull = asyncio.run(pulled_bytes(pair, Path(scratch), chosen))
    assert pull["state"] == "ready" and pull["identical"], pull
    planned = planned_bytes(pair)
    return {
        "pair": pair.name,
        "size_bytes": size,
        "piece_bytes": chosen,
        "pull": pull,
        "planned_bytes": {f"{size // KIB} KiB": count for size, count in planned.items()},
        "floor_bytes": floor_bytes(pair),
        "casync": casync,
        "fetched_over_casync": round(pull["fetched_bytes"] / casync["bytes"], 3),
        "planned_over_casync": {
            f"{size // KIB} KiB": round(count / casync["bytes"], 3)
            for size, count in planned.items()
        },
    }


def default_work() -> Path:
    cache = os.environ.get("XDG_CACHE_HOME") or str(Path.home() / ".cache")
    return Path(cache) / "distrib" / "delta"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--work-dir", type=Path, default=default_work(), help="pairs are kept here")
    parser.add_argument("--guest-mb", type=int, default=2048, help="size of the Debian guest, MiB")
    parser.add_argument(
        "--size-mb", type=int, help="synthetic pairs of this size instead: quick, not the figure"
    )
    parser.add_argument("--json", action="store_true", help="print one JSON object")
    options = parser.parse_args()
    structlog.configure(logger_factory=structlog.PrintLoggerFactory(sys.stderr))
    work = options.work_dir.resolve()
    work.mkdir(parents=True, exist_ok=True)
    if options.size_mb:
        scratch = Path(tempfile.mkdtemp(dir=work))
        try:
            found = [measure(pair) for pair in synthetic_pairs(scratch, size_mb=options.size_mb)]
        finally:
            shutil.rmtree(scratch)
    else:
        found = [measure(pair) for pair in debian_pairs(work, size_mb=options.guest_mb)]
    figures = {
        "fetched_over_casync": max(one["fetched_over_casync"] for one in found),
        "synthetic": bool(options.size_mb),
        "pairs": found,
    }
    if options.json:
        print(json.dumps(figures))
        return
    print(f"fetched_over_casync      {figures['fetched_over_casync']}")
    for one in found:
        for name, value in one.items():
            print(f"  {name:22} {value}")


if __name__ == "__main__":
    main()
