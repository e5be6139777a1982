"""When nodes were last heard, and when what they have last changed: by our clock, not by theirs."""

from __future__ import annotations

from collections.abc import Callable
from datetime import UTC, datetime

from distrib.bus.messages import ImageReport, Report, State

GIVERS_MAX = 256
"""Of each node and image, the newest: a node can name others without end."""

_AT_REST = frozenset({State.READY, State.LEASED, State.ABSENT})


def utc_now() -> datetime:
    """The host's clock."""
    return datetime.now(UTC)


class Movement:
    """Fed with every report that is taken in."""

    def __init__(self, clock: Callable[[], datetime] = utc_now) -> None:
        self._clock = clock
        self._heard_at: dict[str, datetime] = {}
        self._moved: dict[str, dict[str, tuple[State, int, datetime]]] = {}
        self._fed: dict[str, dict[str, dict[str, datetime]]] = {}

    def heard(self, report: Report) -> None:
        """Take in what a node says."""
        now = self._clock()
        self._heard_at[report.node] = now
        before = self._moved.get(report.node, {})
        after = {
            image.infohash: _moved(image, before.get(image.infohash), now)
            for image in report.images
            if image.state not in _AT_REST
        }
        if after:
            self._moved[report.node] = after
            fed = self._fed.setdefault(report.node, {})
            for gone in fed.keys() - after.keys():
                del fed[gone]
            for image in report.images:
                givers = {link.node for link in image.links if link.node and link.download_bps}
                if image.infohash in after and givers:
                    others = fed.get(image.infohash, {}).items()
                    told = {name: at for name, at in others if name not in givers}
                    newest = list((told | dict.fromkeys(givers, now)).items())[-GIVERS_MAX:]
                    fed[image.infohash] = dict(newest)
        else:
            self._moved.pop(report.node, None)
            self._fed.pop(report.node, None)

    def forget(self, node: str) -> None:
        """The node is off the inventory, or its report was deleted."""
        self._heard_at.pop(node, None)
        self._moved.pop(node, None)
        self._fed.pop(node, None)

    def silent_s(self, node: str, now: datetime) -> float | None:
        """Seconds since the node's newest report; None: there is none."""
        heard = self._heard_at.get(node)
        return None if heard is None else (now - heard).total_seconds()

    def still_s(self, node: str, infohash: str, now: datetime) -> float:
        """Seconds since the verified bytes or the state of an image changed; 0 at rest."""
        moved = self._moved.get(node, {}).get(infohash)
        return 0.0 if moved is None else (now - moved[2]).total_seconds()

    def dry_s(self, node: str, infohash: str, now: datetime) -> dict[str, float]:
        """Seconds since each peer that ever gave it bytes of an image, by name, last did so."""
        fed = self._fed.get(node, {}).get(infohash, {})
        return {giver: (now - at).total_seconds() for giver, at in fed.items()}


def _moved(
    image: ImageReport, before: tuple[State, int, datetime] | None, now: datetime
) -> tuple[State, int, datetime]:
    if before is not None and before[:2] == (image.state, image.bytes_done):
        return before
    return image.state, image.bytes_done, now
