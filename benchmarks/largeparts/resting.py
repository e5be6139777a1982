"""What a seeder and an agent with many images need at rest: memory and CPU of real processes.

A farm of one node: `distrib up` (broker, controller, seeder) and an agent, on loopback addresses
(run it in a network namespace of its own: `unshare -n`, with `lo` up). The images are small, as
what counts at rest is their number and their pieces; what the pieces of large images add is
measured in a session of its own, over sparse files (`layers`).
"""

from __future__ import annotations

import asyncio
import base64
import os
import tempfile
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from distrib.cli.client import ApiClient, load_settings, path_of
from distrib.swarm.merkle import BLOCK_BYTES, piece_hash
from distrib.swarm.profile import Link, lan_profile
from distrib.swarm.session import SwarmSession
from distrib.swarm.torrent import info_of, parse_info, piece_bytes_for, torrent_of
from tests.farm.farm import Farm, farm_on_loopback
from tests.farm.process import eventually

IMAGE_BYTES = 1 << 20
TICKS_PER_S = os.sysconf("SC_CLK_TCK")


@dataclass(frozen=True)
class Load:
    """One process over a time."""

    rss_mb: float
    cpu_percent: float


def measured(images: int, seconds: float) -> dict[str, object]:
    """``images`` on one node; both sides are looked at for ``seconds`` of rest."""
    with tempfile.TemporaryDirectory(prefix="distrib-many-") as folder:
        with farm_on_loopback(Path(folder), 1) as farm:
            node = farm.nodes["wn1"]
            _publish(farm, images)
            # An agent that is there meanwhile verifies each of the site lists.
            node.start()
            assert node.agent is not None
            assert farm.head is not None
            client = _client(farm)
            shown = client.get("/images")["images"]
            eventually("online", lambda: client.get("/nodes/wn1")["online"], limit_s=60)
            began_s = time.monotonic()
            for one in shown:
                client.post("/rollouts", {"image": one["image"], "nodes": "all"})
            eventually("all ready", lambda: _ready(client) == images, limit_s=900, every_s=1.0)
            pulled_s = time.monotonic() - began_s
            eventually("all seeded", lambda: _seeded(client, shown[-1]["image"]), limit_s=60)
            processes = {"agent": node.agent.pid} | _children_of(farm.head.pid)
            time.sleep(10)
            loads = _watched(processes, seconds)
            client.close()
        layers = asyncio.run(_layers(Path(folder) / "layers", images, 10 * 10**9))
    figures: dict[str, object] = {
        "images": images,
        "seconds": seconds,
        "pulled_s": round(pulled_s, 1),
    }
    for name, load in loads.items():
        figures[f"{name}_rss_mb"] = load.rss_mb
        figures[f"{name}_cpu_percent"] = load.cpu_percent
    figures["layers_of_10_gb_images_mb"] = layers
    seeder = loads.get("seeder")
    if seeder is not None:
        figures["seeder_rss_mb_with_10_gb_images"] = round(seeder.rss_mb + layers, 1)
    figures["agent_rss_mb_with_10_gb_images"] = round(loads["agent"].rss_mb + layers, 1)
    return figures


def _publish(farm: Farm, count: int) -> None:
    signed = farm.endorse_many(count, IMAGE_BYTES)
    client = _client(farm)
    encoded = base64.b64encode(signed[0].signed_list.read_bytes()).decode()
    for image in signed:
        choice = {"size_bytes": IMAGE_BYTES, "title": image.alias, "version": image.version}
        found = client.post("/images", {"list": encoded} | choice, timeout_s=120)
        content = iter([image.file.read_bytes()])
        client.upload(path_of("images", found["image"], "content"), content, size_bytes=IMAGE_BYTES)
        client.post(path_of("images", found["image"], "approve"), {"aliases": []}, timeout_s=120)
    client.close()


def _client(farm: Farm) -> ApiClient:
    return ApiClient(load_settings(farm.state / "client.toml"))


def _ready(client: ApiClient) -> int:
    report = client.get("/nodes/wn1").get("report") or {"images": []}
    return sum(one["state"] == "ready" for one in report["images"])


def _seeded(client: ApiClient, image: str) -> bool:
    seeders = client.get(path_of("swarm", image))["seeders"]
    return any(one["has_image"] for one in seeders)


def _children_of(pid: int) -> dict[str, int]:
    """The parts of `distrib up`, by what they are called with; itself is "up"."""
    found = {"up": pid}
    for task in Path(f"/proc/{pid}/task").iterdir():
        for child in (task / "children").read_text("ascii").split():
            words = Path(f"/proc/{child}/cmdline").read_bytes().decode().split("\0")
            for part in ("mosquitto", "controller", "seeder"):
                if any(Path(word).name == part for word in words):
                    found[part] = int(child)
    return found


def _watched(processes: dict[str, int], seconds: float) -> dict[str, Load]:
    before = {name: _cpu_s(pid) for name, pid in processes.items()}
    time.sleep(seconds)
    return {
        name: Load(
            rss_mb=round(_rss_mb(pid), 1),
            cpu_percent=round(100 * (_cpu_s(pid) - before[name]) / seconds, 2),
        )
        for name, pid in processes.items()
    }


def _cpu_s(pid: int) -> float:
    """User and system time, of all threads."""
    fields = Path(f"/proc/{pid}/stat").read_text("ascii").rpartition(")")[2].split()
    return (int(fields[11]) + int(fields[12])) / TICKS_PER_S


def _rss_mb(pid: int) -> float:
    pages = int(Path(f"/proc/{pid}/statm").read_text("ascii").split()[1])
    return pages * os.sysconf("SC_PAGE_SIZE") / 1e6


async def _layers(root: Path, images: int, size_bytes: int) -> float:
    """MB that a session grows by, with so many images of this size and without holes in its
    piece layers."""
    piece_bytes = piece_bytes_for(size_bytes)
    size_bytes = size_bytes // piece_bytes * piece_bytes
    leaves = piece_bytes // BLOCK_BYTES
    nothing = piece_hash(bytes(piece_bytes), leaves=leaves)
    profile = lan_profile(address="127.0.9.1", port=17001, link=Link(1_250_000_000))
    session = SwarmSession(profile, backend="pread")
    async with session.running():
        before_mb = _rss_mb(os.getpid())
        for number in range(images):
            first = number.to_bytes(8, "big").ljust(piece_bytes, b"\0")
            hashes = [piece_hash(first, leaves=leaves)]
            hashes += [nothing] * (size_bytes // piece_bytes - 1)
            torrent = torrent_of(hashes, size_bytes=size_bytes, piece_bytes=piece_bytes)
            directory = root / str(number)
            directory.mkdir(parents=True)
            with (directory / "image.raw").open("wb") as image:
                image.truncate(size_bytes)
            kept: Any = parse_info(info_of(torrent))
            session.add(kept, torrent, directory, seed=True)
        await asyncio.sleep(2)
        return round(_rss_mb(os.getpid()) - before_mb, 1)
