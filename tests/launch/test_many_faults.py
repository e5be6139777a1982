"""Fifty faults, one after the other, on one node: each has a clear outcome, and nothing is left."""

from __future__ import annotations

import asyncio
import os
import random
import re
import signal
import subprocess
import tempfile
from collections.abc import AsyncIterator
from pathlib import Path

import pytest

from agent.launch.libvirt import Libvirt
from tests.launch.place import Agent, outcome, until
from tests.trust.conftest import World, world

__all__ = ["world"]

pytestmark = [pytest.mark.long, pytest.mark.timeout(3600)]

SCRIPT = Path(__file__).parents[2] / "scripts" / "libvirt-private"
FAULTS = ("libvirtd", "qemu", "agent", "agent and client", "client", "revoked", "terminated")
ROUNDS = 50


@pytest.fixture
async def place(world: World, guest_image: Path) -> AsyncIterator[tuple[Agent, Path]]:
    """An agent with a libvirtd of its own, which may be killed."""
    libvirt = Path(tempfile.mkdtemp(prefix="distrib-lv-"))
    uri = await _private("start", libvirt)
    with tempfile.TemporaryDirectory(prefix="distrib-ag-") as directory:
        agent = Agent(Path(directory), world, guest_image, {"launch.libvirt_uri": uri})
        await agent.start()
        yield agent, libvirt
        await agent.stop()
    await _private("stop", libvirt)


async def _private(action: str, directory: Path) -> str:
    process = await asyncio.create_subprocess_exec(
        SCRIPT, action, directory, stdout=subprocess.PIPE
    )
    text, _ = await process.communicate()
    assert process.returncode == 0
    return text.decode().strip()


async def test_fifty_faults(place: tuple[Agent, Path], tmp_path: Path) -> None:
    agent, libvirt = place
    dice = random.Random(7)
    for number in range(ROUNDS):
        fault = FAULTS[number] if number < len(FAULTS) else dice.choice(FAULTS)
        account = tmp_path / f"{number}"
        options = ("--accounting", str(account), "--refused", "100", "--node-fault", "99")
        job = "echo started; sleep 3; echo ended; exit 5\n"
        image = agent.image.identifier
        async with agent.client("launch", *options, image, "-", script=job) as client:
            assert client.stdout is not None
            # Sometimes the guest has not come so far.
            if dice.random() < 0.8:
                assert await client.stdout.readline() == b"started\n"
            else:
                await until(lambda: bool(agent.launched()))
            await _strike(fault, agent, client, libvirt)
            async with asyncio.timeout(150):
                out, err = await client.communicate()
        told = (number, fault, client.returncode, out, err)
        assert client.returncode in EXPECTED[fault], told
        if client.returncode in {99, 100}:
            assert outcome(account)["error"]["message"], told
        keep = {lease.lease for lease in agent.cache.leases()}
        await agent.launcher.end_orphans(keep)
        await agent.nothing_left()
        async with Libvirt(agent.settings.launch.libvirt_uri, agent="node1") as hypervisor:
            assert await hypervisor.domains() == (), told


# A start that is cut short is a fault of the node; a job that is left alone ends with its own 5.
EXPECTED = {
    "libvirtd": {5, 99},
    "qemu": {99},
    "agent": {5, 99},
    "agent and client": {-signal.SIGKILL},
    "client": {-signal.SIGKILL},
    "revoked": {100},
    "terminated": {128 + signal.SIGTERM, -signal.SIGTERM},
}


async def _strike(
    fault: str, agent: Agent, client: asyncio.subprocess.Process, libvirt: Path
) -> None:
    match fault:
        case "libvirtd":
            os.kill(_number(libvirt / "libvirtd.pid"), signal.SIGKILL)
            await _private("start", libvirt)
        case "qemu":
            await until(lambda: bool(_qemus(libvirt)))
            os.kill(_qemus(libvirt)[0], signal.SIGKILL)
        case "agent":
            await agent.stop()
            await agent.start()
        case "agent and client":
            await agent.stop()
            client.kill()
            await client.wait()
            await agent.start()
        case "client":
            client.kill()
        case "revoked":
            await agent.launches.end_uses(agent.image.infohash, "struck")
        case "terminated":
            client.terminate()
        case _:
            raise AssertionError(fault)


def _qemus(libvirt: Path) -> list[int]:
    return [
        _number(file)
        for file in libvirt.glob("run/**/*.pid")
        if re.search(r"l-[0-9a-f]+\.pid$", file.name)
    ]


def _number(path: Path) -> int:
    return int(path.read_text())
