"""A host with two networks: the swarm lives on the one that the settings name, and nowhere else."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.pull.conftest import PORT, Published, published

__all__ = ["published"]

pytestmark = pytest.mark.root
OWN, OWN_PEER, OTHER_PEER = "10.91.1.1", "10.91.1.9", "10.91.2.9"

_AGENT_SIDE = """
import asyncio, sys
from pathlib import Path
from distrib.swarm.classes import Place, see
from distrib.swarm.profile import lan_profile
from distrib.swarm.session import SwarmSession
from distrib.swarm.torrent import info_of, parse_info

async def main():
    torrent = Path(sys.argv[1]).read_bytes()
    session = SwarmSession(lan_profile(address="10.91.1.1", port=int(sys.argv[3])), backend="pread")
    session.admit(see([Place("r1", "", ("10.91.1.0/24",))], own=["10.91.1.1"]))
    async with session.running():
        transfer = session.add(parse_info(info_of(torrent)), torrent, Path(sys.argv[2]))
        transfer.connect("10.91.1.9", 6881)
        transfer.connect("10.91.2.9", 6881)
        print("up", flush=True)
        await asyncio.to_thread(sys.stdin.readline)

asyncio.run(main())
"""


@pytest.fixture
def host() -> Iterator[str]:
    """A network namespace with two networks and nobody on them."""
    name = f"dt-two-{os.getpid()}"
    run("ip", "netns", "add", name)
    try:
        inside(name, "sysctl", "-qw", "net.ipv6.conf.default.disable_ipv6=1")
        for number in (1, 2):
            veth = ("type", "veth", "peer", "name", f"far{number}")
            inside(name, "ip", "link", "add", f"net{number}", *veth)
            inside(name, "ip", "link", "set", f"far{number}", "up")
            inside(name, "ip", "addr", "add", f"10.91.{number}.1/24", "dev", f"net{number}")
            inside(name, "ip", "link", "set", f"net{number}", "arp", "off", "up")
        yield name
    finally:
        run("ip", "netns", "delete", name)


def run(*command: str) -> str:
    return subprocess.run(command, check=True, capture_output=True, text=True).stdout


def inside(name: str, *command: str) -> str:
    return run("ip", "netns", "exec", name, *command)


def sent(name: str, interface: str) -> int:
    return int(inside(name, "cat", f"/sys/class/net/{interface}/statistics/tx_packets"))


def test_nothing_listens_on_or_leaves_through_a_network_that_is_not_named(
    host: str, tmp_path: Path, published: Published
) -> None:
    torrent = tmp_path / "t"
    torrent.write_bytes(published.torrent)
    (tmp_path / "image.raw").write_bytes(bytes(published.info.size_bytes))
    command = [sys.executable, "-c", _AGENT_SIDE, str(torrent), str(tmp_path), str(PORT)]
    agent = subprocess.Popen(
        ["ip", "netns", "exec", host, *command],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
        cwd=Path(__file__).parents[2],
    )
    try:
        assert agent.stdout is not None
        assert agent.stdout.readline() == "up\n"
        # The peer on the right network is tried: by then the other one would have been, too.
        inside(host, "timeout", "10", "sh", "-c", f"until {_tried(OWN_PEER)}; do sleep 0.1; done")
        listening = {
            line.split()[4].rpartition(":")[0].partition("%")[0]
            for line in inside(host, "ss", "-Hlntu").splitlines()
        }
        assert listening == {OWN}
        assert sent(host, "net1") > 0
        assert sent(host, "net2") == 0
        assert OTHER_PEER not in inside(host, "ss", "-Hant")
    finally:
        agent.communicate("\n", timeout=20)
    assert agent.returncode == 0


def _tried(address: str) -> str:
    return f"ss -Hant | grep -q 'SYN-SENT.*{address}'"
