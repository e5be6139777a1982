"""Who is slower than its place: found from the rates that nodes report. Pure, with hysteresis.

- A node is *behind* while it gets less than BELOW of what its parents get; parents that have the
  image (seeders) count as the median of all who pull. It is no longer when it gets more than ABOVE.
- Who has been behind for ``hold_s`` stands at fault; where all of several children of one parent
  do, or one child after another, the parent does: it is its upload that is slow.
- Who gets less than FAR_BELOW, by what it and its parents have received between reports that are
  fresh, is *far* behind; its next report that says so too is enough. A parent that is silent
  itself (dead, dark) accuses nobody so quickly: its child is about to leave it.
- Who gets nothing at all is not far behind but cut off, which its own agent mends. And a node whose
  peers have just become others is left alone until its connections stand.
- What a node reports is a claim: by lying it can move itself, or its parent, to the end of the
  line; children's complaints (``parent-lost``) count beside it.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass, field
from statistics import median_low

BELOW = 0.6
ABOVE = 0.75
FAR_BELOW = 0.4
HOLD_S = 6.0
METER_S = 0.4
"""Reports that are nearer to each other than that are taken together."""

FAR_HOLD_S = METER_S - 0.1
"""From one such report to the next one, by the node's clock."""

NEARLY_DONE = 0.98
"""Who is so far is left alone: rates end before pulls do."""


@dataclass(frozen=True)
class Pull:
    """A node that fetches: bytes per second, part of the image that it has, who feeds it."""

    rate_bps: int
    progress: float
    parents: tuple[str, ...]
    settling: bool = False
    """Its peers are others since a moment ago."""

    metered_at_s: float | None = None
    """The rate is what was received between two reports, of which this is the time of the last, by
    the node's clock; None when there is no such rate, or it is no news any more."""


@dataclass(frozen=True)
class Meter:
    """What a node received between two of its reports; libtorrent's own rate is a mean over many
    seconds. Seconds are ``sent_at_s`` of the node's clock, ``heard_s`` of ours."""

    done_bytes: int
    sent_at_s: float
    heard_s: float
    rate_bps: int | None = None

    def read(self, done_bytes: int, sent_at_s: float, *, now_s: float) -> Meter:
        """The meter after a report; itself where that is the same one, or too near."""
        passed_s = sent_at_s - self.sent_at_s
        if passed_s < 0 or done_bytes < self.done_bytes:
            return Meter(done_bytes, sent_at_s, now_s)
        if passed_s < METER_S:
            return self
        rate_bps = int((done_bytes - self.done_bytes) / passed_s)
        return Meter(done_bytes, sent_at_s, now_s, rate_bps)


@dataclass(frozen=True)
class Pace:
    """What is remembered: since when nodes are behind, or far behind, and under whom one was at
    fault. Seconds are ours in ``behind_since_s``, the node's in ``far_since_s``."""

    behind_since_s: Mapping[str, float] = field(default_factory=dict)
    far_since_s: Mapping[str, float] = field(default_factory=dict)
    suspects: Mapping[str, str] = field(default_factory=dict)


def judge(
    pace: Pace,
    pulls: Mapping[str, Pull],
    *,
    now_s: float,
    hold_s: float = HOLD_S,
    far_hold_s: float = FAR_HOLD_S,
    movable: Callable[[str], bool] = lambda _: True,
) -> tuple[Pace, frozenset[str]]:
    """Who is at fault now, and what to remember. ``pulls``: every node that fetches, by name;
    ``movable``: whether a node could be given another place now."""
    moving = [pull.rate_bps for pull in pulls.values() if pull.rate_bps > 0]
    if not moving:
        return Pace(suspects=pace.suspects), frozenset()
    middle = median_low(moving)
    behind = {}
    far = {}
    sure = set()
    for name, pull in pulls.items():
        since = pace.behind_since_s.get(name)
        if pull.settling:
            # Neither judged nor acquitted: in a line that changes all the while it is so each time.
            if since is not None:
                behind[name] = since
            continue
        share = ABOVE if since is not None else BELOW
        if _is_behind(pull, pulls, middle, share):
            behind[name] = now_s if since is None else since
            above = [pulls[parent] for parent in pull.parents if parent in pulls]
            fresh = all(parent.metered_at_s is not None for parent in above)
            if pull.metered_at_s is None or not fresh or pull.rate_bps == 0:
                continue
            if _is_behind(pull, pulls, middle, FAR_BELOW):
                far[name] = pace.far_since_s.get(name, pull.metered_at_s)
                if pull.metered_at_s - far[name] >= far_hold_s:
                    sure.add(name)
    long = {name for name, since in behind.items() if now_s - since >= hold_s}
    ripe = sure | {name for name in long if not pulls[name].settling}
    if not ripe:
        return Pace(behind, far, pace.suspects), frozenset()
    guilty, suspects = _at_fault(ripe, pulls, pace.suspects)
    guilty = {name for name in guilty if movable(name)}
    if not guilty:
        # A slow node that stands at the end already is no reason to forget since when others are.
        return Pace(behind, far, suspects), frozenset()
    # Below and beside them the stream is another one now.
    return Pace(suspects=suspects), frozenset(guilty)


def _is_behind(pull: Pull, pulls: Mapping[str, Pull], middle: int, share: float) -> bool:
    if pull.progress >= NEARLY_DONE:
        return False
    above = [pulls[name].rate_bps if name in pulls else middle for name in pull.parents]
    return bool(above) and pull.rate_bps < share * min(above)


def _at_fault(
    ripe: Collection[str], pulls: Mapping[str, Pull], suspects: Mapping[str, str]
) -> tuple[set[str], dict[str, str]]:
    children: dict[str, list[str]] = {}
    for name, pull in pulls.items():
        for parent in pull.parents:
            children.setdefault(parent, []).append(name)
    remembered = dict(suspects)
    guilty: set[str] = set()
    for name in sorted(ripe):
        uploads = [parent for parent in pulls[name].parents if parent in pulls]
        blamed = [
            parent
            for parent in uploads
            if _all_behind(children[parent], ripe) or remembered.get(parent, name) != name
        ]
        for parent in uploads:
            remembered.setdefault(parent, name)
        guilty |= set(blamed) or {name}
    return guilty, remembered


def _all_behind(children: Sequence[str], ripe: Collection[str]) -> bool:
    return len(children) > 1 and all(child in ripe for child in children)
