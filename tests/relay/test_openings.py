"""When both sides of a link begin, in chains and in trees."""

from __future__ import annotations

from dataclasses import replace

import pytest

from distrib.swarm.relay import OPENS_LATER_MS
from distrib.swarm.relay_cost import Terms
from distrib.swarm.relay_peers import Links
from tests.relay.farms import SHALLOW, TEN_GB, planned, rack_farm

CHAINS = replace(TEN_GB, trees=False)


@pytest.mark.parametrize("count", [1, 2, 3, 16, 75, 400])
@pytest.mark.parametrize("terms", [CHAINS, SHALLOW], ids=["chains", "trees"])
def test_both_sides_of_every_link_know_it_and_open_at_different_moments(
    terms: Terms, count: int
) -> None:
    links = planned(rack_farm(count, per_rack=7), terms=terms)[1].links
    opens = {name: own.opens_after_ms for name, own in links.items()}
    told = set()
    for name, own in links.items():
        for stripe, children in enumerate((own.children, own.second_children)):
            told |= {(stripe, name, child.node, child.port) for child in children}
    meant = set()
    for name, own in links.items():
        for stripe in range(own.stripes):
            parent = own.parents[stripe % len(own.parents)].node
            port = (6881, 6882)[stripe] if own.stripes > 1 else 6881
            if parent in links:
                meant.add((stripe, parent, name, port))
    assert told == meant
    assert all(opens[parent] != opens[child] for _, parent, child, _ in meant)
    assert max(opens.values()) <= (3 if terms is SHALLOW else 1) * OPENS_LATER_MS


def test_when_a_node_opens_is_nothing_to_tell_it_anew() -> None:
    assert Links(opens_after_ms=0) == Links(opens_after_ms=OPENS_LATER_MS)
