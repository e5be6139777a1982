"""Chains: who feeds whom, and when both sides of a link begin."""

from __future__ import annotations

import pytest

from distrib.swarm.relay import OPENS_LATER_MS
from distrib.swarm.relay_peers import Links
from tests.relay.farms import TEN_GB, farm_of, node, planned


@pytest.mark.parametrize("count", [2, 3, 16, 75])
def test_the_two_sides_of_a_link_do_not_open_in_the_same_moment(count: int) -> None:
    farm = farm_of(*(node(n, f"R{n // 7}") for n in range(count)))
    links = planned(farm, terms=TEN_GB)[1].links
    opens = {name: own.opens_after_ms for name, own in links.items()}
    pairs = [(name, child.node) for name, own in links.items() for child in own.children]
    assert len(pairs) >= count - 1 - count // 7
    assert all({opens[parent], opens[child]} == {0, OPENS_LATER_MS} for parent, child in pairs)


def test_when_a_node_opens_is_nothing_to_tell_it_anew() -> None:
    assert Links(opens_after_ms=0) == Links(opens_after_ms=OPENS_LATER_MS)
