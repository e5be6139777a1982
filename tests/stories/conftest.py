"""Farms that the stories share: starting one takes seconds."""

from __future__ import annotations

from collections.abc import Callable, Iterator

import pytest

from tests.farm.farm import Farm, Loopback, Node, farm_on_loopback, farm_on_network
from tests.farm.network import Network
from tests.farm.process import command

SHAPED_MBIT = 40.0


@pytest.fixture(scope="session")
def farm(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Farm]:
    """A head and four running agents on loopback."""
    with farm_on_loopback(tmp_path_factory.mktemp("farm"), 4) as farm:
        for node in farm.nodes.values():
            node.start()
        yield farm


@pytest.fixture(scope="session")
def shaped(tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[Farm, Network]]:
    """A head and six running agents in network namespaces on shaped links."""
    directory = tmp_path_factory.mktemp("shaped")
    with farm_on_network(directory, 6, rate_mbit=SHAPED_MBIT) as (farm, network):
        for node in farm.nodes.values():
            node.start()
        yield farm, network


@pytest.fixture(scope="module")
def join(farm: Farm) -> Iterator[Callable[..., Node]]:
    """``join(name, **settings)``: a further node with settings of its own, for one module."""
    site = farm.pki / "site"
    joined: list[str] = []

    def make(name: str, **settings: object) -> Node:
        if not (site / "certs" / f"{name}.pem").exists():
            command(["distrib", "testpki", "issue", str(site), "--role", "node", "--name", name])
        number = 100 + len(list((site / "certs").glob("*.pem")))
        node = farm.add_node(name, Loopback(number), **settings)
        joined.append(name)
        node.start()
        return node

    yield make
    for name in joined:
        farm.nodes.pop(name).stop()
        farm.distrib("node", "forget", name)
