"""The operator caps what nodes exchange while a rollout runs, and marks what may wait."""

from __future__ import annotations

import socket
import struct
import time
from collections.abc import Iterator
from contextlib import contextmanager
from functools import partial
from typing import Any

import pytest

from tests.farm.farm import Farm, Image, Node, farm_on_loopback
from tests.farm.process import eventually

pytestmark = pytest.mark.timeout(240)

MIB = 1 << 20
CAP_MBIT = 4.0
LOWER_EFFORT = 1
DATA_BYTES = 1000
"""Packets above this carry blocks of the image, not words about it."""


@pytest.fixture(scope="module")
def farm(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Farm]:
    with farm_on_loopback(tmp_path_factory.mktemp("caps"), 2) as farm:
        for node in farm.nodes.values():
            node.start()
        yield farm


def caps_of(node: Node) -> dict[str, Any]:
    found: dict[str, Any] = node.ask("status")["traffic"]["caps"]
    return found


def is_capped(node: Node) -> bool:
    return bool(caps_of(node)["rack"]["upload_bps"] == CAP_MBIT * 125_000)


def rows(farm: Farm, rollout: str) -> dict[str, dict[str, Any]]:
    return {row["node"]: row for row in farm.ask("rollout", "status", rollout)["nodes"]}


def last_of(farm: Farm, rollout: str) -> str:
    """The node that fetches from the other one."""

    def found() -> str | None:
        by_bytes = sorted(rows(farm, rollout).values(), key=lambda row: int(row["bytes_done"]))
        behind: str = by_bytes[0]["node"]
        return behind if by_bytes[0]["bytes_done"] > 0 else None

    name: str = eventually("both fetch", found)
    return name


def held_bytes(node: Node, image: Image) -> int:
    """What it has verified at this moment: reports are late on a busy machine."""
    return int((node.image(image) or {"bytes_done": 0})["bytes_done"])


def rate_bps(node: Node, image: Image, seconds: float) -> float:
    began_s, before = time.monotonic(), held_bytes(node, image)
    time.sleep(seconds)
    moved = held_bytes(node, image) - before
    return moved / (time.monotonic() - began_s)


def test_a_cap_of_racks_is_set_seen_and_taken_back_while_a_rollout_runs(farm: Farm) -> None:
    image, cap_bps = farm.publish(24 * MIB, alias="capped"), CAP_MBIT * 125_000
    farm.distrib("swarm", "caps", "--rack", f"{CAP_MBIT:g}")
    for node in farm.nodes.values():
        eventually("the node is told", partial(is_capped, node))
    assert "rack 4 down 4 up" in farm.nodes["wn1"].run("status")
    rollout = farm.ask("rollout", "start", "capped", "--nodes=all", "--upload-mbit=200")["id"]
    shown = farm.ask("rollout", "status", rollout)
    assert (shown["download_bps"], shown["upload_bps"]) == (0, 25_000_000)
    last = farm.nodes[last_of(farm, rollout)]
    # Bytes are those on the wire; over so short a time they are kept less well than over 10 s.
    assert 0 < rate_bps(last, image, 4.0) <= 1.25 * cap_bps
    answered = farm.ask("swarm", "caps", "--rack", "default")
    assert answered["set_at_run_time"] == []
    eventually("the node is told", lambda: not any(caps_of(last)["rack"].values()))
    began_s, before = time.monotonic(), held_bytes(last, image)
    eventually("it has all", lambda: held_bytes(last, image) == 24 * MIB, limit_s=120)
    assert (24 * MIB - before) / (time.monotonic() - began_s) > 1.2 * cap_bps
    eventually("done", lambda: farm.ask("rollout", "status", rollout)["state"] == "done")


@contextmanager
def captured() -> Iterator[socket.socket]:
    """Every IPv4 packet of the loopback interface."""
    ip = 0x0800
    with socket.socket(socket.AF_PACKET, socket.SOCK_DGRAM, socket.htons(ip)) as capture:
        capture.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 32 * MIB)
        capture.bind(("lo", ip))
        capture.setblocking(False)
        yield capture


def marks(capture: socket.socket, nodes: set[str]) -> set[int]:
    """The DSCPs of blocks that went from one of the addresses to another."""
    found: set[int] = set()
    while True:
        try:
            header = capture.recv(40)
        except BlockingIOError:
            return found
        tos, length = struct.unpack_from("!xBH", header)
        ends = {socket.inet_ntoa(header[12:16]), socket.inet_ntoa(header[16:20])}
        if ends <= nodes and length > DATA_BYTES:
            found.add(tos >> 2)


@pytest.mark.root
@pytest.mark.parametrize(
    ("alias", "options", "dscp"),
    [("first", (), 0), ("waits", ("--background",), LOWER_EFFORT), ("again", (), 0)],
)
def test_packets_of_the_background_say_so_to_the_network(
    farm: Farm, alias: str, options: tuple[str, ...], dscp: int
) -> None:
    farm.publish(2 * MIB, alias=alias)
    nodes = {node.host.address for node in farm.nodes.values()}
    with captured() as capture:
        farm.distrib("rollout", "start", alias, "--nodes=all", "--wait", *options)
        assert marks(capture, nodes) == {dscp}
