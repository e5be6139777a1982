"""Whom a session talks to, and how near each peer is: libtorrent's filters from a map of the farm.

``Zones`` is the map seen from one node, pure; ``apply_zones`` and ``limit_class`` are the adapter.
libtorrent's own global limits do not act on a LAN (its filter puts such peers into a class of their
own), so each tier has a class of ours, whose limits may be changed while peers are connected. A
peer's classes are found when it connects; so is whether it is let in, and who is connected is
looked at again whenever the filter changes.
"""

from __future__ import annotations

import ipaddress
from collections.abc import Collection, Iterable, Iterator
from dataclasses import dataclass
from enum import StrEnum
from typing import Any

import libtorrent as lt

IPNetwork = ipaddress.IPv4Network | ipaddress.IPv6Network

_BLOCKED = 1
"""libtorrent's ``ip_filter::blocked``."""

_ALL = (
    ("0.0.0.0", "255.255.255.255"),  # noqa: S104 - a range, nothing listens there
    ("::", "ffff:ffff:ffff:ffff:ffff:ffff:ffff:ffff"),
)


class Tier(StrEnum):
    """How near a peer is."""

    RACK = "rack"
    ROOM = "room"
    ELSEWHERE = "elsewhere"


@dataclass(frozen=True)
class Place:
    """One rack: its name, its room's, and the networks that hold its nodes and nobody else."""

    rack: str
    room: str
    networks: tuple[str, ...]


@dataclass(frozen=True)
class Zones:
    """The farm as one node sees it. Who is in none of these is not served.

    ``peers`` are let in whatever the map says: the orders of the site name them.
    """

    rack: tuple[IPNetwork, ...] = ()
    room: tuple[IPNetwork, ...] = ()
    elsewhere: tuple[IPNetwork, ...] = ()
    peers: tuple[IPNetwork, ...] = ()

    def networks(self) -> Iterator[tuple[IPNetwork, Tier]]:
        """Every network with its tier, the nearest last."""
        for network in (*self.peers, *self.elsewhere):
            yield network, Tier.ELSEWHERE
        for network in self.room:
            yield network, Tier.ROOM
        for network in self.rack:
            yield network, Tier.RACK

    def tier(self, address: str) -> Tier:
        """How near the peer at this address is."""
        parsed = ipaddress.ip_address(address)
        found = Tier.ELSEWHERE
        for network, tier in self.networks():
            if parsed in network:
                found = tier
        return found

    def admits(self, address: str) -> bool:
        """Whether the peer at this address is served."""
        parsed = ipaddress.ip_address(address)
        return any(parsed in network for network, _ in self.networks())


def see(
    places: Iterable[Place],
    *,
    own: Iterable[str],
    foreign: Iterable[str] = (),
    peers: Iterable[str] = (),
) -> Zones:
    """The farm as the node with the addresses ``own`` sees it.

    ``foreign`` networks are served as those elsewhere; ``peers`` are single addresses. Raises
    ValueError for what is no address or network.
    """
    known = [(place, _networks(place.networks)) for place in places]
    mine = [ipaddress.ip_address(address) for address in own]
    home = next(
        (
            place
            for place, networks in known
            if any(one in network for one in mine for network in networks)
        ),
        None,
    )
    rack: list[IPNetwork] = []
    room: list[IPNetwork] = []
    elsewhere: list[IPNetwork] = []
    for place, networks in known:
        # A rack or room without a name is not known, and shared with nobody.
        same_room = home is not None and (home.room == place.room != "")
        if home is not None and home.rack == place.rack != "" and home.room == place.room:
            rack += networks
        elif same_room:
            room += networks
        else:
            elsewhere += networks
    elsewhere += _networks(foreign)
    return Zones(tuple(rack), tuple(room), tuple(elsewhere), tuple(_networks(sorted(set(peers)))))


def _networks(texts: Iterable[str]) -> list[IPNetwork]:
    return [ipaddress.ip_network(text, strict=False) for text in texts]


# libtorrent ------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Crowded:
    """The class of addresses that have too many connections (distrib/swarm/crowding.py)."""

    number: int
    addresses: Collection[str] = ()


def make_crowded(session: lt.session, *, share_percent: int) -> Crowded:
    """A class whose peers are let in while there are fewer than ``100 / share_percent`` of all that
    the session takes. libtorrent goes by the highest of a peer's classes."""
    number = int(session.create_peer_class("crowded"))
    session.set_peer_class(number, _class("crowded", connection_limit_factor=share_percent))
    return Crowded(number)


def make_classes(session: lt.session) -> dict[Tier, int]:
    """A class for each tier, for all that its peers have together; no limits yet."""
    made = {}
    for tier in Tier:
        made[tier] = int(session.create_peer_class(tier))
    return made


def apply_zones(
    session: lt.session, classes: dict[Tier, int], zones: Zones | None, crowded: Crowded
) -> None:
    """Let in who is in ``zones`` (None: everybody), each in its tier's class.

    Who is connected and not let in is cut off.
    """
    apply_classes(session, classes, zones, crowded)
    admitted = lt.ip_filter()
    for first, last in _ALL:
        admitted.add_rule(first, last, 0 if zones is None else _BLOCKED)
    for network, _ in () if zones is None else zones.networks():
        admitted.add_rule(str(network[0]), str(network[-1]), 0)
    session.set_ip_filter(admitted)


def apply_classes(
    session: lt.session, classes: dict[Tier, int], zones: Zones | None, crowded: Crowded
) -> None:
    """Put who connects from now on into its tier's class, and who is crowded into that one too."""
    near = lt.ip_filter()
    for first, last in _ALL:
        near.add_rule(first, last, 1 << classes[Tier.ELSEWHERE])
    for network, tier in () if zones is None else zones.networks():
        near.add_rule(str(network[0]), str(network[-1]), 1 << classes[tier])
    for address in crowded.addresses:
        tier = Tier.ELSEWHERE if zones is None else zones.tier(address)
        near.add_rule(address, address, 1 << classes[tier] | 1 << crowded.number)
    session.set_peer_class_filter(near)


def limit_class(
    session: lt.session, tier: Tier, number: int, *, download_bps: int, upload_bps: int
) -> None:
    """Cap what all peers of a class have together, bytes per second; 0: no limit."""
    # Said as a whole: reading the class first would wait for the network thread.
    limits = _class(str(tier), download_limit=download_bps, upload_limit=upload_bps)
    session.set_peer_class(number, limits)


def _class(label: str, **more: int) -> Any:
    """A peer class of libtorrent with its own values, but for what is given."""
    return {
        "label": label,
        "ignore_unchoke_slots": False,
        "connection_limit_factor": 100,
        "download_priority": 1,
        "upload_priority": 1,
        "download_limit": 0,
        "upload_limit": 0,
    } | more
