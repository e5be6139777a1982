"""Who has a place in the farm, and how near: from the inventory to what one node lets in."""

from __future__ import annotations

import ipaddress
from datetime import UTC, datetime

from hypothesis import given
from hypothesis import strategies as st

from agent.traffic_zones import zones_of
from distrib.bus.messages import ClassCaps, Desired, DesiredImage, FarmMap, Peer, Place
from distrib.bus.schema import decode, encode
from distrib.rollout.farm_map import collapsed, farm_of
from distrib.rollout.plan import InventoryNode
from distrib.swarm.classes import Tier

NOW = datetime(2026, 3, 1, tzinfo=UTC)
INVENTORY = [
    *(InventoryNode(f"a{n}", f"192.0.2.{n}", "r1", {"room": "north"}) for n in range(4)),
    InventoryNode("b1", "192.0.2.9", "r2", {"room": "north"}),
    InventoryNode("c1", "203.0.113.1", "r3", {"room": "south"}),
    InventoryNode("lost", "203.0.113.7"),
]


def farm(*, foreign: tuple[str, ...] = ()) -> FarmMap:
    made = farm_of(INVENTORY, foreign=foreign, caps=ClassCaps(), generation=7, now=NOW)
    return decode(FarmMap, encode(made), what="farm")


def desired(*addresses: str) -> Desired:
    peers = tuple(Peer(node=f"p{n}", address=one, port=6881) for n, one in enumerate(addresses))
    image = DesiredImage(
        identifier="7cb7a2d5-0f0e-4f43-9a11-3a9f5e0f6c11",
        version="1.0.0",
        infohash="a1" * 32,
        parents=peers[:1],
        children=peers[1:],
    )
    return Desired(node="a1", issued_at=NOW, generation=1, images=(image,))


def test_a_node_finds_its_own_rack_and_room_by_its_address() -> None:
    zones = zones_of(farm(), None, own=["192.0.2.1"])
    assert zones.tier("192.0.2.3") is Tier.RACK
    assert zones.tier("192.0.2.9") is Tier.ROOM
    assert zones.tier("203.0.113.1") is Tier.ELSEWHERE
    assert zones.admits("203.0.113.7")
    assert not zones.admits("192.0.2.4")
    assert not zones.admits("198.51.100.7")


def test_a_node_without_rack_and_room_shares_them_with_nobody() -> None:
    zones = zones_of(farm(), None, own=["203.0.113.7"])
    assert {zones.tier(node.address) for node in INVENTORY} == {Tier.ELSEWHERE}


def test_foreign_networks_are_served_where_the_operator_says_so() -> None:
    zones = zones_of(farm(foreign=("198.51.100.0/28",)), None, own=["192.0.2.1"])
    assert zones.admits("198.51.100.7")
    assert zones.tier("198.51.100.7") is Tier.ELSEWHERE


def test_without_a_map_only_the_plans_peers_are_served() -> None:
    zones = zones_of(None, desired("192.0.2.9", "192.0.2.2", "not-an-address"), own=["192.0.2.1"])
    assert zones.admits("192.0.2.9")
    assert zones.admits("192.0.2.2")
    assert not zones.admits("192.0.2.3")
    assert not zones_of(None, None, own=["192.0.2.1"]).admits("192.0.2.9")


def test_a_seeder_that_the_orders_name_is_served_though_it_is_no_node() -> None:
    zones = zones_of(farm(), desired("192.0.2.200"), own=["192.0.2.1"])
    assert zones.admits("192.0.2.200")


@given(st.sets(st.integers(0, 300), min_size=1, max_size=120))
def test_collapsed_networks_hold_exactly_who_is_in_them(numbers: set[int]) -> None:
    base = int(ipaddress.IPv4Address("192.0.2.0"))
    addresses = {str(ipaddress.IPv4Address(base + number)) for number in numbers}
    networks = [ipaddress.ip_network(text) for text in collapsed(addresses)]
    held = [str(address) for network in networks for address in network]
    assert sorted(held) == sorted(addresses)
    assert len(networks) <= len(addresses)


def test_a_map_of_five_thousand_nodes_fits_into_a_message() -> None:
    base = int(ipaddress.IPv4Address("10.0.0.0"))
    inventory = [
        # Every second address: nothing collapses.
        InventoryNode(f"n{n}", str(ipaddress.IPv4Address(base + 2 * n)), f"r{n // 40}")
        for n in range(5000)
    ]
    made = farm_of(inventory, foreign=(), caps=ClassCaps(), generation=1, now=NOW)
    assert len(encode(made)) < 200_000
    assert all(isinstance(place, Place) for place in made.places)
