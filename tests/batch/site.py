"""A site in a bed: the farm of distrib beside a batch system, on the same hosts."""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import time
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from agent.hooks.gridengine.names import IMAGES, image_id
from agent.socket.client import ask
from distrib.errors import DistribError
from tests.batch.bed import Bed, BedHost, bed
from tests.batch.cell import QUEUE, Cell
from tests.batch.product import PREFIX, ROOT, environment_layer, install
from tests.farm.farm import Farm, Image, Node
from tests.farm.process import Daemon, eventually
from tests.stories.test_rollout import start, wait

SOCKET = Path("/run/distrib/agent.sock")
AGENT = str(PREFIX / "bin" / "distrib-agent")
MASTER, WORKERS = "qm", ("wn1", "wn2")


class BedNode(Node):
    """A node with the installed product; its agent is where the hooks look for it."""

    host: BedHost

    def __init__(self, farm: Farm, name: str, host: BedHost, settings: dict[str, Any]) -> None:
        super().__init__(farm, name, host, settings)
        text = self._config.read_text("utf-8")
        self._config.write_text(text.replace(str(self.socket), str(SOCKET)), "utf-8")
        self.socket = host.path(SOCKET)

    def start(self) -> None:
        self.agent = Daemon(
            [*self.host.prefix, AGENT, "run", "--config", str(self._config)],
            log=self.directory / "agent.log",
        )
        eventually(f"{self.name} answers", self.answers, daemon=self.agent, limit_s=30)

    @property
    def pid(self) -> int:
        """Of the agent, as the bed counts."""
        return int(ask(self.socket, "status")["pid"])

    def signal(self, number: int) -> None:
        """To the agent itself, and wait for its end: the child here only entered the bed."""
        assert self.agent is not None
        self.host.run("kill", f"-{int(number)}", str(self.pid))
        eventually(f"{self.name} has ended", lambda: not self.agent.running)

    def kill(self) -> None:
        self.signal(signal.SIGKILL)

    def stop(self) -> None:
        if self.agent is not None and self.agent.running:
            self.signal(signal.SIGTERM)

    def leases(self) -> list[dict[str, Any]]:
        try:
            return list(ask(self.socket, "leases")["leases"])
        except DistribError:
            return []


@dataclass
class Site:
    """The bed, the farm in it, the cell; ``image`` is approved, has the alias ``ccin2p3`` and is
    on both nodes."""

    bed: Bed
    farm: Farm
    cell: Cell
    image: Image
    libvirt: dict[str, str] = field(default_factory=dict)

    @property
    def nodes(self) -> list[BedNode]:
        return [node for node in self.farm.nodes.values() if node.name in WORKERS]  # type: ignore[misc]

    def node(self, name: str) -> BedNode:
        return self.farm.nodes[name]  # type: ignore[return-value]

    def domains(self, name: str) -> list[str]:
        """The guests that run on a node."""
        host = self.node(name).host
        listed = host.run("virsh", "-c", self.libvirt[name], "list", "--name").stdout
        return listed.split()

    def bring(self, *, alias: str, nodes: str = "") -> Image:
        """A further image that boots, approved, and brought to some nodes."""
        file = self.farm.directory / f"{alias}.raw"
        build = [ROOT / "scripts" / "guest" / "build", "-o", file, "--size-mb", "32"]
        subprocess.run([*build, "--payload-seed", alias], check=True, capture_output=True)
        image = self.farm.endorse(file, alias=alias)
        self.farm.approve(image)
        if nodes:
            wait(self.farm, start(self.farm, image, nodes))
        return image

    def held_by(self, image: Image) -> set[str]:
        """The hosts that Grid Engine believes to have an image."""
        shown = self.cell.admin("qhost", "-F", IMAGES).stdout
        hosts: dict[str, str] = {}
        name = ""
        for line in shown.splitlines():
            if not line.startswith(" "):
                name = line.split()[0]
            hosts[name] = hosts.get(name, "") + line
        return {host for host, text in hosts.items() if image_id(image.identifier) in text}

    def runs(self, job: str) -> list[dict[str, Any]]:
        """What the nodes' run logs say of a job's ended guests."""
        files = (file for node in self.nodes for file in node.directory.glob("state/runlog/*"))
        lines = [json.loads(line) for file in files for line in file.read_text().splitlines()]
        names = {f"gridengine:{job}", f"gridengine:{job}.1"}
        return [line for line in lines if line["event"] == "end" and line["job"] in names]

    def left(self) -> dict[str, list[str]]:
        """What jobs have left on the nodes: nothing, once they are over."""
        found: dict[str, list[str]] = {}
        for node in self.nodes:
            instances = node.cache / "instances"
            left = [f"domain {name}" for name in self.domains(node.name)]
            # As root on the node: others see their own.
            told = node.host.run(AGENT, "leases", "--json").stdout
            left += ["lease"] if '"lease"' in told else []
            left += [str(path) for path in instances.glob("*")]
            left += [str(path) for path in (node.directory / "state" / "run").glob("*")]
            if left:
                found[node.name] = left
        return found


def passable(directory: Path) -> None:
    """Let accounts of the bed pass through pytest's directories."""
    for parent in [directory, *directory.parents]:
        if parent.stat().st_uid == os.getuid() and parent != Path("/"):
            parent.chmod(parent.stat().st_mode | 0o011)


@contextmanager
def site(directory: Path, guest_image: Path, *, layers: Sequence[Path]) -> Iterator[Site]:
    """A site with Grid Engine and the hooks installed; ends with its bed."""
    passable(directory)
    with ExitStack() as ending:
        entered = bed(directory, layers=[*layers, environment_layer()], name=MASTER)
        made = ending.enter_context(entered)
        began_s = time.monotonic()

        def lap(what: str) -> None:
            print(f"{what}: {time.monotonic() - began_s:.1f} s")

        (directory / "wheel").mkdir()
        install(made.head, directory / "wheel")
        lap("product")
        farm = Farm(directory, made.head, [MASTER, *WORKERS])
        ending.callback(_reap, farm)
        farm.start_head()
        lap("head")
        cell = Cell(made)
        cell.configure()
        lap("cell")
        libvirt: dict[str, str] = {}
        for name in (MASTER, *WORKERS):
            host = made.head if name == MASTER else made.add_host(name)
            if name != MASTER:
                libvirt[name] = _libvirt(host)
            _add(farm, name, host, libvirt.get(name))
        lap("agents")
        file = farm.directory / "guest.raw"
        shutil.copy(guest_image, file)
        image = farm.endorse(file, alias="ccin2p3")
        farm.approve(image)
        wait(farm, start(farm, image, ",".join(WORKERS)))
        lap("image")
        for name in WORKERS:
            cell.add_node(farm.nodes[name].host)  # type: ignore[arg-type]
        vmem = [f"--vmem={name}=6G" for name in WORKERS]
        cell.admin(AGENT, "hooks", "gridengine", "install", f"--queue={QUEUE}", *vmem)
        lap("nodes")
        yield Site(made, farm, cell, image, libvirt)


def _add(farm: Farm, name: str, host: BedHost, libvirt: str | None) -> BedNode:
    launch = {"libvirt_uri": libvirt, "memory_mib": 128, "hypervisor": "qemu"} if libvirt else {}
    settings = {"launch": launch, "cache": {"cow_bytes": 64 << 20}}
    node = BedNode(farm, name, host, settings)
    farm.distrib("node", "add", name, f"--address={host.address}", "--rack=R1")
    farm.nodes[name] = node
    node.start()
    return node


def _libvirt(host: BedHost) -> str:
    script = ROOT / "scripts" / "libvirt-private"
    return host.run(script, "start", "/run/distrib/libvirt", limit_s=60).stdout.strip()


def _reap(farm: Farm) -> None:
    """End what the tests have started; in the bed all ends with the bed."""
    for daemon in (farm.head, *(node.agent for node in farm.nodes.values())):
        if daemon is not None:
            daemon.kill()
