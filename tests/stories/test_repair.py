"""Nodes of a chain and of trees lose each other, or the whole head: whoever is left completes."""

from __future__ import annotations

import os
import signal
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.farm.farm import Farm, Image, Node, farm_on_network
from tests.farm.network import Network
from tests.farm.process import eventually
from tests.stories.test_rollout import child_of, half_way, sha256, start

pytestmark = [pytest.mark.root, pytest.mark.timeout(300)]

MIB = 1 << 20
NODES = 6
RATE_MBIT = 40.0


@pytest.fixture(scope="module")
def chain(tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[Farm, Network]]:
    """A head and six agents of this module's own: it kills what it can."""
    directory = tmp_path_factory.mktemp("chain")
    with farm_on_network(directory, NODES, rate_mbit=RATE_MBIT) as (farm, network):
        for node in farm.nodes.values():
            node.start()
        yield farm, network


def fed_by(node: Node, image: Image) -> set[str]:
    """Names of the peers that the node gets payload from, by its own report."""
    links = (node.image(image) or {})["links"]
    return {link["node"] for link in links if link["download_bps"]}


def complete(nodes: list[Node], image: Image) -> None:
    eventually(
        "all that are left have it",
        lambda: all(node.state(image) == "ready" for node in nodes),
        limit_s=90,
    )
    assert {sha256(node.volume(image)) for node in nodes} == {image.sha256}


def in_order(farm: Farm, image: Image) -> list[Node]:
    """The nodes as they stand in the chain, by what each says of who feeds it."""

    def found() -> list[Node] | None:
        feeds = {name: fed_by(node, image) for name, node in farm.nodes.items()}
        chain, at = [], "seeder"
        while after := [name for name, feeders in feeds.items() if feeders == {at}]:
            if len(after) > 1 or after[0] in chain:
                return None
            at = after[0]
            chain.append(at)
        return [farm.nodes[name] for name in chain] if len(chain) == len(feeds) else None

    return list(eventually("each is fed by one other", found, limit_s=60, every_s=0.3))


def test_the_middle_of_a_chain_is_killed_and_only_its_child_looks_elsewhere(
    chain: tuple[Farm, Network],
) -> None:
    farm, _ = chain
    image = farm.publish(32 * MIB, alias="middle")
    start(farm, image)
    nodes = in_order(farm, image)
    half_way(nodes[3], image)
    nodes[2].kill()
    try:
        eventually(
            "the child is fed by its grandparent",
            lambda: nodes[1].name in fed_by(nodes[3], image),
            every_s=0.1,
            limit_s=10,
        )
        assert fed_by(nodes[5], image) <= {nodes[4].name}
        complete([node for node in nodes if node is not nodes[2]], image)
    finally:
        nodes[2].start()


def test_a_fault_is_named_within_three_seconds(chain: tuple[Farm, Network]) -> None:
    farm, _ = chain
    image = farm.publish(24 * MIB, alias="dark")
    start(farm, image, "wn1")
    node = farm.nodes["wn1"]
    half_way(node, image)
    seeder = child_of_command(farm, b"seeder")
    os.kill(seeder, signal.SIGSTOP)
    try:
        named = eventually(
            "the fault has a name",
            lambda: (found := node.image(image)) and found["reason"] and found,
            limit_s=3.5,
            every_s=0.1,
        )
        assert named["reason"] == "stalled"
        assert named["text"].startswith("seeder ")
    finally:
        os.kill(seeder, signal.SIGCONT)
    complete([node], image)


def test_head_and_broker_are_gone_and_then_a_node_and_all_others_complete(
    chain: tuple[Farm, Network],
) -> None:
    farm, _ = chain
    assert farm.head is not None
    image = farm.publish(32 * MIB, alias="headless")
    start(farm, image)
    nodes = in_order(farm, image)
    stopped = [
        farm.head.pid,
        child_of(farm.head.pid, "mosquitto"),
        child_of_command(farm, b"controller"),
    ]
    for pid in stopped:
        os.kill(pid, signal.SIGSTOP)
    try:
        half_way(nodes[3], image, 0.4)
        nodes[2].kill()
        complete([node for node in nodes if node is not nodes[2]], image)
    finally:
        for pid in stopped:
            os.kill(pid, signal.SIGCONT)
        nodes[2].start()
    complete(nodes, image)


def child_of_command(farm: Farm, word: bytes) -> int:
    """The pid of the head's process with a word among its arguments."""
    assert farm.head is not None
    for path in Path("/proc").glob("[0-9]*/cmdline"):
        try:
            parent = int((path.parent / "stat").read_text().rpartition(")")[2].split()[1])
            if parent == farm.head.pid and word in path.read_bytes().split(b"\0"):
                return int(path.parent.name)
        except OSError:
            continue
    raise AssertionError(f"no {word!r} below the head")
