"""A job in a guest, through the agent: its output and exit code, and nothing left behind."""

from __future__ import annotations

import json
import shutil
import signal
import subprocess
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from agent.socket.client import ask
from tests.farm.farm import Farm, Image, Node
from tests.farm.process import BIN, CommandFailed, eventually
from tests.launch.conftest import guest_image, libvirt_uri
from tests.stories.test_rollout import MIB, sha256, start, wait

__all__ = ["guest_image", "libvirt_uri"]

pytestmark = pytest.mark.timeout(240)

IDLE_BYTES = 120 * 1000 * 1000


@pytest.fixture(scope="module")
def launching(
    farm: Farm, join: Callable[..., Node], libvirt_uri: str, guest_image: Path
) -> Iterator[tuple[Node, Image]]:
    """A node that may launch, and holds the guest image."""
    node = join(
        "launcher",
        launch={"libvirt_uri": libvirt_uri, "memory_mib": 128},
        cache={"cow_bytes": 64 << 20},
    )
    file = farm.directory / "guest.raw"
    shutil.copy(guest_image, file)
    image = farm.endorse(file, alias="guest")
    farm.approve(image)
    wait(farm, start(farm, image, node.name))
    yield node, image


@contextmanager
def endless_job(node: Node, *options: str) -> Iterator[subprocess.Popen[bytes]]:
    """A launch whose job has started and does not end by itself."""
    command = [str(BIN / "distrib-agent"), "--socket", str(node.socket), "launch", *options]
    with subprocess.Popen(
        [*command, "guest", "-"],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
    ) as client:
        assert client.stdin is not None
        assert client.stdout is not None
        client.stdin.write(b"echo started; sleep 1000\n")
        client.stdin.close()
        try:
            assert client.stdout.readline() == b"started\n"
            yield client
        finally:
            client.kill()


def run_log(node: Node) -> list[dict[str, object]]:
    files = sorted((node.directory / "state" / "runlog").glob("*.jsonl"))
    return [json.loads(line) for file in files for line in file.read_text().splitlines()]


def test_a_job_runs_in_a_fresh_instance_and_its_result_comes_back(
    launching: tuple[Node, Image],
) -> None:
    node, image = launching
    script = 'echo "to $1"; echo oops >&2; grep -m1 "model name" /proc/cpuinfo; exit 7\n'
    with pytest.raises(CommandFailed) as ended:
        node.run("launch", "guest", "--phases", "-", "you", stdin=script)
    assert ended.value.status == 7
    assert ended.value.out.startswith("to you\n")
    assert "model name" in ended.value.out
    assert "oops\n" in ended.value.err
    assert "distrib-agent: booted after" in ended.value.err
    began, over = run_log(node)[-2:]
    assert (began["event"], over["event"], over["exit"]) == ("start", "end", 7)
    assert began["image"] == image.identifier
    # Its end is told before libvirt has forgotten the guest; what it had is kept until then.
    eventually("the lease is given back", lambda: node.ask("leases")["leases"] == [])
    assert list((node.cache / "instances").iterdir()) == []
    assert list((node.directory / "state" / "run").iterdir()) == []
    assert sha256(node.volume(image)) == image.sha256


def test_the_guest_ends_with_the_command_that_launched_it(launching: tuple[Node, Image]) -> None:
    node, _ = launching
    with endless_job(node) as client:
        client.send_signal(signal.SIGKILL)
        client.wait()
    eventually("the lease is given back", lambda: node.ask("leases")["leases"] == [])
    eventually(
        "nothing is left",
        lambda: not list((node.directory / "state" / "run").iterdir()),
    )
    assert run_log(node)[-1]["event"] == "end"


def domains(libvirt_uri: str) -> list[str]:
    command = ["virsh", "-c", libvirt_uri, "list", "--name"]
    listed = subprocess.run(command, capture_output=True, text=True, check=True)
    return listed.stdout.split()


def test_a_guest_outlives_a_killed_agent_and_ends_with_its_own_command(
    launching: tuple[Node, Image], libvirt_uri: str
) -> None:
    node, _ = launching
    with endless_job(node) as client:
        node.kill()
        node.start()
        assert len(domains(libvirt_uri)) == 1
        assert client.poll() is None
        client.send_signal(signal.SIGTERM)
        assert client.wait(30) == 128 + signal.SIGTERM
    eventually("its guest is gone", lambda: domains(libvirt_uri) == [])
    eventually("its instance is gone", lambda: not list((node.cache / "instances").iterdir()))
    assert run_log(node)[-1]["exit"] == 128 + signal.SIGTERM


def test_what_a_killed_agent_and_its_client_left_is_ended_at_the_next_start(
    launching: tuple[Node, Image], libvirt_uri: str
) -> None:
    node, _ = launching
    with endless_job(node) as client:
        node.kill()
        client.kill()
    assert len(domains(libvirt_uri)) == 1
    node.start()
    eventually("the guest is ended", lambda: domains(libvirt_uri) == [])
    assert node.ask("leases")["leases"] == []
    eventually("its instance is gone", lambda: not list((node.cache / "instances").iterdir()))


def test_a_lease_dies_with_its_holder_also_over_a_restart(launching: tuple[Node, Image]) -> None:
    node, image = launching
    holder = subprocess.Popen(["sleep", "1000"])
    try:
        lease = node.ask("lease", "guest", f"--pid={holder.pid}", "--cow-mib=16")
        assert node.state(image) == "leased"
        assert Path(lease["device"]).exists()
        node.stop()
        node.start()
        assert [one["lease"] for one in node.ask("leases")["leases"]] == [lease["lease"]]
    finally:
        holder.kill()
        holder.wait()
    node.stop()
    node.start()
    assert node.ask("leases")["leases"] == []
    assert not Path(lease["device"]).exists()
    assert node.state(image) == "ready"


def test_an_image_that_is_denied_and_killed_ends_its_guest_with_the_reason(
    farm: Farm, launching: tuple[Node, Image], libvirt_uri: str
) -> None:
    node, image = launching
    with endless_job(node, "--refused=100") as client:
        farm.ask("image", "deny", image.alias, "--reason=a hole in its ssh", "--kill")
        assert client.wait(60) == 100
        assert client.stderr is not None
        assert b"a hole in its ssh" in client.stderr.read()
    assert domains(libvirt_uri) == []
    assert run_log(node)[-1]["error"] == "revoked"
    eventually("the lease is gone", lambda: node.ask("leases")["leases"] == [])


def test_an_agent_that_serves_what_it_pulled_is_small_again(
    farm: Farm, join: Callable[..., Node]
) -> None:
    node = join("weighed")
    image = farm.publish(64 * MIB, alias="weighed")
    wait(farm, start(farm, image, node.name))
    assert node.agent is not None
    assert ask(node.socket, "status")["pid"] == node.agent.pid
    status = Path(f"/proc/{node.agent.pid}/status")

    def resident_bytes() -> int:
        line = next(line for line in status.read_text().splitlines() if line.startswith("VmRSS"))
        return int(line.split()[1]) * 1024

    eventually("it is idle", lambda: resident_bytes() < IDLE_BYTES, limit_s=30)
