"""Farms that the stories share: starting one takes seconds."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from tests.farm.farm import Farm, farm_on_loopback, farm_on_network
from tests.farm.network import Network

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
