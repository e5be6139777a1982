"""A farm in network namespaces with an sshd on every host, head included."""

from __future__ import annotations

import json
import os
import subprocess
from collections.abc import Iterator, Mapping
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from agent.serving_pieces import key_line
from distrib.cli.serve_pieces import COMMENT as SEEDERS
from distrib.tsunami.admitting import limited
from tests.farm.farm import SWARM_PORT, Farm, Node, farm_on_network
from tests.farm.network import Host, Network
from tests.farm.process import BIN, eventually
from tests.tsunami.sshd import SSHD, USER, make_key, public

SSH_PORT, WEB_PORT = 2222, 16980
SWARM, SSH, WEB = f"{SWARM_PORT}-{SWARM_PORT + 3}", str(SSH_PORT), str(WEB_PORT)


@dataclass
class SshFarm:
    """The farm, its network, the nodes' key, and what serves it."""

    farm: Farm
    network: Network
    key: Path
    rate_mbit: float
    sshds: dict[str, subprocess.Popen[bytes]]

    @contextmanager
    def without(self, *ports: str) -> Iterator[None]:
        """While the block runs, nothing comes through to these ports of any host (``SWARM``)."""
        rules = [f"tcp {way} {port} drop" for port in ports for way in ("dport", "sport")]
        for host in self.network.hosts:
            filter_input(host, *rules)
        try:
            yield
        finally:
            for host in self.network.hosts:
                unfilter(host)

    @contextmanager
    def at(self, rate_mbit: float) -> Iterator[None]:
        """While the block runs, every link carries so much."""
        for host in self.network.hosts:
            self.network.shape(host, rate_mbit)
        try:
            yield
        finally:
            for host in self.network.hosts:
                self.network.shape(host, self.rate_mbit)

    def keys_file(self, name: str) -> Path:
        """The ``authorized_keys`` of a node, or of the seeder."""
        return self.key.parent / name / "authorized_keys"

    def mount(self, name: str) -> Path:
        """What a node has mounted, if it was told to; empty at first."""
        return self.key.parent / "mounts" / name

    def put(self, node: Node, *labels: str) -> None:
        """Have the node in the inventory with these labels and its host key."""
        host_key = self.key.parent / f"{node.name}-key.pub"
        place = [f"--address={node.host.address}", "--rack=R1", f"--host-key={host_key}"]
        self.farm.distrib("node", "add", node.name, *place, *(f"--label={one}" for one in labels))


def filter_input(host: Host, *rules: str) -> None:
    """Rules of nft(8) for what comes in to a host."""
    chain = "add chain inet tests input { type filter hook input priority 0; }"
    lines = ["add table inet tests", chain, *(f"add rule inet tests input {r}" for r in rules)]
    _nft(host, "\n".join(lines))


def unfilter(host: Host) -> None:
    """Take them back."""
    _nft(host, "add table inet tests\ndelete table inet tests")


def _nft(host: Host, script: str) -> None:
    subprocess.run([*host.prefix, "nft", "-f", "-"], input=script.encode(), check=True)


@contextmanager
def ssh_farm(
    directory: Path,
    nodes: int,
    *,
    rate_mbit: float,
    web_seed: bool = False,
    token_bps: int = 0,
    sources: Mapping[str, Any] | None = None,
) -> Iterator[SshFarm]:
    """The agents run, and pieces may go over SSH between all of them. ``sources`` are settings of
    every agent; with any, each has a directory mounted."""
    directory.mkdir(parents=True, exist_ok=True)
    key, head_key = make_key(directory / "key"), make_key(directory / "head-key")
    told = {
        "DISTRIB_SEEDER_SSH__PORT": str(SSH_PORT),
        "DISTRIB_SEEDER_SSH__HOST_KEYS": json.dumps([f"{head_key}.pub"]),
    }
    if web_seed:
        told["DISTRIB_SEEDER_WEB__PORT"] = str(WEB_PORT)
    if token_bps:
        told["DISTRIB_CONTROLLER_ROLLOUT__TOKEN_BPS"] = str(token_bps)
    before = dict(os.environ)
    os.environ.update(told)
    with ExitStack() as stack:
        stack.callback(_restore, before)
        farm, network = stack.enter_context(
            farm_on_network(directory / "farm", 0, rate_mbit=rate_mbit, names=nodes)
        )
        running = SshFarm(farm, network, key, rate_mbit, {})
        stack.callback(_end, running.sshds)
        serve = [str(BIN / "distrib"), "serve-pieces", "--images", str(images_of(farm))]
        line = limited(public(key), serve, comment=SEEDERS)
        running.sshds["seeder"] = _sshd(directory / "seeder", farm.head_host, head_key, line)
        for number in range(1, nodes + 1):
            add_node(running, f"wn{number}", network.add_host(rate_mbit=rate_mbit), sources)
        eventually("all online", lambda: _online(farm), limit_s=60)
        yield running


def images_of(farm: Farm) -> Path:
    """The head's image store."""
    return farm.state / "head" / "images"


def add_node(
    running: SshFarm, name: str, host: Host, sources: Mapping[str, Any] | None = None
) -> Node:
    """A node with its sshd, its host key in the inventory; its agent runs."""
    directory, farm = running.key.parent, running.farm
    node = farm.add_node(name, host)
    host_key = make_key(directory / f"{name}-key")
    running.put(node)
    said = {"identity": str(running.key), "peer_user": USER, "ssh_port": SSH_PORT}
    sections: dict[str, Mapping[str, Any]] = {"tsunami": said}
    if sources is not None:
        running.mount(name).mkdir(parents=True)
        sections["sources"] = {"paths": [str(running.mount(name))], **sources}
    with (node.directory / "agent.toml").open("a") as config:
        for section, values in sections.items():
            lines = (f"{key} = {json.dumps(value)}" for key, value in values.items())
            config.write(f"\n[{section}]\n" + "\n".join(lines) + "\n")
    line = key_line(public(running.key), agent_socket=node.socket)
    running.sshds[name] = _sshd(directory / name, host, host_key, line)
    node.start()
    return node


def _sshd(directory: Path, host: Host, host_key: Path, line: str) -> subprocess.Popen[bytes]:
    Path("/run/sshd").mkdir(exist_ok=True)
    directory.mkdir(exist_ok=True)
    keys = directory / "authorized_keys"
    keys.write_text(line + "\n")
    settings = (
        f"ListenAddress {host.address}:{SSH_PORT}",
        f"HostKey {host_key}",
        f"AuthorizedKeysFile {keys}",
        "PidFile none",
        "StrictModes no",
        "UsePAM no",
        "PasswordAuthentication no",
        "PermitRootLogin yes",
        "MaxStartups 100",
        "Subsystem sftp internal-sftp",
    )
    config = directory / "sshd_config"
    config.write_text("\n".join(settings) + "\n")
    log = directory / "sshd.log"
    command = [*host.prefix, SSHD, "-D", "-f", str(config), "-E", str(log)]
    child = subprocess.Popen(command, start_new_session=True)
    eventually("sshd listens", lambda: log.exists() and b"listening" in log.read_bytes())
    return child


def _online(farm: Farm) -> bool:
    return all(one["online"] for one in farm.ask("node", "list")["nodes"])


def _end(sshds: dict[str, subprocess.Popen[bytes]]) -> None:
    for child in sshds.values():
        child.kill()
        child.wait()


def _restore(before: dict[str, str]) -> None:
    os.environ.clear()
    os.environ.update(before)
