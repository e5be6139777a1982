"""A denial reaches every node, the one that was away too; and what still runs is told."""

from __future__ import annotations

import os
from datetime import datetime
from typing import Any

import pytest

from agent.socket.client import AgentError, ask
from distrib.errors import ExitStatus
from tests.farm.farm import Farm, Image, Node
from tests.farm.process import eventually
from tests.revocation.watch import Denial, bring, deny_and_watch

pytestmark = pytest.mark.timeout(300)

MIB = 1 << 20


def uses(farm: Farm, image: Image) -> list[dict[str, Any]]:
    found: list[dict[str, Any]] = farm.ask("image", "where-running", image.alias)["uses"]
    return found


def list_version(node: Node) -> str:
    found: str = ask(node.socket, "status")["report"]["site_list_version"]
    return found


def audited(farm: Farm, action: str) -> datetime:
    rows = farm.ask("audit")["audit"]
    return datetime.fromisoformat(next(row["at"] for row in rows if row["action"] == action))


def check(denial: Denial, denied_at: datetime, *, nodes: int) -> None:
    """Nobody refused before the denial, everybody after it, and nobody gave a lease again."""
    assert len(denial.watched) == nodes
    for one in denial.watched:
        assert one.given > 0
        assert one.first_refused is not None
        # The audit's times are of whole milliseconds.
        assert one.first_refused.timestamp() > denied_at.timestamp() - 0.001
        assert one.code == "revoked"
        assert one.given_after_refusal == 0
    print(f"deny to last refusal: {denial.last_refusal_s:.2f} s of {nodes} nodes")


def test_a_denial_reaches_everybody_and_what_runs_is_told(farm: Farm) -> None:
    image = farm.publish(MIB, alias="denied")
    bring(farm, image)
    *online, away = farm.nodes.values()
    before = list_version(away)
    away.stop()
    # A job has it in use, on one of the nodes.
    busy = online[0]
    holder = {"kind": "process", "pid": os.getpid()}
    lease = ask(busy.socket, "lease", image=image.alias, holder=holder)["lease"]

    denial = deny_and_watch(farm, online, image, simulated=50)
    check(denial, audited(farm, "image-denied"), nodes=56)

    def only_the_job() -> bool:
        found = uses(farm, image)
        return [(one["node"], one["leases"]) for one in found] == [(busy.name, 1)]

    eventually("only the job is told", only_the_job)
    [use] = uses(farm, image)
    [told] = use["holders"]
    assert (told["lease"], told["kind"], told["pid"]) == (lease, "process", os.getpid())
    assert (use["version"], use["state"], use["online"]) == (image.version, "blocked", True)
    table = farm.distrib("image", "where-running", image.ref).splitlines()
    assert table[1].split()[:3] == [busy.name, image.version, "blocked"]

    # The one that was away has its old list on disk. As soon as it hears the broker it refuses.
    away.start()
    eventually("it has heard the broker", lambda: list_version(away) > before)
    for name in (image.alias, image.ref, image.identifier):
        with pytest.raises(AgentError) as caught:
            ask(away.socket, "lease", image=name)
        assert (caught.value.code, caught.value.exit_status) == (
            "revoked",
            ExitStatus.TRUST_REFUSED,
        )

    ask(busy.socket, "release", lease=lease)
    eventually("nobody has it in use", lambda: uses(farm, image) == [])

    # It was a mistake: everybody gives leases again, from the bytes that stayed.
    farm.distrib("image", "undeny", image.alias, "--reason=not affected")
    for node in farm.nodes.values():
        eventually("ready again", lambda node=node: node.state(image) == "ready")
        ask(node.socket, "release", lease=ask(node.socket, "lease", image=image.alias)["lease"])
    steps = [row["what"] for row in farm.ask("image", "history", image.alias)["history"]]
    for what in ("list-named", "image-approved", "rollout-started", "image-denied"):
        assert what in steps
    assert steps.index("image-denied") < steps.index("image-undenied")


@pytest.mark.long
def test_a_denial_reaches_two_hundred_nodes_and_six_agents(farm: Farm) -> None:
    image = farm.publish(MIB, alias="denied-everywhere")
    bring(farm, image)
    denial = deny_and_watch(farm, list(farm.nodes.values())[:6], image, simulated=200)
    check(denial, audited(farm, "image-denied"), nodes=206)
