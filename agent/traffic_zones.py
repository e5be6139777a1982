"""The farm as this node sees it: from the map and the orders of the site. Pure."""

from __future__ import annotations

import ipaddress
from collections.abc import Iterable

from distrib.bus.messages import Desired, FarmMap, Peer
from distrib.errors import MessageInvalid
from distrib.swarm.classes import Place, Zones, see


def zones_of(
    farm: FarmMap | None,
    desired: Desired | None,
    *,
    own: Iterable[str],
    ordered: Iterable[Peer] = (),
) -> Zones:
    """Whom this node serves; without a map only the peers that the site has named for it.

    ``own`` are its addresses; ``ordered`` peers were named by orders.
    """
    named = list(ordered)
    for image in () if desired is None else desired.images:
        named += (*image.parents, *image.fallbacks, *image.neighbours)
        named += (*image.children, *image.second_children)
    peers = {peer.address for peer in named if _is_address(peer.address)}
    if farm is None:
        return see((), own=own, peers=peers)
    places = [Place(one.rack, one.room, one.networks) for one in farm.places]
    return see(places, own=own, foreign=farm.foreign, peers=peers)


def check_networks(farm: FarmMap) -> None:
    """Raises MessageInvalid for a map with what is no network."""
    for text in (*farm.foreign, *(one for place in farm.places for one in place.networks)):
        try:
            ipaddress.ip_network(text, strict=False)
        except ValueError:
            raise MessageInvalid(f"farm: {text!r} is no network", hint="ignored") from None


def _is_address(text: str) -> bool:
    try:
        ipaddress.ip_address(text)
    except ValueError:
        return False
    return True
