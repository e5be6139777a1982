"""One image, six nodes, shaped links: from the endorser's list to `ready` on every node."""

from __future__ import annotations

import hashlib
import json
import os
import signal
import time
from pathlib import Path

import pytest

from tests.farm.farm import Farm, Image, Node
from tests.farm.network import Network
from tests.farm.process import eventually

pytestmark = [pytest.mark.root, pytest.mark.timeout(300)]

MIB = 1 << 20


def sha256(path: Path) -> str:
    return hashlib.sha256(path.read_bytes()).hexdigest()


def start(farm: Farm, image: Image, nodes: str = "all", *options: str) -> str:
    rollout: str = farm.ask("rollout", "start", image.alias, f"--nodes={nodes}", *options)["id"]
    return rollout


def wait(farm: Farm, rollout: str, state: str = "done", limit_s: float = 120) -> dict[str, object]:
    def ended() -> dict[str, object] | None:
        shown: dict[str, object] = farm.ask("rollout", "status", rollout)
        return shown if shown["state"] == state else None

    found: dict[str, object] = eventually(f"rollout {state}", ended, limit_s=limit_s)
    return found


def child_of(parent: int, name: str) -> int:
    """The pid of a child process by its command's name."""
    for path in Path("/proc").glob("[0-9]*/stat"):
        try:
            fields = path.read_text().rpartition(")")
        except OSError:
            continue
        called = fields[0].partition("(")[2]
        if int(fields[2].split()[1]) == parent and called.startswith(name):
            return int(path.parent.name)
    raise AssertionError(f"no child {name} of {parent}")


def seeder_of(farm: Farm) -> int:
    """The pid of the head's seeder."""
    assert farm.head is not None
    for path in Path("/proc").glob("[0-9]*/cmdline"):
        try:
            parent = int((path.parent / "stat").read_text().rpartition(")")[2].split()[1])
            if parent == farm.head.pid and b"\0seeder\0" in path.read_bytes():
                return int(path.parent.name)
        except OSError:
            continue
    raise AssertionError("no seeder")


def half_way(node: Node, image: Image, share: float = 0.3) -> None:
    def moving() -> bool:
        found = node.image(image)
        return bool(found and found["bytes_done"] >= share * found["bytes_total"] > 0)

    eventually(f"{node.name} has {share:.0%}", moving)


def test_six_nodes_end_with_identical_bytes(shaped: tuple[Farm, Network]) -> None:
    farm, network = shaped
    image = farm.publish(32 * MIB, alias="six")
    before = network.sent_bytes(farm.head_host)
    out = farm.distrib("rollout", "start", "six", "--nodes=all", "--wait", "--json")
    shown = json.loads(out)
    assert shown["state"] == "done"
    assert shown["summary"]["ready"] == 6
    for node in farm.nodes.values():
        assert node.state(image) == "ready"
        assert sha256(node.volume(image)) == image.sha256
    # The seeder sends each piece about once; the nodes pass it on.
    assert network.sent_bytes(farm.head_host) - before < 2 * 32 * MIB


def test_a_killed_agent_goes_on_and_fetches_little_twice(shaped: tuple[Farm, Network]) -> None:
    farm, _ = shaped
    image = farm.publish(48 * MIB, alias="killed")
    node = farm.nodes["wn1"]
    rollout = start(farm, image, "wn1")
    half_way(node, image)
    before = node.image(image)
    node.kill()
    node.start()
    resumed = eventually(
        "the pull goes on",
        lambda: (found := node.image(image)) and found["resumed_bytes"] and found,
    )
    wait(farm, rollout)
    after = node.image(image)
    assert before
    assert after
    assert sha256(node.volume(image)) == image.sha256
    # What was verified before the kill and was not found afterwards came twice.
    twice = before["bytes_done"] - resumed["resumed_bytes"] + after["wasted_bytes"]
    assert twice < 0.05 * 48 * MIB


def test_the_broker_is_away_for_ten_seconds_and_pulls_go_on(shaped: tuple[Farm, Network]) -> None:
    farm, _ = shaped
    image = farm.publish(48 * MIB, alias="brokerless")
    assert farm.head is not None
    broker = child_of(farm.head.pid, "mosquitto")
    rollout = start(farm, image)
    first = farm.nodes["wn1"]
    half_way(first, image, 0.1)
    os.kill(broker, signal.SIGSTOP)
    stopped_s = time.monotonic()
    try:
        done = (first.image(image) or {})["bytes_done"]
        eventually(
            "the pull goes on without a broker",
            lambda: (first.image(image) or {})["bytes_done"] > done + 4 * MIB,
            limit_s=20,
        )
        eventually("ten seconds", lambda: time.monotonic() - stopped_s > 10)
    finally:
        os.kill(broker, signal.SIGCONT)
    # Nodes that the broker thought dead come back by themselves.
    eventually(
        "all six are ready",
        lambda: farm.ask("rollout", "status", rollout)["summary"]["ready"] == 6,
    )
    wait(farm, rollout)
    assert {sha256(node.volume(image)) for node in farm.nodes.values()} == {image.sha256}


def test_the_seeder_dies_when_one_copy_is_out_and_all_complete(
    shaped: tuple[Farm, Network],
) -> None:
    farm, _ = shaped
    image = farm.publish(48 * MIB, alias="orphaned")
    rollout = start(farm, image)
    first = eventually(
        "one node has it all",
        lambda: next((n for n in farm.nodes.values() if n.state(image) == "ready"), None),
        limit_s=120,
    )
    seeder = seeder_of(farm)
    os.kill(seeder, signal.SIGSTOP)
    try:
        wait(farm, rollout)
    finally:
        os.kill(seeder, signal.SIGCONT)
    assert first.state(image) == "ready"
    assert {sha256(node.volume(image)) for node in farm.nodes.values()} == {image.sha256}
