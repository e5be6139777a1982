"""How fast: caps kept over seconds, and a background rate that makes way for others. Pure.

libtorrent keeps a limit on average, but lets through what nobody used for up to three seconds, and
what had been asked for before. ``Budget`` stands above it: it counts what really moved, divides one
cap among all that share it (sessions, stripes) by what each can use, keeps the limit of who is idle
low, and takes back what was too much. What a connection was given while it had no limit, or a
higher one, it uses first, for some seconds and as fast as it can: when a cap begins or falls that
is not taken back, or it would be missed for as long after. ``Background`` finds what is left of a
link: it halves while the link is full and others are on it, and grows by a share of the link a
second into what they have left free (additive increase, multiplicative decrease). Rates are bytes
per second on the wire.
"""

from __future__ import annotations

import math
from collections.abc import Hashable, Mapping
from dataclasses import dataclass, field, replace
from typing import TypeVar

WIRE = 1.05
"""Bytes on the wire for a byte of payload: TCP, IP and Ethernet headers at an MTU of 1500."""

ASKING = 0.004
"""Bytes of requests and announcements for a byte of payload the other way: 17 for 16 KiB, and 9 for
each piece and peer."""

CREDIT_S = 0.2
"""What was not used may be caught up with, as far as this many seconds of the cap."""

DEBT_S = 4.0
REPAY_S = 2.0
_SLOWEST, _FASTEST = 0.4, 1.1
OLD_QUOTA_S = 4.0
"""How long after a cap began or fell nothing is owed."""

_IDLE_SHARE = 8
_HUNGRY = 0.6
_FADE = 0.9
_SMOOTHING_S = 0.3
_LEAST_BPS = 2048

LINK_SHARE = 0.9
"""Others' traffic and ours together stay within this share of a link."""

FLOOR_SHARE = 0.02
"""The background never stops altogether."""

FULL_SHARE = 0.95
_OTHERS_SHARE = 0.03
_GROWTH_SHARE_PER_S = 0.25
_ALONE_GROWTH_SHARE_PER_S = 0.6
"""While nobody else has been on the link of late."""

_PEAK_S = 2.0
_UNREAD_S = 0.05
_UNREAD_BYTES = 400 * 1024
"""What of ours may wait in sockets, as time of the link and at least: what was asked for of a peer
(distrib/swarm/profile.py) has passed the interface before it is read."""

_USED = 0.4

K = TypeVar("K", bound=Hashable)


@dataclass(frozen=True)
class Budget:
    """One cap, and how those who share it stand. ``owed_bytes``: moved beyond it; below 0: not yet
    used. ``limits`` are what each may do now; they sum up to no more than ``_FASTEST`` of the cap.
    """

    cap_bps: int
    owed_bytes: float = 0.0
    limits: Mapping[Hashable, int] = field(default_factory=dict)
    rates: Mapping[Hashable, float] = field(default_factory=dict)
    """What each has had of late, smoothed: blocks come in bursts of some tenths of a second."""

    forgiven_s: float = 0.0
    """How much longer nothing is owed."""

    def at(self, cap_bps: int) -> Budget:
        """The same with another cap from now on."""
        lower = cap_bps < self.cap_bps
        return replace(self, cap_bps=cap_bps, forgiven_s=OLD_QUOTA_S if lower else self.forgiven_s)


def spend(budget: Budget, moved: Mapping[K, float], elapsed_s: float) -> Budget:
    """The budget after ``elapsed_s`` in which each of ``moved`` had so many bytes on the wire."""
    cap = budget.cap_bps
    if elapsed_s <= 0 or not moved:
        return budget
    owed = budget.owed_bytes + sum(moved.values()) - cap * elapsed_s
    owed = min(max(owed, -CREDIT_S * cap), 0.0 if budget.forgiven_s else DEBT_S * cap)
    share = min(max(1 - owed / (REPAY_S * cap), _SLOWEST), _FASTEST)
    rates: dict[Hashable, float] = {
        one: _smoothed(budget.rates.get(one, 0.0), bytes_moved / elapsed_s, elapsed_s)
        for one, bytes_moved in moved.items()
    }
    forgiven_s = max(budget.forgiven_s - elapsed_s, 0.0)
    return Budget(cap, owed, _divided(budget, cap * share, rates), rates, forgiven_s)


def _smoothed(before: float, now: float, elapsed_s: float) -> float:
    part = 1 - math.exp(-elapsed_s / _SMOOTHING_S)
    return before + part * (now - before)


def _divided(
    budget: Budget, total_bps: float, rates: Mapping[Hashable, float]
) -> dict[Hashable, int]:
    """``total_bps`` for all of ``rates``: who can use more shares what the others leave."""
    floor = total_bps / (_IDLE_SHARE * len(rates))
    modest: dict[Hashable, float] = {}
    for one, rate in rates.items():
        before = budget.limits.get(one)
        if before is None or rate < _HUNGRY * before:
            # Not at once: a limit that was just raised takes a moment to be used.
            modest[one] = max(1.5 * rate, floor, _FADE * (before or 0))
    hungry = [one for one in rates if one not in modest]
    fair = total_bps / len(rates)
    if hungry:
        modest = {one: min(want, fair) for one, want in modest.items()}
        each = (total_bps - sum(modest.values())) / len(hungry)
        limits = modest | dict.fromkeys(hungry, each)
    else:
        over = max(sum(modest.values()) / total_bps, 1.0)
        limits = {one: want / over for one, want in modest.items()}
    return {one: max(int(limit), _LEAST_BPS) for one, limit in limits.items()}


def at_least(limit_bps: int, bytes_asking: float, elapsed_s: float) -> int:
    """A limit (0: none) that leaves room to ask for what comes the other way: a node whose requests
    wait for the limit of its sending would not be sent anything."""
    if not limit_bps or elapsed_s <= 0:
        return limit_bps
    return max(limit_bps, int(bytes_asking / elapsed_s))


@dataclass(frozen=True)
class Background:
    """The rate of background traffic in one direction of a link. ``others_peak_bps``: the most that
    others had of late; it fades within seconds. The next three are smoothed.
    ``unread_bytes`` passed the interface and may yet turn out to be ours."""

    link_bps: int
    rate_bps: float
    others_peak_bps: float = 0.0
    total_bps: float = 0.0
    ours_bps: float = 0.0
    others_bps: float = 0.0
    unread_bytes: float = 0.0

    @classmethod
    def begin(cls, link_bps: int) -> Background:
        """Carefully."""
        return cls(link_bps, link_bps * FLOOR_SHARE)

    @property
    def floor_bps(self) -> float:
        return self.link_bps * FLOOR_SHARE


def react(before: Background, *, total_bps: float, ours_bps: float, elapsed_s: float) -> Background:
    """The rate after ``elapsed_s`` in which the link carried ``total_bps``, of which ours."""
    link = before.link_bps
    total = _smoothed(before.total_bps, total_bps, elapsed_s)
    ours = min(_smoothed(before.ours_bps, ours_bps, elapsed_s), total)
    # Ours are counted in bursts, as libtorrent reads them: only what no socket can hold is others'.
    unread = max(before.unread_bytes + (total_bps - ours_bps) * elapsed_s, 0.0)
    left = min(unread, max(_UNREAD_S * link, _UNREAD_BYTES))
    others = _smoothed(before.others_bps, (unread - left) / elapsed_s, elapsed_s)
    fading = before.others_peak_bps * max(0.0, 1 - elapsed_s / _PEAK_S)
    peak = max(others, fading)
    room = LINK_SHARE * link - peak
    rate = before.rate_bps
    if total > FULL_SHARE * link and total - ours > _OTHERS_SHARE * link:
        # What others get of a full link is no measure of what they want. Ours alone do not fill
        # one: it is not waited for until no socket could hold the rest.
        rate = min(rate / 2, room)
    elif rate > room:
        rate = room
    elif total - others > _USED * rate:
        alone = peak < _OTHERS_SHARE * link
        growth = _ALONE_GROWTH_SHARE_PER_S if alone else _GROWTH_SHARE_PER_S
        rate = min(rate + growth * link * elapsed_s, room)
    rate = min(max(rate, before.floor_bps), LINK_SHARE * link)
    return Background(link, rate, peak, total, ours, others, left)
