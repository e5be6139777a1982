"""With real agents: an image comes because a job wants it; a user's image is that user's alone; and
what runs from a denied image is ended on the node."""

from __future__ import annotations

import json
import os
import pwd
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import structlog

from agent.socket.client import AgentError, ask
from tests.farm.farm import Farm, Loopback
from tests.farm.network import Host
from tests.farm.process import eventually
from tests.intake.disks import CLEAN, ext4, partitioned

pytestmark = pytest.mark.timeout(180)
MIB = 1 << 20
ROOT = Path(__file__).parents[2]
# Lease as another user: what the agent goes by is the peer of its socket.
AS_USER = """
import json, sys
from pathlib import Path
from agent.socket.client import AgentError, ask
try:
    print(json.dumps(ask(Path(sys.argv[1]), "lease", image=sys.argv[2])))
except AgentError as error:
    print(json.dumps({"code": error.code}))
"""


class Address(Loopback):
    """On 127.0.13.x, so that another farm is not in its way."""

    def __init__(self, number: int) -> None:
        Host.__init__(self, "", f"127.0.13.{number}")


@pytest.fixture(scope="module")
def farm() -> Iterator[Farm]:
    """A head and two agents, whose sockets other users can reach: what pytest makes is closed."""
    with (
        tempfile.TemporaryDirectory(prefix="distrib-") as made_in,
        structlog.testing.capture_logs(),
    ):
        directory = Path(made_in)
        directory.chmod(0o755)
        made = Farm(directory, Address(1), ["wn1", "wn2"])
        try:
            made.start_head()
            for number, name in enumerate(("wn1", "wn2"), start=2):
                made.add_node(name, Address(number), cache={"cow_bytes": MIB}).start()
            eventually(
                "both are online",
                lambda: all(row["online"] for row in made.ask("node", "list")["nodes"]),
            )
            yield made
        finally:
            made.stop()


def lease_as(user: str, socket: Path, image: str) -> dict[str, Any]:
    group = pwd.getpwnam(user).pw_gid
    ran = subprocess.run(
        [
            *("setpriv", f"--reuid={user}", f"--regid={group}", "--clear-groups"),
            *(sys.executable, "-c", AS_USER, str(socket), image),
        ],
        cwd=ROOT,
        capture_output=True,
        text=True,
        check=False,
    )
    assert ran.returncode == 0, ran.stderr
    answer: dict[str, Any] = json.loads(ran.stdout)
    return answer


def test_what_a_job_wants_comes_and_can_be_leased(farm: Farm) -> None:
    image = farm.publish(MIB, alias="wanted")
    node = farm.nodes["wn2"]
    with pytest.raises(AgentError):
        ask(node.socket, "lease", image=image.alias)
    said = farm.ask(
        "image", "want", image.alias, "--job=slurm:1", "--nodes=wn2", "--wait", "--timeout=60"
    )
    assert (said["state"], said["ready"]) == ("ready", ["wn2"])
    lease = ask(node.socket, "lease", image=image.alias)["lease"]
    ask(node.socket, "release", lease=lease)
    farm.ask("image", "want", image.alias, "--job=slurm:1", "--done")
    assert farm.ask("image", "wants")["wants"] == []
    actions = [row["action"] for row in farm.ask("audit")["audit"]]
    assert {"image-wanted", "prestage-ended"} <= set(actions)


def test_a_users_image_is_leased_by_that_user_alone(farm: Farm, tmp_path: Path) -> None:
    disk = partitioned(tmp_path / "guest.raw", ext4(tmp_path / "root.img", CLEAN))
    row = farm.ask("image", "propose", str(disk), "--title=mine", "--for=daemon")
    assert (row["state"], row["audience"]) == ("approved", ["daemon"])
    want = ("image", "want", row["image"], "--job=slurm:2", "--nodes=wn1")
    assert farm.ask(*want, "--user=daemon", "--wait", "--timeout=60")["state"] == "ready"
    socket = farm.nodes["wn1"].socket
    assert lease_as("nobody", socket, row["image"])["code"] == "forbidden"
    assert "lease" in lease_as("daemon", socket, row["image"])


def test_what_runs_from_a_denied_image_is_ended(farm: Farm) -> None:
    image = farm.publish(MIB, alias="broken")
    farm.ask("rollout", "start", image.alias, "--nodes=all", "--wait")
    holder = {"kind": "process", "pid": os.getpid()}
    node = farm.nodes["wn1"]
    lease = ask(node.socket, "lease", image=image.alias, holder=holder)["lease"]

    def uses() -> list[dict[str, Any]]:
        found: list[dict[str, Any]] = farm.ask("image", "where-running", image.ref)["uses"]
        return found

    eventually("it is told", lambda: [use["node"] for use in uses()] == ["wn1"])
    denied = farm.ask("image", "deny", image.alias, "--reason=broken in", "--kill")
    assert [use["holders"][0]["lease"] for use in denied["uses"]] == [lease]
    eventually("it is ended", lambda: uses() == [])
    assert lease not in {one["lease"] for one in ask(node.socket, "leases")["leases"]}

    def audited() -> list[dict[str, Any]]:
        rows = farm.ask("audit")["audit"]
        return [row["detail"] for row in rows if row["action"] == "uses-ended"]

    eventually("it is in the audit", lambda: bool(audited()))
    [ended] = audited()
    assert (ended["node"], ended["holders"][0]["lease"]) == ("wn1", lease)
    # Once more: nothing is left to end.
    again = farm.ask("image", "deny", image.ref, "--reason=broken in", "--kill")
    assert again["uses"] == []
