"""Why an order of the site is not acted on, beside what is wrong with its signature."""

from __future__ import annotations

from datetime import datetime

from distrib.errors import TrustRefused

AHEAD_S = 24 * 3600


class GenerationDown(TrustRefused):
    """An order older than one that was accepted: a replay, or a head that was set back."""

    code = "generation-down"


class NumberAhead(TrustRefused):
    """A version, generation or sequence that the site cannot have reached yet."""

    code = "number-ahead"


class WrongNode(TrustRefused):
    """An order for another node."""

    code = "wrong-node"


class OrdersExpired(TrustRefused):
    """Orders that came too late to be acted on."""

    code = "orders-expired"


def check_not_ahead(what: str, number: int, now: datetime) -> None:
    """Numbers are `max(stored + 1, unix time)`: one far ahead would lock out all that follow.

    Raises NumberAhead."""
    if number > now.timestamp() + AHEAD_S:
        raise NumberAhead(
            f"{what} {number} is more than {AHEAD_S // 3600} h ahead of this node's clock",
            hint="the sender's or this node's clock is wrong, or somebody else signs",
        )
