"""Lease and instance of a cached image, as a job asks for them: through the agent's socket.

A farm on loopback brings the image to a node for each store: ``file`` (qcow2 overlays, where the
file system makes no reflink copies), ``reflink`` (store file on an XFS of its own; root),
``device`` (a loop device, with overlays beside it; root), ``lvm`` (in user-mode Linux; root). A
lease is timed from connecting to having read the first block of the instance by the name that the
answer gives; releases are not. One at a time, then 50 at once, each in a thread of its own.
One object:

* ``p99_ms``: one at a time, of the two stores that have a bar; ``apart``: of the others,
* ``fifty``: the last one's end over 50 times the median of one at a time,
* ``details``: with ``fifty_of_served``, the same over 50 times the median from one of the fifty's
  answers to the next (each snapshot of an origin costs LVM more than the one before);
* ``load``: the machine's load average before and after.
"""

from __future__ import annotations

import argparse
import itertools
import json
import math
import os
import statistics
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

ROOT = Path(__file__).parents[1]
sys.path.insert(0, str(ROOT))

from agent.socket.client import ask  # noqa: E402
from tests.farm.farm import Farm, Image, Loopback, Node, farm_on_loopback  # noqa: E402
from tests.farm.process import eventually  # noqa: E402

MIB = 1 << 20
GIB = 1 << 30
AT_ONCE = 50
COW_BYTES = 16 * MIB
LIMIT_S = 600.0
BARRED = ("file", "lvm")
UML = ROOT / "scripts" / "uml"


def lease(node: Node, image: Image) -> tuple[str, float]:
    """One lease, and the seconds until its instance could be read."""
    began_s = time.monotonic()
    answer = ask(node.socket, "lease", timeout_s=LIMIT_S, image=image.ref, cow_bytes=COW_BYTES)
    with Path(answer["device"]).open("rb", buffering=0) as instance:
        assert len(instance.read(4096)) == 4096
    return answer["lease"], time.monotonic() - began_s


def release(node: Node, name: str) -> None:
    ask(node.socket, "release", timeout_s=LIMIT_S, lease=name)


def one_at_a_time(node: Node, image: Image, count: int) -> list[float]:
    taken_s = []
    for _ in range(count):
        name, one_s = lease(node, image)
        taken_s.append(one_s)
        release(node, name)
    return taken_s


def all_at_once(node: Node, image: Image) -> tuple[list[float], float]:
    """Each one's seconds, and the seconds until the last was done."""
    made: list[tuple[str, float]] = []
    barrier = threading.Barrier(AT_ONCE + 1)

    def job() -> None:
        barrier.wait()
        made.append(lease(node, image))

    jobs = [threading.Thread(target=job) for _ in range(AT_ONCE)]
    for one in jobs:
        one.start()
    barrier.wait()
    began_s = time.monotonic()
    for one in jobs:
        one.join()
    last_s = time.monotonic() - began_s
    assert len(made) == AT_ONCE, "a job got no lease"
    for name, _ in made:
        release(node, name)
    return [one_s for _, one_s in made], last_s


@contextmanager
def xfs(directory: Path) -> Iterator[Path]:
    """A file system that makes reflink copies, of its own."""
    file, at = directory / "xfs.img", directory / "xfs"
    with file.open("wb") as disk:
        disk.truncate(4 * GIB)
    at.mkdir()
    subprocess.run(["mkfs.xfs", "-q", str(file)], check=True)
    subprocess.run(["mount", "-o", "loop", str(file), str(at)], check=True)
    try:
        yield at
    finally:
        subprocess.run(["umount", str(at)], check=True)


def percentile(values: list[float], share: float) -> float:
    """The nearest-rank percentile."""
    return sorted(values)[max(0, math.ceil(share * len(values)) - 1)]


def measure(farm: Farm, image: Image, number: int, cache: dict[str, Any], count: int) -> Any:
    """The figures of one node with these settings of the cache, in milliseconds."""
    settings = {"capacity_bytes": 4 * GIB} | cache
    node = farm.add_node(f"wn{number}", Loopback(number + 1), cache=settings)
    node.start()
    eventually("online", lambda: farm.ask("node", "show", node.name)["online"], limit_s=60)
    farm.ask("rollout", "start", image.alias, f"--nodes={node.name}")
    eventually("ready", lambda: node.state(image) == "ready", limit_s=LIMIT_S, every_s=0.5)
    one_at_a_time(node, image, 5)
    single = one_at_a_time(node, image, count)
    together, last_s = all_at_once(node, image)
    node.stop()
    median_s = statistics.median(single)
    ends = [0.0, *sorted(together)]
    served_s = statistics.median(after - before for before, after in itertools.pairwise(ends))
    return {
        "count": count,
        "p50_ms": round(1000 * median_s, 1),
        "p99_ms": round(1000 * percentile(single, 0.99), 1),
        "fifty_p50_ms": round(1000 * statistics.median(together), 1),
        "fifty_last_ms": round(1000 * last_s, 1),
        "fifty": round(last_s / (AT_ONCE * median_s), 3),
        "fifty_served_p50_ms": round(1000 * served_s, 1),
        "fifty_of_served": round(last_s / (AT_ONCE * served_s), 3),
    }


@contextmanager
def loop_device(directory: Path, size_bytes: int) -> Iterator[Path]:
    """A block device of exactly this size."""
    file = directory / "device.img"
    with file.open("wb") as disk:
        os.posix_fallocate(disk.fileno(), 0, size_bytes)
    done = subprocess.run(
        ["losetup", "--find", "--show", str(file)], capture_output=True, text=True, check=True
    )
    device = Path(done.stdout.strip())
    try:
        yield device
    finally:
        subprocess.run(["blockdev", "--setrw", str(device)], check=True)
        subprocess.run(["losetup", "--detach", str(device)], check=True)


def of_files(count: int, size_bytes: int) -> dict[str, Any]:
    """Stores whose instances are files; those that need root where there is root."""
    with tempfile.TemporaryDirectory() as scratch:
        directory = Path(scratch)
        with farm_on_loopback(directory / "farm", 3, add=False) as farm:
            image = farm.publish(size_bytes, alias="measured")
            found = {"file": measure(farm, image, 1, {}, count)}
            if os.geteuid() == 0:
                with xfs(directory) as mounted:
                    cache = {"directory": str(mounted / "cache")}
                    found["reflink"] = measure(farm, image, 2, cache, count)
                with loop_device(directory, size_bytes) as device:
                    cache = {"store": "device", "devices": [str(device)]}
                    found["device"] = measure(farm, image, 3, cache, count)
            return found


def of_lvm(count: int, size_bytes: int, vg: str) -> dict[str, Any]:
    """Store lvm, where a volume group is at hand: inside of user-mode Linux."""
    with (
        tempfile.TemporaryDirectory() as scratch,
        farm_on_loopback(Path(scratch) / "farm", 1, add=False) as farm,
    ):
        image = farm.publish(size_bytes, alias="measured")
        cache = {"store": "lvm", "lvm": {"vg": vg}}
        return {"lvm": measure(farm, image, 1, cache, count)}


def in_uml(count: int, size_bytes: int) -> dict[str, Any]:
    """The figures of ``of_lvm`` from inside user-mode Linux."""
    with tempfile.TemporaryDirectory() as scratch:
        command = [str(UML), "-m", "2048M", "-t", "1800"]
        for name in ("group", "unused", "unused-too"):  # tests/uml clears three
            disk = Path(scratch) / name
            disk.touch()
            os.truncate(disk, 4 * size_bytes + 2 * AT_ONCE * COW_BYTES)
            command += ["-d", str(disk)]
        command += ["--", sys.executable, "-B", str(Path(__file__).resolve()), "--inside"]
        command += [f"--count={count}", f"--image-mib={size_bytes // MIB}"]
        done = subprocess.run(command, stdout=subprocess.PIPE, text=True, check=False, cwd=ROOT)
        if done.returncode != 0:
            sys.exit(f"user-mode Linux: {done.stdout[-4000:]}")
        found: dict[str, Any] = json.loads(done.stdout.splitlines()[-1])
        return found


def inside(count: int, size_bytes: int) -> dict[str, Any]:
    """In user-mode Linux: a volume group on its disk, then ``of_lvm``."""
    from tests.uml.disks import volume_group  # noqa: PLC0415

    with volume_group(name="measured") as vg:
        return of_lvm(count, size_bytes, vg)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--count", type=int, default=100, help="leases one at a time")
    parser.add_argument("--image-mib", type=int, default=64, help="size of the image")
    parser.add_argument("--store", choices=["file", "lvm", "all"], default="all")
    parser.add_argument("--json", action="store_true", help="print one JSON object")
    parser.add_argument("--inside", action="store_true", help=argparse.SUPPRESS)
    options = parser.parse_args()
    size_bytes = options.image_mib * MIB
    if options.inside:
        print(json.dumps(inside(options.count, size_bytes)))
        return
    found: dict[str, Any] = {}
    load = [os.getloadavg()[0]]
    if options.store in ("file", "all"):
        found |= of_files(options.count, size_bytes)
    if options.store in ("lvm", "all"):
        found |= in_uml(options.count, size_bytes)
    load.append(os.getloadavg()[0])
    p99_ms = {kind: one["p99_ms"] for kind, one in found.items()}
    figures = {
        "p99_ms": {kind: value for kind, value in p99_ms.items() if kind in BARRED},
        "apart": {kind: value for kind, value in p99_ms.items() if kind not in BARRED},
        "fifty": {kind: one["fifty"] for kind, one in found.items()},
        "details": found,
        "load": [round(one, 2) for one in load],
    }
    if options.json:
        print(json.dumps(figures))
        return
    for kind, one in found.items():
        print(
            f"{kind:8} p50 {one['p50_ms']} ms, p99 {one['p99_ms']} ms;"
            f" 50 at once: last after {one['fifty_last_ms']} ms, {one['fifty']} of 50 medians"
        )


if __name__ == "__main__":
    main()
