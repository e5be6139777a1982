"""Whole agents over SSH between them: without BitTorrent, when it fails, and when it comes back."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator
from typing import Any

import pytest

from tests.farm.farm import Image
from tests.farm.process import eventually
from tests.tsunami.farm import SshFarm, filter_input, ssh_farm, unfilter

pytestmark = [pytest.mark.root, pytest.mark.timeout(180)]

MIB = 1 << 20
NODES = 4
RATE_MBIT = 40.0


@pytest.fixture(scope="module")
def farm(tmp_path_factory: pytest.TempPathFactory) -> Iterator[SshFarm]:
    """A head and four agents, an sshd beside each."""
    with ssh_farm(tmp_path_factory.mktemp("ssh"), NODES, rate_mbit=RATE_MBIT) as running:
        yield running


def start(running: SshFarm, image: Image, transport: str) -> str:
    started = running.farm.ask(
        "rollout", "start", image.alias, "--nodes=all", f"--transport={transport}"
    )
    return str(started["id"])


def complete(running: SshFarm, image: Image, *, but: str = "", limit_s: float = 60) -> None:
    nodes = [node for name, node in running.farm.nodes.items() if name != but]
    eventually(
        "all have it",
        lambda: all(node.state(image) == "ready" for node in nodes),
        limit_s=limit_s,
    )
    found = {hashlib.sha256(node.volume(image).read_bytes()).hexdigest() for node in nodes}
    assert found == {image.sha256}


def reports(running: SshFarm, image: Image) -> dict[str, dict[str, Any]]:
    return {name: node.image(image) or {} for name, node in running.farm.nodes.items()}


def test_where_bittorrent_may_not_run_every_node_gets_the_image_over_ssh_by_the_plan(
    farm: SshFarm,
) -> None:
    image = farm.farm.publish(16 * MIB, alias="overssh")
    farm.block_swarm()
    try:
        rollout = start(farm, image, "tsunami")
        complete(farm, image)
        shown = farm.farm.ask("rollout", "status", rollout)
        assert shown["transport"] == "tsunami"
        for found in reports(farm, image).values():
            assert found["by_transport"] == {"tsunami": 16 * MIB}
    finally:
        farm.open_swarm()
    # The head sent the image once, and not to each.
    sent = farm.network.sent_bytes(farm.farm.head_host)
    assert sent < 2 * 16 * MIB


def test_auto_goes_over_when_bittorrent_is_blocked_and_says_why(farm: SshFarm) -> None:
    image = farm.farm.publish(16 * MIB, alias="goesover")
    farm.block_swarm()
    try:
        start(farm, image, "auto")
        eventually(
            "somebody says why",
            lambda: any(
                "the swarm brings nothing" in (found.get("text") or "")
                for found in reports(farm, image).values()
            ),
            limit_s=30,
            every_s=0.1,
        )
        complete(farm, image)
    finally:
        farm.open_swarm()
    brought = [found["by_transport"] for found in reports(farm, image).values()]
    assert all(set(one) == {"tsunami"} for one in brought), brought


def test_auto_goes_back_to_a_swarm_that_lives_again(farm: SshFarm) -> None:
    image = farm.farm.publish(64 * MIB, alias="goesback")
    farm.block_swarm()
    try:
        start(farm, image, "auto")
        eventually(
            "pieces come over SSH",
            lambda: all(
                found.get("by_transport", {}).get("tsunami")
                for found in reports(farm, image).values()
            ),
            limit_s=40,
            every_s=0.2,
        )
    finally:
        farm.open_swarm()
    complete(farm, image)
    brought = [found["by_transport"] for found in reports(farm, image).values()]
    assert all(one.get("swarm", 0) > MIB for one in brought), brought


def test_a_node_that_loses_a_third_of_its_packets_does_not_hold_the_others(farm: SshFarm) -> None:
    image = farm.farm.publish(16 * MIB, alias="lossy")
    lossy = farm.farm.nodes["wn1"]
    filter_input(
        lossy.host,
        "tcp dport 2222 numgen random mod 100 < 30 drop",
        "tcp sport 2222 numgen random mod 100 < 30 drop",
    )
    try:
        start(farm, image, "tsunami")
        complete(farm, image, but="wn1", limit_s=30)
        assert lossy.state(image) != "ready"
    finally:
        unfilter(lossy.host)
    complete(farm, image)
