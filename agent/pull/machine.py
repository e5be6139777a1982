"""Whom a pull asks for pieces, and when it looks elsewhere: a pure state machine.

A pull asks its parents. When they are gone, or bring no piece for a time that follows the rate
measured so far, it asks the fallbacks too, then the neighbours, and from then on everybody again
at every further stall. It never gives up by itself: only a deadline ends it. Times are seconds of
a monotonic clock, given by the caller.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from enum import IntEnum

from distrib.bus.messages import NodeReason, Peer

STALL_MIN_S = 3.0
STALL_MAX_S = 30.0
STALL_PIECES = 10
"""A parent that is silent for the time of so many pieces has stalled."""


class Stage(IntEnum):
    """How far a pull has gone beyond its parents."""

    PARENTS = 0
    FALLBACKS = 1
    EVERYBODY = 2


@dataclass(frozen=True)
class Plan:
    """Who may be asked, in this order (docs/formats/messages.md, ``desired``)."""

    parents: tuple[Peer, ...] = ()
    fallbacks: tuple[Peer, ...] = ()
    neighbours: tuple[Peer, ...] = ()

    def upto(self, stage: Stage) -> tuple[Peer, ...]:
        """The peers of all stages up to ``stage``, each once, in order."""
        groups = (self.parents, self.fallbacks, self.neighbours)[: stage + 1]
        return tuple(dict.fromkeys(peer for group in groups for peer in group))


@dataclass(frozen=True)
class Pulling:
    """The state. ``interval_s`` is the mean time between two pieces, as far as it is known."""

    plan: Plan
    stage: Stage
    last_piece_s: float
    interval_s: float = 0.0
    deadline_s: float | None = None
    reason: NodeReason | None = None

    @property
    def patience_s(self) -> float:
        """Silence after which the peers asked so far count as stalled."""
        return min(max(STALL_PIECES * self.interval_s, STALL_MIN_S), STALL_MAX_S)


@dataclass(frozen=True)
class Ask:
    """Effect: connect to these peers."""

    peers: tuple[Peer, ...]


@dataclass(frozen=True)
class ParentLost:
    """Effect: tell the controller that ``parent`` brings nothing any more."""

    parent: Peer
    now_from: Peer | None


@dataclass(frozen=True)
class GiveUp:
    """Effect: the pull has failed."""

    reason: NodeReason
    text: str


Effect = Ask | ParentLost | GiveUp
Step = tuple[Pulling, tuple[Effect, ...]]


def start(plan: Plan, *, now_s: float, deadline_s: float | None = None) -> Step:
    """Begin: ask the parents, or whoever is known when there are none."""
    stage = next((s for s in Stage if plan.upto(s)), Stage.EVERYBODY)
    state = Pulling(plan, stage, last_piece_s=now_s, deadline_s=deadline_s)
    return state, (Ask(plan.upto(stage)),)


def on_piece(state: Pulling, *, now_s: float) -> Step:
    """A piece was verified."""
    gap_s = now_s - state.last_piece_s
    # An exponential mean: a burst after a pause must not make the next pause look like a stall.
    interval_s = gap_s if state.interval_s == 0 else 0.9 * state.interval_s + 0.1 * gap_s
    return replace(state, last_piece_s=now_s, interval_s=interval_s, reason=None), ()


def on_plan(state: Pulling, plan: Plan, *, now_s: float, deadline_s: float | None) -> Step:
    """A new plan arrived: back to its parents; what is connected stays."""
    if plan == state.plan:
        return replace(state, deadline_s=deadline_s), ()
    fresh, effects = start(plan, now_s=now_s, deadline_s=deadline_s)
    return replace(fresh, interval_s=state.interval_s, last_piece_s=state.last_piece_s), effects


def on_peer_down(state: Pulling, address: str, *, connected: int) -> Step:
    """A peer is gone. With nobody left that is connected, the next stage is asked at once."""
    parent = next((p for p in state.plan.parents if p.address == address), None)
    if connected > 0 or state.stage is Stage.EVERYBODY:
        return state, ()
    return _widen(state, NodeReason.NO_PEERS, parent)


def on_tick(state: Pulling, *, connected: int, now_s: float) -> Step:
    """Time passes: look for a deadline and for a stall."""
    if state.deadline_s is not None and now_s >= state.deadline_s:
        return state, (GiveUp(NodeReason.DEADLINE, "the deadline of the rollout has passed"),)
    if now_s - state.last_piece_s < state.patience_s:
        return state, ()
    reason = NodeReason.STALLED if connected else NodeReason.NO_PEERS
    parent = state.plan.parents[0] if state.plan.parents else None
    widened, effects = _widen(state, reason, parent)
    # Asked again only after another full wait.
    return replace(widened, last_piece_s=now_s), effects


def _widen(state: Pulling, reason: NodeReason, parent: Peer | None) -> Step:
    stage = Stage(min(state.stage + 1, Stage.EVERYBODY))
    peers = state.plan.upto(stage)
    effects: list[Effect] = [Ask(peers)]
    if parent is not None and stage != state.stage:
        others = [peer for peer in peers if peer != parent]
        effects.append(ParentLost(parent, others[0] if others else None))
    return replace(state, stage=stage, reason=reason), tuple(effects)
