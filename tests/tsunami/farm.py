"""A farm in network namespaces with an sshd on every host, head included."""

from __future__ import annotations

import json
import os
import subprocess
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path

from agent.serving_pieces import key_line
from tests.farm.farm import SWARM_PORT, Farm, Node, farm_on_network
from tests.farm.network import Host, Network
from tests.farm.process import BIN, eventually
from tests.tsunami.sshd import SSHD, USER, make_key, public

SSH_PORT, WEB_PORT = 2222, 16980


@dataclass
class SshFarm:
    """The farm, its network, the nodes' key, and what serves it."""

    farm: Farm
    network: Network
    key: Path
    sshds: dict[str, subprocess.Popen[bytes]]

    def block_swarm(self, *hosts: Host) -> None:
        """Drop BitTorrent at these hosts, or at all."""
        rule = f"tcp dport {SWARM_PORT}-{SWARM_PORT + 3} drop"
        back = f"tcp sport {SWARM_PORT}-{SWARM_PORT + 3} drop"
        for host in hosts or self.network.hosts:
            filter_input(host, rule, back)

    def open_swarm(self) -> None:
        """Take ``block_swarm`` back."""
        for host in self.network.hosts:
            unfilter(host)


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
    directory: Path, nodes: int, *, rate_mbit: float, web_seed: bool = False, token_bps: int = 0
) -> Iterator[SshFarm]:
    """The agents run, and pieces may go over SSH between all of them."""
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
        running = SshFarm(farm, network, key, {})
        stack.callback(_end, running.sshds)
        serve = f"{BIN / 'distrib'} serve-pieces --images {farm.state / 'head' / 'images'}"
        line = f'restrict,command="{serve}" {public(key)}'
        running.sshds["seeder"] = _sshd(directory / "head", farm.head_host, head_key, line)
        for number in range(1, nodes + 1):
            add_node(running, f"wn{number}", network.add_host(rate_mbit=rate_mbit), directory)
        eventually("all online", lambda: _online(farm), limit_s=60)
        yield running


def add_node(running: SshFarm, name: str, host: Host, directory: Path, link_mbit: int = 0) -> Node:
    """A node with its sshd, its host key in the inventory; its agent runs."""
    farm = running.farm
    node = farm.add_node(name, host)
    host_key = make_key(directory / f"{name}-key")
    labels = [f"--label=link_mbit={link_mbit}"] if link_mbit else []
    place = [f"--address={host.address}", "--rack=R1", f"--host-key={host_key}.pub", *labels]
    farm.distrib("node", "add", name, *place)
    with (node.directory / "agent.toml").open("a") as config:
        said = {"identity": str(running.key), "peer_user": USER, "ssh_port": SSH_PORT}
        lines = (f"{key} = {json.dumps(value)}" for key, value in said.items())
        config.write("\n[tsunami]\n" + "\n".join(lines) + "\n")
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
