"""The clock, as a parameter: what depends on time is told the time."""

from __future__ import annotations

from collections.abc import Callable
from datetime import UTC, datetime

Clock = Callable[[], datetime]


def utc_now() -> datetime:
    """The host's clock, aware, in UTC."""
    return datetime.now(UTC)
