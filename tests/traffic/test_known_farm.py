"""The map of the farm on a node: believed when the controller signed it, never an older one."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from datetime import timedelta
from pathlib import Path

import pytest
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

from agent.authority import Authority
from agent.refusals import GenerationDown, NumberAhead
from distrib.bus.messages import FarmMap, Place
from distrib.bus.schema import encode
from distrib.errors import MessageInvalid, NotReady
from distrib.trust.envelope import EnvelopeRefused, seal
from tests.trust.conftest import CONTROLLER_KEY, NOW, World, world

__all__ = ["world"]


@pytest.fixture
def node(tmp_path: Path, world: World) -> Callable[[], Authority]:
    """An agent's authority over one state directory; calling it again is a restart."""

    def start() -> Authority:
        authority = Authority(
            tmp_path / "state",
            node="wn001",
            trust=world.site_trust,
            max_age_s=72 * 3600,
            clock_skew_s=300,
            clock=lambda: NOW,
        )
        authority.load()
        return authority

    return start


def signed(
    generation: int, *, network: str = "192.0.2.0/28", key: Ed25519PrivateKey = CONTROLLER_KEY
) -> bytes:
    places = (Place(rack="r1", room="a", networks=(network,)),)
    farm = FarmMap(issued_at=NOW, generation=generation, places=places)
    return seal("farm", encode(farm).decode(), key)


def test_a_map_is_taken_and_is_there_after_a_restart(
    node: Callable[[], Authority], world: World
) -> None:
    authority = node()
    authority.offer_site_list(world.signed_site_list())
    assert authority.offer_farm(signed(5)).generation == 5
    again = node()
    assert again.farm.map is not None
    assert again.farm.map.places[0].rack == "r1"


def test_an_older_map_is_refused_also_after_a_restart(
    node: Callable[[], Authority], world: World
) -> None:
    authority = node()
    authority.offer_site_list(world.signed_site_list())
    authority.offer_farm(signed(5))
    for one in (authority, node()):
        with pytest.raises(GenerationDown):
            one.offer_farm(signed(4, network="198.51.100.0/24"))
        assert one.farm.generation == 5
        assert one.refused["generation-down"] == 1


def test_a_map_of_somebody_else_and_one_far_ahead_are_refused(
    node: Callable[[], Authority], world: World
) -> None:
    authority = node()
    authority.offer_site_list(world.signed_site_list())
    with pytest.raises(EnvelopeRefused):
        authority.offer_farm(signed(6, key=Ed25519PrivateKey.generate()))
    with pytest.raises(NumberAhead):
        authority.offer_farm(signed(int((NOW + timedelta(days=9)).timestamp())))
    with pytest.raises(MessageInvalid):
        authority.offer_farm(signed(7, network="nowhere"))
    assert authority.farm.map is None


def test_a_map_that_comes_before_the_site_list_is_taken_up_after_it(
    node: Callable[[], Authority], world: World
) -> None:
    authority = node()
    with pytest.raises(NotReady):
        authority.offer_farm(signed(5))
    authority.offer_site_list(world.signed_site_list())
    assert authority.farm.generation == 5


def test_after_a_theft_the_map_counts_again_once_the_next_list_names_its_key(
    node: Callable[[], Authority], world: World
) -> None:
    authority = node()
    authority.offer_site_list(world.signed_site_list())
    authority.offer_farm(signed(5))
    authority.farm.distrust()
    assert authority.farm.map is None
    newer = replace(world.site_list(), version="1772366500")
    authority.offer_site_list(world.signed_site_list(newer))
    assert authority.farm.generation == 5
    thief = Ed25519PrivateKey.generate()
    authority.farm.distrust()
    with pytest.raises(EnvelopeRefused):
        authority.offer_farm(signed(9, key=thief))
    assert authority.farm.map is None
