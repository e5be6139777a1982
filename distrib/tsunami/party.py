"""A host in a schedule, and an order between two of them."""

from __future__ import annotations

from dataclasses import dataclass, field


@dataclass(frozen=True)
class Order:
    """Send ``piece`` from ``source`` to ``target``."""

    number: int
    piece: int
    source: str
    target: str
    began_s: float


@dataclass(eq=False)
class Host:
    """What the schedule knows of a host. ``have`` and ``coming`` are sets of pieces, a bit each."""

    name: str
    rack: str
    up_slots: int
    down_slots: int
    target: bool
    origin: bool
    fetches: bool
    have: int = 0
    coming: int = 0
    up_used: int = 0
    down_used: int = 0
    aside: bool = False
    near_turn: bool = True
    orders: dict[int, Order] = field(default_factory=dict)
    parted: dict[str, float] = field(default_factory=dict)


def gives(host: Host) -> bool:
    """Whether it may begin to send something."""
    return host.have != 0 and host.up_used < host.up_slots and not host.aside
