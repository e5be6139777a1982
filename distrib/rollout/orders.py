"""Orders: what must not be replayed, gathered by node until it is signed and sent."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from datetime import datetime, timedelta

from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

from distrib.bus.messages import Order, Orders
from distrib.bus.schema import encode
from distrib.rollout.records import IssuedNumbers
from distrib.trust.envelope import seal

ORDERS_EXPIRE = timedelta(seconds=60)


@dataclass(frozen=True)
class Outbox:
    """What is to be published now, by node, and the rollouts that look different."""

    desired: Mapping[str, bytes] = field(default_factory=dict)
    orders: Mapping[str, bytes] = field(default_factory=dict)
    changed: frozenset[str] = frozenset()


class OrderBook:
    """The orders that nodes are to be sent next."""

    def __init__(self) -> None:
        self._given: dict[str, dict[str, Order]] = {}

    @property
    def nodes(self) -> Iterable[str]:
        """Who is to be sent any."""
        return self._given.keys()

    def add(self, node: str, *orders: Order) -> None:
        """Of those of one kind for one torrent the newest counts."""
        for order in orders:
            self._given.setdefault(node, {})[f"{order.kind} {order.infohash}"] = order

    def drop(self, node: str) -> None:
        """The node is not there any more."""
        self._given.pop(node, None)

    def clear(self) -> None:
        """They were sent."""
        self._given.clear()

    def sealed(
        self, numbers: Mapping[str, IssuedNumbers], *, now: datetime, key: Ed25519PrivateKey
    ) -> dict[str, bytes]:
        """The signed messages by node (docs/formats/messages.md, Orders)."""
        return {
            node: _sealed(node, tuple(given.values()), numbers[node].sequence, now, key)
            for node, given in self._given.items()
        }


def _sealed(
    node: str, orders: tuple[Order, ...], sequence: int, now: datetime, key: Ed25519PrivateKey
) -> bytes:
    message = Orders(
        node=node,
        issued_at=now,
        expires_at=now + ORDERS_EXPIRE,
        sequence=sequence,
        orders=orders,
    )
    return seal("orders", encode(message).decode(), key)
