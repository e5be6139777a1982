"""A pull end to end beside plain libtorrent, on one machine, from the same seeder.

Ours: from the rollout's acceptance to `ready` (orders over MQTT, room reserved, pieces, flush,
SHA-512 over all of it, sealed). Plain libtorrent: its default settings in a process of its own,
from adding the torrent to its last piece; the same store, the same torrent, no SHA-512. Runs
alternate; medians.
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
from datetime import datetime
from pathlib import Path

ROOT = Path(__file__).parents[1]
sys.path.insert(0, str(ROOT))

from agent.cache.device import DeviceStore  # noqa: E402
from agent.cache.file import FileStore  # noqa: E402
from agent.cache.store import Store  # noqa: E402
from tests.farm.farm import SWARM_PORT, Farm, Image, Loopback, Node, farm_on_loopback  # noqa: E402
from tests.farm.process import eventually  # noqa: E402

MIB = 1 << 20
LIMIT_S = 600


@contextmanager
def loop_device(directory: Path, size_bytes: int) -> Iterator[Path]:
    """A block device over a file of its own."""
    backing = directory / f"disk-{time.monotonic_ns()}"
    with backing.open("wb") as file:
        os.posix_fallocate(file.fileno(), 0, size_bytes)
    made = subprocess.run(
        ["losetup", "--find", "--show", backing], capture_output=True, text=True, check=True
    )
    try:
        yield Path(made.stdout.strip())
    finally:
        # The flag that sealing sets outlives the loop device.
        subprocess.run(["blockdev", "--setrw", made.stdout.strip()], check=True)
        subprocess.run(["losetup", "--detach", made.stdout.strip()], check=True)
        backing.unlink()


def ours(farm: Farm, image: Image, number: int, directory: Path, store: str) -> float:
    """Seconds from the accepted rollout to `ready` on a node that is new."""
    size = image.file.stat().st_size
    if store == "file":
        return _timed(farm, image, farm.add_node(f"wn{number}", Loopback(number + 1)))
    with loop_device(directory, size) as device:
        cache = {"store": "device", "devices": [str(device)]}
        return _timed(farm, image, farm.add_node(f"wn{number}", Loopback(number + 1), cache=cache))


def _timed(farm: Farm, image: Image, node: Node) -> float:
    node.start()
    eventually("online", lambda: farm.ask("node", "show", node.name)["online"], limit_s=30)
    accepted = farm.ask("rollout", "start", image.alias, f"--nodes={node.name}")["accepted_at"]
    # Asked seldom: the asking must not be what is measured. The node says since when it is ready.
    eventually("ready", lambda: node.state(image) == "ready", limit_s=LIMIT_S, every_s=0.5)
    ready = (node.image(image) or {})["since"]
    node.stop()
    return (datetime.fromisoformat(ready) - datetime.fromisoformat(accepted)).total_seconds()


def plain(farm: Farm, image: Image, directory: Path, store: str) -> float:
    """Seconds that plain libtorrent takes for the same torrent into the same store."""
    infohash = farm.ask("image", "show", image.alias)["infohash"]
    torrent = farm.state / "head" / "images" / infohash / "image.torrent"
    size = image.file.stat().st_size
    with tempfile.TemporaryDirectory(dir=directory) as scratch:
        if store == "file":
            return _plain_into(FileStore(Path(scratch), 2 * size), infohash, size, torrent)
        with loop_device(directory, size) as device:
            devices = DeviceStore(
                [device],
                Path(scratch) / "links",
                instances_dir=Path(scratch) / "instances",
                instances_capacity_bytes=0,
            )
            return _plain_into(devices, infohash, size, torrent)


def _plain_into(store: Store, infohash: str, size: int, torrent: Path) -> float:
    volume = store.reserve(infohash, size)
    with store.writing(volume) as target:
        done = subprocess.run(
            [
                sys.executable,
                str(Path(__file__).resolve()),
                "--plain",
                torrent,
                target.directory,
                target.backend,
            ],
            stdout=subprocess.PIPE,
            text=True,
            check=True,
            cwd=ROOT,
        )
    return float(done.stdout)


def download(torrent: str, directory: str, backend: str) -> float:
    """In a process of its own: plain libtorrent with its default settings."""
    import libtorrent as lt  # noqa: PLC0415

    params = lt.session_params()
    params.disk_io_constructor = f"{backend}_disk_io_constructor"
    params.settings = {
        "listen_interfaces": "127.0.9.200:16999",
        "outgoing_interfaces": "127.0.9.200",
        "enable_dht": False,
        "enable_lsd": False,
        "enable_upnp": False,
        "enable_natpmp": False,
        "alert_mask": lt.alert.category_t.status_notification,
    }
    session = lt.session(params)
    adding = lt.load_torrent_file(torrent)
    adding.save_path = directory
    # Else it would hash the whole preallocated file before it begins.
    adding.flags |= lt.torrent_flags.no_verify_files
    began_s = time.monotonic()
    handle = session.add_torrent(adding)
    handle.connect_peer(("127.0.9.1", SWARM_PORT))
    while True:
        session.wait_for_alert(1000)
        if any(isinstance(a, lt.torrent_finished_alert) for a in session.pop_alerts()):
            return time.monotonic() - began_s


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--size-mb", type=int, default=512, help="size of the image in MiB")
    parser.add_argument("--rounds", type=int, default=3, help="runs of each")
    parser.add_argument("--store", choices=["file", "device"], default="file")
    parser.add_argument("--json", action="store_true", help="print one JSON object")
    parser.add_argument("--plain", nargs=3, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.plain:
        print(download(*options.plain))
        return
    size = options.size_mb * MIB
    our_s, plain_s = [], []
    with tempfile.TemporaryDirectory() as scratch:
        directory = Path(scratch)
        with farm_on_loopback(directory / "farm", options.rounds, add=False) as farm:
            image = farm.publish(size, alias="measured")
            for number in range(1, options.rounds + 1):
                plain_s.append(plain(farm, image, directory, options.store))
                our_s.append(ours(farm, image, number, directory, options.store))
    figures = {
        "size_mb": options.size_mb,
        "store": options.store,
        "rounds": options.rounds,
        "agent_mb_per_s": round(size / statistics.median(our_s) / 1e6, 1),
        "libtorrent_mb_per_s": round(size / statistics.median(plain_s) / 1e6, 1),
        "agent_over_libtorrent": round(statistics.median(plain_s) / statistics.median(our_s), 3),
        "agent_s": [round(value, 2) for value in our_s],
        "libtorrent_s": [round(value, 2) for value in plain_s],
    }
    if options.json:
        print(json.dumps(figures))
        return
    for name, value in figures.items():
        print(f"{name:24} {value}")


if __name__ == "__main__":
    main()
