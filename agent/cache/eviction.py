"""Which volumes go when room is needed: a pure policy.

Never one that is leased, held, pinned, desired, active or being pulled. Of the others the failed
and the blocked ones first (nobody can lease them), then the least recently leased; a volume that
was never leased counts from the moment that it came into its state. Nothing is evicted while there
is room, and nothing in vain; but once something must go, it goes down to the low watermark, so that
the next image does not find the cache full again. Above the high watermark this is done before
anybody asks (``choose_relief``).
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from datetime import datetime
from typing import Literal


@dataclass(frozen=True)
class Candidate:
    """A volume as the policy sees it. ``unusable``: failed or blocked. ``used_at``: last leased,
    or in its state since. ``held``: a newer version is being copied from it."""

    infohash: str
    room_bytes: int
    used_at: datetime
    unusable: bool = False
    leased: bool = False
    held: bool = False
    pinned: bool = False
    desired: bool = False
    active: bool = False
    pulling: bool = False
    image: str = ""

    @property
    def kept_because(self) -> str | None:
        """Why it may not be evicted; None when it may."""
        for why in ("leased", "held", "pulling", "pinned", "active", "desired"):
            if getattr(self, why):
                return why
        return None


Why = Literal["room", "watermark", "collected", "asked"]


@dataclass(frozen=True)
class Eviction:
    """A volume that went. ``why``: room was needed, use stood above the high watermark, it was
    collected (`gc`), or its removal was asked for. ``beneficiary``: the image or lease that the
    room was for, empty where it was for nobody in particular."""

    infohash: str
    image: str
    size_bytes: int
    why: Why
    beneficiary: str = ""


@dataclass(frozen=True)
class Choice:
    """``victims`` in the order in which to evict them; none when they would not be enough, and
    then ``missing_bytes`` and ``why_not`` say what is in the way."""

    victims: tuple[Candidate, ...] = ()
    missing_bytes: int = 0
    why_not: str = ""


def order(candidates: Iterable[Candidate]) -> tuple[Candidate, ...]:
    """Those that may be evicted, first to go first."""
    free = (one for one in candidates if one.kept_because is None)
    return tuple(sorted(free, key=lambda one: (not one.unusable, one.used_at, one.infohash)))


def choose_victims(
    candidates: Iterable[Candidate],
    need_bytes: int,
    used_bytes: int,
    capacity_bytes: int,
    low_watermark: float,
) -> Choice:
    """Choose what to evict so that ``need_bytes`` more fit within ``capacity_bytes``.

    ``low_watermark`` is a share of the capacity (0 to 1): when something must be evicted, eviction
    goes on until no more than that is used, the new bytes not counted.
    """
    if used_bytes + need_bytes <= capacity_bytes:
        return Choice()
    everything = tuple(candidates)
    evictable = order(everything)
    least = used_bytes - sum(one.room_bytes for one in evictable)
    if least + need_bytes > capacity_bytes:
        return Choice(
            missing_bytes=least + need_bytes - capacity_bytes,
            why_not=describe_kept(everything),
        )
    goal = min(capacity_bytes - need_bytes, int(capacity_bytes * low_watermark))
    victims: list[Candidate] = []
    left = used_bytes
    for one in evictable:
        if left <= goal:
            break
        victims.append(one)
        left -= one.room_bytes
    return Choice(tuple(victims))


def choose_relief(
    candidates: Iterable[Candidate],
    used_bytes: int,
    capacity_bytes: int,
    low_watermark: float,
    high_watermark: float,
) -> tuple[Candidate, ...]:
    """What to evict before anybody asks: above ``high_watermark`` (a share of the capacity) down
    to ``low_watermark``, as far as there is what may go."""
    if used_bytes <= capacity_bytes * high_watermark:
        return ()
    victims: list[Candidate] = []
    for one in order(candidates):
        if used_bytes <= capacity_bytes * low_watermark:
            break
        victims.append(one)
        used_bytes -= one.room_bytes
    return tuple(victims)


def describe_kept(candidates: Iterable[Candidate]) -> str:
    """What may not be evicted, in a line: ``leased: 2 (1024 bytes), pinned: 1 (512 bytes)``."""
    kept: dict[str, list[int]] = {}
    for one in candidates:
        why = one.kept_because
        if why is not None:
            kept.setdefault(why, []).append(one.room_bytes)
    lines = (f"{why}: {len(sizes)} ({sum(sizes)} bytes)" for why, sizes in sorted(kept.items()))
    return ", ".join(lines) or "no image is left to evict"
