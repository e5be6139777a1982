"""Keeps this node's swarm traffic where it belongs: to whom, how fast, and after the jobs' own.

``look`` follows the site's word at once: who is served, caps, what is background. ``run`` measures
several times a second while there is a cap or a background transfer, and divides what may flow
among the sessions and torrents of the node.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import structlog

from agent.authority import Authority
from agent.traffic_counted import WAYS, Counted, Way, total_of
from agent.traffic_interface import Passed, carrier, own_addresses, passed, speed_bps
from agent.traffic_zones import zones_of
from distrib.bus.messages import Caps, ClassCaps, DesiredImage, Orders, Peer, Traffic
from distrib.swarm.classes import Tier, Zones
from distrib.swarm.pacing import (
    OLD_QUOTA_S,
    Background,
    Budget,
    at_least,
    react,
    spend,
)
from distrib.swarm.session import SwarmSession
from distrib.swarm.transfer import Transfer

log = structlog.get_logger(__name__)

FAST_S = 0.1
SLOW_S = 0.5
FAST_TICK_MS = 5
"""libtorrent hands its quotas out at every tick, and makes a request wait for up to 20 of them: at
5 ms what comes comes each tenth of a second, at 20 ms in bursts of 0.4 s. It costs 0.5 % of a
core."""

SLOW_TICK_MS = 100
LOWER_EFFORT = 1 << 2
"""The byte of the IP header for background traffic: DSCP 1 (RFC 8622); 0 is best effort. libtorrent
calls it a DSCP, and takes the whole byte; a lone low bit is ECN's, and the kernel drops it."""

_Key = tuple[object, ...]


@dataclass(frozen=True)
class Link:
    """The link that the swarm's traffic goes over."""

    interface: str | None
    rate_bps: int


def link_of(address: str, *, named: str, link_bps: int, stated: bool) -> Link:
    """The link of an address; its rate as ``stated`` by the operator, else as its card says."""
    interface = carrier(address, named=named)
    told = 0 if interface is None or stated else speed_bps(interface)
    return Link(interface, told or link_bps)


class HostTraffic:
    """Zones, caps and background of one agent. Lives by ``run``; ``look`` after every change."""

    def __init__(
        self,
        sessions: Iterable[SwarmSession],
        authority: Authority,
        *,
        address: str,
        link: Link,
        own_caps: Caps,
        now_s: Callable[[], float],
    ) -> None:
        self.zones = Zones()
        self._sessions = sessions
        self._authority = authority
        self._address = address
        self._link = link
        self._own_caps = own_caps
        self._now_s = now_s
        self._ordered: tuple[Peer, ...] = ()
        self._looked = False
        self._tiers: dict[str, Tier] = {}
        self._fast = False
        self._dscp = -1
        self._budgets: dict[_Key, Budget] = {}
        self._background: dict[Way, Background] = {}
        self._passed: Passed | None = None
        self._at_s = 0.0
        self._seen: dict[tuple[SwarmSession, str], Mapping[tuple[str, int], Counted]] = {}
        for session in sessions:
            session.first_limits_bps = self.first_limits_bps

    # -- the site's word ------------------------------------------------------------------------

    def look(self, orders: Orders | None = None) -> None:
        """The map, the orders or what is desired may be others now: serve by them from now on."""
        for order in () if orders is None else orders.orders:
            match order.kind:
                case "reparent":
                    self._ordered = (*self._ordered, *order.parents)[-256:]
                case "tokens":
                    self._ordered = (*self._ordered, *order.sources)[-256:]
                case _:
                    pass
        zones = zones_of(
            self._authority.farm.map,
            self._authority.desired,
            own=self._own_addresses(),
            ordered=self._ordered,
        )
        if zones != self.zones or not self._looked:
            self.zones, self._looked = zones, True
            self._tiers.clear()
            for session in self._sessions:
                session.admit(zones)
        self._mark()

    def _own_addresses(self) -> Sequence[str]:
        if self._address not in {"0.0.0.0", "::"}:  # noqa: S104 - compared
            return (self._address,)
        return tuple(own_addresses())

    def _mark(self) -> None:
        """Connections that are made while all that is missing is background say so."""
        held = [transfer for session in self._running() for transfer in session.transfers]
        missing = {transfer.infohash for transfer in held if not transfer.is_complete}
        complete = {transfer.infohash for transfer in held} - missing
        wanted = [image for key, image in self._images().items() if key not in complete]
        if not wanted:
            return
        only = all(image.traffic is Traffic.BACKGROUND for image in wanted)
        dscp = LOWER_EFFORT if only else 0
        if dscp == self._dscp:
            return
        running = self._running()
        for session in running:
            session.adjust({"peer_dscp": dscp})
        if running:
            self._dscp = dscp

    def _running(self) -> list[SwarmSession]:
        return [session for session in self._sessions if session.is_running]

    def _images(self) -> dict[str, DesiredImage]:
        desired = self._authority.desired
        return {} if desired is None else {image.infohash: image for image in desired.images}

    @property
    def class_caps(self) -> ClassCaps:
        """What the site's map caps."""
        farm = self._authority.farm.map
        return ClassCaps() if farm is None else farm.caps

    def first_limits_bps(self, infohash: str) -> tuple[int, int]:
        """Download and upload of an image until they are measured: what libtorrent hands out
        without limit, it uses for seconds whatever is said then."""
        image = self._images().get(infohash)
        down, up = self._image_caps(image)
        if not _is_background(image) or self._link.interface is None:
            return down, up
        begin = Background.begin(self._link.rate_bps)
        return (
            _stricter(down, int(self._background.get("download", begin).rate_bps)),
            _stricter(up, int(self._background.get("upload", begin).rate_bps)),
        )

    # -- several times a second -----------------------------------------------------------------

    async def run(self) -> None:
        """Until cancelled. The sessions are running."""
        while True:
            try:
                self._mark()
                if self._fast:
                    for session in self._running():
                        await session.ask_peers()
                self._turn()
            except RuntimeError as error:
                log.warning("traffic-not-measured", why=str(error))
            await asyncio.sleep(FAST_S if self._fast else SLOW_S)

    def _turn(self) -> None:
        images, caps = self._images(), self.class_caps
        moving = [
            (session, transfer)
            for session in self._running()
            for transfer in session.transfers
            if transfer.peers
        ]
        capped = any(_of(_tier_caps(caps, tier), way) for tier in Tier for way in WAYS)
        paced = [
            transfer
            for _, transfer in moving
            if any(self._image_caps(images.get(transfer.infohash)))
            or _is_background(images.get(transfer.infohash))
        ]
        self._hurry(bool(moving) and (capped or bool(paced)))
        now_s = self._now_s()
        elapsed_s, self._at_s = now_s - self._at_s, now_s
        moved = self._moved(moving)
        if elapsed_s > 5 * SLOW_S:
            moved = {}
        self._cap_tiers(caps, moved, elapsed_s)
        self._pace(moving, images, moved, elapsed_s)

    def _hurry(self, fast: bool) -> None:
        if fast == self._fast:
            return
        self._fast = fast
        for session in self._running():
            session.adjust({"tick_interval": FAST_TICK_MS if fast else SLOW_TICK_MS})

    def _moved(
        self, moving: Iterable[tuple[SwarmSession, Transfer]]
    ) -> dict[tuple[SwarmSession, str, Tier], Counted]:
        """Bytes on the wire since the last turn, by session, torrent and tier."""
        found: dict[tuple[SwarmSession, str, Tier], Counted] = {}
        seen: dict[tuple[SwarmSession, str], Mapping[tuple[str, int], Counted]] = {}
        for session, transfer in moving:
            key = (session, transfer.infohash)
            before = self._seen.get(key, {})
            now = {
                (one.address, one.port): Counted(one.received_bytes, one.sent_bytes)
                for one in transfer.samples
            }
            seen[key] = now
            for peer, counted in now.items():
                tier = self._tier(peer[0])
                step = counted.since(before.get(peer, Counted()))
                sum_of = found.get((*key, tier), Counted())
                found[*key, tier] = sum_of.plus(step)
        self._seen = seen
        return found

    def _tier(self, address: str) -> Tier:
        # A map has thousands of networks, and peers are few.
        found = self._tiers.get(address)
        if found is None:
            found = self._tiers[address] = self.zones.tier(address)
        return found

    def _cap_tiers(
        self,
        caps: ClassCaps,
        moved: Mapping[tuple[SwarmSession, str, Tier], Counted],
        elapsed_s: float,
    ) -> None:
        for tier in Tier:
            limits: dict[SwarmSession, dict[Way, int]] = {one: {} for one in self._running()}
            for way in WAYS:
                cap_bps = _of(_tier_caps(caps, tier), way)
                by_session, asking = dict.fromkeys(limits, 0.0), dict.fromkeys(limits, 0.0)
                for (session, _, near), counted in moved.items():
                    if near is tier:
                        by_session[session] += counted.wire(way)
                        asking[session] += counted.asking(way)
                divided = self._divide(("tier", tier, way), cap_bps, by_session, elapsed_s)
                for session, limit in divided.items():
                    limits[session][way] = at_least(limit, asking[session], elapsed_s)
            for session, ways in limits.items():
                session.limit_tier(tier, download_bps=ways["download"], upload_bps=ways["upload"])

    def _pace(
        self,
        moving: Iterable[tuple[SwarmSession, Transfer]],
        images: Mapping[str, DesiredImage],
        moved: Mapping[tuple[SwarmSession, str, Tier], Counted],
        elapsed_s: float,
    ) -> None:
        """Caps of images, and what is left of the link for the background."""
        live = {(session, one.infohash): one for session, one in moving}
        limits: dict[tuple[SwarmSession, str], dict[Way, int]] = {key: {} for key in live}
        counted = {
            key: total_of(moved.get((*key, tier), Counted()) for tier in Tier) for key in live
        }
        back = {key for key in live if _is_background(images.get(key[1]))}
        rates = self._background_rates([counted[key] for key in back], elapsed_s)
        for way in WAYS:
            for infohash in {key[1] for key in live}:
                shared = {key: counted[key].wire(way) for key in live if key[1] == infohash}
                cap_bps = _of(self._image_caps_of(images.get(infohash)), way)
                divided = self._divide(("image", infohash, way), cap_bps, shared, elapsed_s)
                for key, limit in divided.items():
                    limits[key][way] = limit
            shared = {key: counted[key].wire(way) for key in back}
            divided = self._divide(("background", way), rates.get(way, 0), shared, elapsed_s)
            for key, limit in divided.items():
                limits[key][way] = _stricter(limits[key][way], limit)
        for key, transfer in live.items():
            ways = {
                way: at_least(limit, counted[key].asking(way), elapsed_s)
                for way, limit in limits[key].items()
            }
            transfer.throttle(download_bps=ways["download"], upload_bps=ways["upload"])

    def _background_rates(self, counted: list[Counted], elapsed_s: float) -> dict[Way, int]:
        interface = self._link.interface
        if not counted or interface is None:
            self._background, self._passed = {}, None
            return {}
        before, self._passed = self._passed, passed(interface)
        if before is None or self._passed is None or elapsed_s <= 0:
            self._background = {way: Background.begin(self._link.rate_bps) for way in WAYS}
        else:
            now = self._passed
            whole: dict[Way, int] = {
                "download": now.received_bytes - before.received_bytes,
                "upload": now.sent_bytes - before.sent_bytes,
            }
            for way, bytes_passed in whole.items():
                ours = sum(one.wire(way) for one in counted)
                self._background[way] = react(
                    self._background.get(way, Background.begin(self._link.rate_bps)),
                    total_bps=bytes_passed / elapsed_s,
                    ours_bps=ours / elapsed_s,
                    elapsed_s=elapsed_s,
                )
        return {way: int(one.rate_bps) for way, one in self._background.items()}

    def _divide(
        self, key: _Key, cap_bps: int, moved: Mapping[Any, float], elapsed_s: float
    ) -> dict[Any, int]:
        """What each of ``moved`` may do of a cap; 0 where there is none."""
        if not cap_bps or not moved:
            self._budgets.pop(key, None)
            return dict.fromkeys(moved, 0)
        budget = self._budgets.get(key)
        if budget is None:
            fair = dict.fromkeys(moved, cap_bps // len(moved))
            budget = Budget(cap_bps, limits=fair, forgiven_s=OLD_QUOTA_S)
        else:
            # The rate of the background is another at each turn, and never much higher than used.
            of_background = key[0] == "background"
            now = replace(budget, cap_bps=cap_bps) if of_background else budget.at(cap_bps)
            budget = spend(now, moved, elapsed_s)
        self._budgets[key] = budget
        return {one: budget.limits.get(one, cap_bps) for one in moved}

    def _image_caps_of(self, image: DesiredImage | None) -> Caps:
        own = self._own_caps
        if image is None:
            return own
        return Caps(
            download_bps=_stricter(image.caps.download_bps, own.download_bps),
            upload_bps=_stricter(image.caps.upload_bps, own.upload_bps),
        )

    def _image_caps(self, image: DesiredImage | None) -> tuple[int, int]:
        caps = self._image_caps_of(image)
        return caps.download_bps, caps.upload_bps

    # -- what is told ---------------------------------------------------------------------------

    def status(self) -> dict[str, Any]:
        """For ``status`` on the socket (docs/formats/socket.md); rates in bytes per second."""
        farm = self._authority.farm
        return {
            "interface": self._link.interface,
            "link_bps": self._link.rate_bps,
            "farm_generation": farm.generation if farm.map is not None else None,
            "caps": self.class_caps.model_dump(mode="json"),
            "background": {way: int(one.rate_bps) for way, one in self._background.items()},
        }


def _is_background(image: DesiredImage | None) -> bool:
    return image is not None and image.traffic is Traffic.BACKGROUND


def _tier_caps(caps: ClassCaps, tier: Tier) -> Caps:
    match tier:
        case Tier.RACK:
            return caps.rack
        case Tier.ROOM:
            return caps.room
        case Tier.ELSEWHERE:
            return caps.elsewhere


def _of(caps: Caps, way: Way) -> int:
    return caps.download_bps if way == "download" else caps.upload_bps


def _stricter(one_bps: int, other_bps: int) -> int:
    """The lower of two caps, where 0 is none."""
    return min(filter(None, (one_bps, other_bps)), default=0)
