"""Guests on a network, for real: a NAT network of libvirt's, and a bridge behind its filter.

libvirtd, bridge, NAT and DHCP server live in a network namespace of their own.
"""

from __future__ import annotations

import asyncio
import shutil
import subprocess
import tempfile
from collections.abc import AsyncIterator, Callable
from pathlib import Path

import pytest

from agent.launch.domain import Nic
from agent.launch.job import run_job
from agent.launch.libvirt import Libvirt
from agent.launch.spec import JobResult, JobSpec, Limits
from tests.launch.conftest import AGENT, ROOT, Output

pytestmark = [pytest.mark.root, pytest.mark.timeout(150)]

MakeSpec = Callable[..., JobSpec]

NAMESPACE = """
mount -t sysfs sysfs /sys
ip link set lo up
ip link add public type bridge
ip address add 10.99.0.1/24 dev public
ip link set public up
exec "$0" start "$1"
"""
# What a node has in /etc/libvirt/qemu/networks.
PRIVATE = """
<network>
  <name>private</name>
  <forward mode='nat'/>
  <bridge name='private' stp='off' delay='0'/>
  <ip address='10.98.0.1' netmask='255.255.255.0'>
    <dhcp><range start='10.98.0.50' end='10.98.0.99'/></dhcp>
  </ip>
</network>
"""
ASKS_FOR_AN_ADDRESS = r"""
cat >/tmp/dhcp <<'SCRIPT'
#!/bin/sh
[ "$1" = bound ] || exit 0
ip address add "$ip/$mask" dev "$interface"
ip route add default via "$router"
SCRIPT
chmod +x /tmp/dhcp
ip link set eth0 up
udhcpc -i eth0 -s /tmp/dhcp -t 20 -T 1 -n -q >&2 || exit 3
ip -4 -o address show eth0 | grep -o '10[.][0-9.]*/[0-9]*'
ping -c 1 -w 10 10.99.0.1 >&2 && echo out
"""
TAKES_AN_ADDRESS = """
ip address add 10.99.0.7/24 dev eth0
ip link set eth0 up
ping -c 1 -w 20 10.99.0.1 >&2 && echo own
ip address add 10.99.0.66/24 dev eth0
ping -c 3 -w 3 -I 10.99.0.66 10.99.0.1 >&2 || echo 'not as another'
ping -c 1 -w 10 -I 10.99.0.7 10.99.0.1 >&2 && echo 'own again'
ip address show eth0 >&2
"""


@pytest.fixture
async def networked() -> AsyncIterator[tuple[Libvirt, Path]]:
    """A libvirtd with both kinds of network, and its directory."""
    directory = Path(tempfile.mkdtemp(prefix="distrib-lv-"))
    script = ROOT / "scripts" / "libvirt-private"
    shutil.copytree("/etc/libvirt/nwfilter", directory / "etc" / "nwfilter")
    (directory / "private.xml").write_text(PRIVATE)
    unshare = ("unshare", "--net", "--mount", "bash", "-ec", NAMESPACE)
    uri = (await _said(*unshare, str(script), str(directory))).strip()
    virsh = ("virsh", "-q", "-c", uri)
    try:
        await _said(*virsh, "net-define", str(directory / "private.xml"))
        await _said(*virsh, "net-start", "private")
        async with Libvirt(uri, agent=AGENT) as libvirt:
            yield libvirt, directory
            assert await libvirt.domains() == ()
        await _said(*virsh, "net-destroy", "private")  # and its DHCP server with it
    finally:
        await _said(str(script), "stop", str(directory))
        shutil.rmtree(directory, ignore_errors=True)


async def _said(*command: str) -> str:
    process = await asyncio.create_subprocess_exec(
        *command, stdout=subprocess.PIPE, stderr=subprocess.PIPE
    )
    out, err = await process.communicate()
    assert process.returncode == 0, (command, out, err)
    return out.decode()


async def test_guests_have_a_network_and_no_addresses_but_their_own(
    networked: tuple[Libvirt, Path], make_spec: MakeSpec
) -> None:
    hypervisor, directory = networked
    behind_nat, on_bridge = Output(), Output()
    limits = Limits(boot_timeout_s=60, wall_s=100)

    async def run(script: str, nic: Nic, output: Output) -> JobResult:
        spec = make_spec(script, nic=nic, limits=limits)
        return await run_job(
            spec, on_stdout=output.out, on_stderr=output.err, hypervisor=hypervisor
        )

    async def rules() -> str:
        await on_bridge.said.wait()
        inside = ("nsenter", "--net", "--target", (directory / "libvirtd.pid").read_text().strip())
        return await _said(*inside, "ebtables", "--concurrent", "-t", "nat", "-L")

    mac = "52:54:00:99:00:07"
    private, public, filtered = await asyncio.gather(
        run(ASKS_FOR_AN_ADDRESS, Nic("network", "private"), behind_nat),
        run(TAKES_AN_ADDRESS, Nic("bridge", "public", mac=mac), on_bridge),
        rules(),
    )
    assert private.exit_status == 0, behind_nat.stderr
    address, reached = behind_nat.stdout.decode().split()
    assert address.startswith("10.98.0.")
    assert reached == "out"
    told = on_bridge.stdout.decode().splitlines()
    assert (public.exit_status, told) == (0, ["own", "not as another", "own again"]), told
    assert mac.encode() in on_bridge.stderr
    assert mac in _normal(filtered)


def _normal(rules: str) -> str:
    """ebtables leaves out leading zeros in a MAC address, or does not, by its version."""
    words: list[str] = []
    for word in rules.split():
        parts = word.split(":")
        words.append(":".join(part.zfill(2) for part in parts) if len(parts) == 6 else word)
    return " ".join(words)
