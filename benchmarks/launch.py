"""A job in a guest of a cached image, beside `virsh create` of the same machine.

A farm on loopback brings the small guest to a node whose agent is then asked to launch; between
its launches the same job runs in a domain of the same XML (the product's own), on an instance and
a context disc that are there already, made by ``virsh create`` and timed until its QEMU is gone.
One object:

* ``overhead_p95_ms``, ``overhead_p50_ms``: of each launch, from the start of ``distrib-agent
  launch`` to its exit, what is neither libvirt's start of the guest nor the guest's: its boot, and
  the median of what job and power-off take by virsh. Waits of ours in the job's and the guest's
  end are in it;
* ``difference_p50_ms``: the median of the pairs' plain differences, ``virsh create`` to the guest's
  end; on a busy machine two boots differ by more than all of ours;
* ``launch_p50_ms``, ``virsh_p50_ms``: the medians of both;
* ``phases``: median and p95 of each part of a launch. Ours: ``command`` (its start, until it has a
  lease), of which ``lease`` (measured apart, through the socket), ``disc`` (files, context disc),
  ``told`` (from the guest's end until the command has ended), ``release`` (after that, until the
  instance is gone; nobody waits for it). Not ours: ``libvirt`` (its start of the guest), ``boot``,
  ``job``, ``off`` (the guest's power-off; ours in it: that it is noticed);
* ``virsh_phases``: the same of the domain by virsh; ``load``: before and after;
* ``gridengine`` (``--gridengine JOBS``; root): jobs of a real cell in a bed, two nodes, one job at
  a time: from ``qsub`` until there is no such job, of which the launch (as the node's run log has
  it), the rest (scheduler, hooks) being ``scheduler``.
"""

from __future__ import annotations

import argparse
import json
import os
import select
import shutil
import socket
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager, redirect_stdout
from pathlib import Path
from typing import Any

ROOT = Path(__file__).parents[1]
sys.path.insert(0, str(ROOT))

from agent.launch.domain_xml import to_xml  # noqa: E402
from agent.launch.guest import write_files  # noqa: E402
from agent.launch.job import make_run_dir  # noqa: E402
from agent.launch.outcome import parse_result  # noqa: E402
from agent.launch.spec import JobSpec  # noqa: E402
from agent.socket.client import ask  # noqa: E402
from benchmarks.lease import percentile  # noqa: E402
from tests.farm.farm import Farm, Image, Loopback, Node, farm_on_loopback  # noqa: E402
from tests.farm.process import BIN, eventually  # noqa: E402

MIB = 1 << 20
MEMORY_MIB = 128
COW_BYTES = 64 * MIB
JOB = b"echo done\n"
LOOK_S = 0.002
LIMIT_S = 120.0

Times = dict[str, float]


@contextmanager
def private_libvirt() -> Iterator[tuple[str, Path]]:
    """The URI of a libvirtd that is ours alone, and its directory."""
    directory = Path(tempfile.mkdtemp(prefix="distrib-lv-"))
    script = ROOT / "scripts" / "libvirt-private"
    try:
        started = subprocess.run(
            [script, "start", directory], check=True, stdout=subprocess.PIPE, text=True
        )
        yield started.stdout.strip(), directory
    finally:
        subprocess.run([script, "stop", directory], check=True)
        shutil.rmtree(directory, ignore_errors=True)


def joined(farm: Farm, uri: str) -> tuple[Node, Image]:
    """A node that launches and holds the small guest."""
    file = farm.directory / "guest.raw"
    build = [str(ROOT / "scripts" / "guest" / "build"), "-o", str(file), "--size-mb", "32"]
    subprocess.run(build, check=True)
    launch = {"libvirt_uri": uri, "memory_mib": MEMORY_MIB, "hypervisor": "qemu"}
    node = farm.add_node("wn1", Loopback(2), launch=launch, cache={"cow_bytes": COW_BYTES})
    node.start()
    eventually("online", lambda: farm.ask("node", "show", node.name)["online"], limit_s=60)
    image = farm.endorse(file, alias="guest")
    farm.approve(image)
    farm.ask("rollout", "start", "guest", f"--nodes={node.name}")
    eventually("ready", lambda: node.state(image) == "ready", limit_s=60)
    return node, image


def launched(node: Node) -> Times:
    """The parts of one launch by the product, in seconds."""
    command = [str(BIN / "distrib-agent"), "--socket", str(node.socket), "launch", "--json"]
    command += ["guest", "-"]
    began_s = time.monotonic()
    seen_s: Times = {}
    phases: Times = {}
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE) as client:
        assert client.stdin is not None
        assert client.stdout is not None
        client.stdin.write(JOB)
        client.stdin.close()
        for raw in client.stdout:
            line = json.loads(raw)
            for key in ("lease", "phase", "exit"):
                if key in line:
                    seen_s.setdefault(line[key] if key == "phase" else key, time.monotonic())
            phases = line.get("phases", phases)
        status = client.wait()
    ended_s = time.monotonic()
    assert status == 0, f"a launch ended with {status}"
    instances = node.cache / "instances"
    while any(instances.iterdir()):
        time.sleep(LOOK_S)
    return {
        "all": ended_s - began_s,
        "command": seen_s["lease"] - began_s,
        "disc": phases["prepared"],
        "libvirt": phases["started"] - phases["prepared"],
        "boot": phases["booted"] - phases["started"],
        "job": phases["done"] - phases["booted"],
        "off": phases["ended"] - phases["done"],
        "told": ended_s - seen_s["ended"],
        "release": time.monotonic() - ended_s,
    }


def leased(node: Node) -> float:
    """Seconds of a lease through the socket."""
    began_s = time.monotonic()
    answer = ask(node.socket, "lease", image="guest", cow_bytes=COW_BYTES)
    taken_s = time.monotonic() - began_s
    ask(node.socket, "release", lease=answer["lease"])
    return taken_s


def by_virsh(uri: str, libvirt: Path, base: Path, scratch: Path, number: int) -> Times:
    """The parts of the same job in a domain that virsh makes, in seconds."""
    overlay = scratch / f"{number}.qcow2"
    create = ["qemu-img", "create", "-q", "-f", "qcow2", "-b", str(base), "-F", "raw", str(overlay)]
    subprocess.run(create, check=True)
    spec = JobSpec(
        agent="virsh",
        lease_id=f"l-{number:06x}",
        script=JOB,
        disk_path=overlay,
        disk_format="qcow2",
        memory_mib=MEMORY_MIB,
        vcpus=1,
        run_dir=scratch / f"run-{number}",
    )
    make_run_dir(spec)
    write_files(spec)
    xml = scratch / f"{number}.xml"
    xml.write_text(to_xml(spec.domain()))
    name, files = spec.domain().name, spec.files

    began_s = time.monotonic()
    subprocess.run(["virsh", "-q", "-c", uri, "create", xml], check=True, stdout=subprocess.PIPE)
    started_s = time.monotonic()
    pid = int((libvirt / "run" / "qemu" / f"{name}.pid").read_text())
    alive = os.pidfd_open(pid)
    (control,) = (libvirt / "lib" / "qemu" / "channel" / "target").glob("*/distrib.control")
    with socket.socket(socket.AF_UNIX) as port:
        # Its runner waits for the word that the product gives it at its end.
        port.connect(str(control))
        while not files.result.stat().st_size:
            time.sleep(LOOK_S)
        booted_s = time.monotonic()
        while parse_result(files.result.read_bytes()).exit_status is None:
            time.sleep(LOOK_S)
            assert time.monotonic() < booted_s + LIMIT_S, "the job did not end"
        done_s = time.monotonic()
        port.sendall(b"END\n")
        select.select([alive], [], [], LIMIT_S)
        ended_s = time.monotonic()
    os.close(alive)
    assert files.stdout.read_bytes() == b"done\n"
    return {
        "all": ended_s - began_s,
        "libvirt": started_s - began_s,
        "boot": booted_s - started_s,
        "job": done_s - booted_s,
        "off": ended_s - done_s,
    }


def summed(found: list[Times]) -> dict[str, dict[str, float]]:
    """Median and p95 of each part, in milliseconds."""
    return {
        part: {
            "p50_ms": round(1000 * statistics.median(one[part] for one in found), 1),
            "p95_ms": round(1000 * percentile([one[part] for one in found], 0.95), 1),
        }
        for part in found[0]
    }


def measure(count: int, limit_s: float) -> dict[str, Any]:
    """Pairs of launches, one after the other; at least one, and none begun after ``limit_s``."""
    until_s = time.monotonic() + limit_s
    load = [os.getloadavg()[0]]
    ours: list[Times] = []
    theirs: list[Times] = []
    with (
        tempfile.TemporaryDirectory() as scratch,
        private_libvirt() as (uri, libvirt),
        farm_on_loopback(Path(scratch) / "farm", 1, add=False) as farm,
    ):
        node, image = joined(farm, uri)
        first = launched(node)  # loads what only launches need
        for number in range(count):
            ours.append(launched(node) | {"lease": leased(node)})
            theirs.append(by_virsh(uri, libvirt, node.volume(image), Path(scratch), number))
            if time.monotonic() > until_s:
                break
        node.stop()
    load.append(os.getloadavg()[0])
    guests_s = statistics.median(one["job"] + one["off"] for one in theirs)
    over_ms = [1000 * (one["all"] - one["libvirt"] - one["boot"] - guests_s) for one in ours]
    pairs = zip(ours, theirs, strict=True)
    difference_s = statistics.median(one["all"] - other["all"] for one, other in pairs)
    phases, virsh_phases = summed(ours), summed(theirs)
    return {
        "overhead_p95_ms": round(percentile(over_ms, 0.95), 1),
        "overhead_p50_ms": round(statistics.median(over_ms), 1),
        "count": len(ours),
        "difference_p50_ms": round(1000 * difference_s, 1),
        "launch_p50_ms": phases.pop("all")["p50_ms"],
        "virsh_p50_ms": virsh_phases.pop("all")["p50_ms"],
        "phases": phases,
        "virsh_phases": virsh_phases,
        "first_ms": round(1000 * first["all"], 1),
        "overheads_ms": [round(one, 1) for one in over_ms],
        "load": [round(one, 2) for one in load],
    }


def gridengine(jobs: int) -> dict[str, dict[str, float]]:
    """What a batch system adds, in milliseconds."""
    # The bed costs a minute, and is not everywhere.
    from tests.batch.site import site  # noqa: PLC0415

    layer = subprocess.run([ROOT / "scripts" / "gridengine"], check=True, stdout=subprocess.PIPE)
    layers = [Path(layer.stdout.decode().strip())]
    found: list[Times] = []
    with tempfile.TemporaryDirectory() as scratch:
        guest = Path(scratch) / "guest.raw"
        build = [str(ROOT / "scripts" / "guest" / "build"), "-o", str(guest), "--size-mb", "32"]
        subprocess.run(build, check=True)
        (Path(scratch) / "site").mkdir()
        with (
            redirect_stdout(sys.stderr),
            site(Path(scratch) / "site", guest, layers=layers) as made,
        ):
            for _ in range(jobs + 1):
                began_s = time.monotonic()
                job = made.cell.qsub("-q", "virt", "-ac", "vm_name=ccin2p3", script=JOB.decode())
                made.cell.wait(job)
                all_s = time.monotonic() - began_s
                assert made.cell.output(job) == "done\n", made.cell.errors(job)
                launch_s = _of_run_log(job, [node.directory for node in made.nodes])
                found.append({"all": all_s, "launch": launch_s, "scheduler": all_s - launch_s})
    return summed(found[1:])  # the first one's agent loads what only launches need


def _of_run_log(job: str, nodes: list[Path]) -> float:
    for file in (file for node in nodes for file in (node / "state" / "runlog").glob("*.jsonl")):
        for line in map(json.loads, file.read_text().splitlines()):
            if line["event"] == "end" and line["job"].partition(".")[0] == job:
                return float(line["wall_s"])
    raise AssertionError(f"no run log has job {job}")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--count", type=int, default=12, help="pairs of launches, or 0")
    parser.add_argument("--limit-s", type=float, default=3600.0, help="begin no pair after that")
    parser.add_argument("--gridengine", type=int, default=0, metavar="JOBS", help="jobs of a cell")
    parser.add_argument("--json", action="store_true", help="print one JSON object")
    options = parser.parse_args()
    figures = measure(options.count, options.limit_s) if options.count else {}
    if options.gridengine:
        figures["gridengine"] = gridengine(options.gridengine)
    if options.json:
        print(json.dumps(figures))
        return
    if options.count:
        print(
            f"overhead over virsh create: p50 {figures['overhead_p50_ms']} ms,"
            f" p95 {figures['overhead_p95_ms']} ms"
        )
    for part, one in {**figures.get("phases", {}), **figures.get("gridengine", {})}.items():
        print(f"  {part:9} p50 {one['p50_ms']} ms, p95 {one['p95_ms']} ms")


if __name__ == "__main__":
    main()
