"""Whom a pull asks for pieces, and when it looks elsewhere: a pure state machine.

- A pull asks its parents. Silence alone accuses nobody: a parent that itself waits has nothing to
  give. So a silent one is *probed* (does its host take a connection?), and libtorrent knows whether
  it has what is wanted. Lost is who refuses, who leaves two probes unanswered, who has pieces and
  sends none for a time that follows the measured rate, who cannot be reached, who sends bad bytes.
- In the place of lost parents comes one fallback after another, then everybody who was ever named.
- A lost parent is dialled again, ever more seldom. When it delivers again, or a new plan's parents
  do, the connections to all others are closed: a chain must not decay into a mesh.
- It never gives up by itself: only a deadline ends it.

So only the node next to a fault looks elsewhere; those below it keep their parent. Times are
seconds of a monotonic clock, given by the caller. Figures: docs/decisions/0025-repair.md.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import replace

from agent.pull.pulling import (
    AHEAD_S,
    FALLBACK_WAIT_S,
    HEARD_S,
    KNOWN_MAX,
    LEAVE_S,
    MISSES,
    NAMED_S,
    OPENING_S,
    PROBE_EVERY_S,
    PROBE_SELDOM_S,
    REACH_S,
    REDIAL_S,
    RETRY_MAX_S,
    RETRY_MIN_S,
    RETURN_S,
    WAIT_MAX_S,
    Answer,
    Ask,
    Effect,
    GiveUp,
    Leave,
    ParentLost,
    Plan,
    Probe,
    Pulling,
    Stage,
    each_once,
)
from distrib.bus.messages import NodeReason, Peer
from distrib.swarm.events import PeerSample

Step = tuple[Pulling, tuple[Effect, ...]]


def start(plan: Plan, *, now_s: float, deadline_s: float | None = None) -> Step:
    """Begin: ask the parents, or whoever is known when there are none."""
    state = Pulling(
        plan,
        Stage.PARENTS,
        current=plan.parents,
        asked=plan.parents,
        known=plan.upto(Stage.EVERYBODY)[:KNOWN_MAX],
        heard_s=now_s,
        dialled_s=now_s,
        began_s=now_s,
        piece_s=now_s,
        deadline_s=deadline_s,
    )
    return (state, (Ask(plan.parents),)) if plan.parents else _next(state, now_s)


def on_piece(state: Pulling, *, now_s: float) -> Step:
    """A piece was verified."""
    gap_s = now_s - state.piece_s
    # An exponential mean: a burst after a pause must not make the next pause look like a stall.
    interval_s = gap_s if state.interval_s == 0 else 0.9 * state.interval_s + 0.1 * gap_s
    return _heard(replace(state, interval_s=interval_s, piece_s=now_s), now_s), ()


def on_sample(state: Pulling, samples: Iterable[PeerSample], *, now_s: float) -> Step:
    """What is known of all connected peers, some times a second."""
    before = state.samples
    now = {sample.address: sample for sample in samples}
    grown = {
        address
        for address, sample in now.items()
        if sample.received_bytes > (before[address].received_bytes if address in before else 0)
    }
    state = replace(state, samples=now)
    if not grown:
        return replace(state, back_s=None), ()
    state = replace(
        _heard(state, now_s),
        heard_from={**state.heard_from, **dict.fromkeys(grown, now_s)},
        misses={a: n for a, n in state.misses.items() if a not in grown},
    )
    parents = {peer.address for peer in state.plan.parents}
    effects: list[Effect] = []
    if state.stage is Stage.PARENTS:
        extra = (*state.leaving, *state.asked)
        extra = tuple(peer for peer in extra if peer not in state.plan.parents)
        if extra and (grown & parents or _ahead_of(state, parents, now_s)):
            effects.append(Leave(each_once(extra)))
            state = replace(state, leaving=(), asked=state.plan.parents)
    elif not grown & parents:
        state = replace(state, back_s=None)
    elif state.back_s is None:
        state = replace(state, back_s=now_s)
    elif now_s - state.back_s >= RETURN_S:
        others = tuple(peer for peer in state.asked if peer not in state.plan.parents)
        effects.append(Leave(others))
        state = replace(
            state,
            stage=Stage.PARENTS,
            current=state.plan.parents,
            asked=state.plan.parents,
            back_s=None,
        )
    return state, tuple(effects)


def on_plan(state: Pulling, plan: Plan, *, now_s: float, deadline_s: float | None) -> Step:
    """A new plan arrived: to its parents. Those before are left once the new ones deliver."""
    state = replace(state, deadline_s=deadline_s)
    if plan == state.plan:
        return state, ()
    known = each_once((*plan.upto(Stage.EVERYBODY), *state.known))[:KNOWN_MAX]
    same = plan.parents == state.plan.parents
    state = replace(state, plan=plan, known=known, retry_s=RETRY_MIN_S, bad=frozenset())
    if same and state.stage is Stage.PARENTS:
        return state, ()
    addresses = {peer.address for peer in plan.parents}
    left = tuple(p for p in (*state.asked, *state.leaving) if p.address not in addresses)
    state = replace(
        state,
        stage=Stage.PARENTS,
        current=plan.parents,
        asked=plan.parents,
        leaving=each_once(left),
        leave_s=now_s + LEAVE_S,
        dialled_s=now_s,
        began_s=now_s,
        misses={},
        probed_s={},
        back_s=None,
    )
    if not plan.parents:
        return _next(state, now_s)
    return state, (Ask(plan.parents),)


def on_peer_down(state: Pulling, address: str, *, now_s: float) -> Step:
    """A connection is gone, or could not be made: is the host still there?"""
    state = replace(state, samples={a: s for a, s in state.samples.items() if a != address})
    peer = next((peer for peer in state.current if peer.address == address), None)
    if peer is None or state.stage is Stage.EVERYBODY:
        return state, ()
    return _probed(state, peer, now_s), (Probe(peer),)


def on_banned(state: Pulling, address: str, *, now_s: float) -> Step:
    """A peer sent bytes that failed their hash, and was cut off. It is no fallback any more, but as
    a parent it is dialled again: the bytes may have come from a job that shares its address."""
    state = replace(state, bad=state.bad | {address})
    peer = next((peer for peer in state.current if peer.address == address), None)
    if peer is None:
        return state, ()
    return _lose(state, peer, NodeReason.HASH_FAILED, "sent bad bytes", now_s)


def on_probe(state: Pulling, peer: Peer, answer: Answer, *, now_s: float) -> Step:
    """What came of a probe."""
    if peer not in state.current or state.stage is Stage.EVERYBODY:
        return state, ()
    if answer is Answer.TAKES:
        state = replace(state, misses={**state.misses, peer.address: 0})
        opening = state.stage is Stage.PARENTS and now_s - state.began_s < OPENING_S
        again = () if opening or peer.address in state.samples else (Ask((peer,)),)
        return replace(state, dialled_s=now_s) if again else state, again
    heard_s = state.heard_from.get(peer.address, -HEARD_S)
    if peer.address in state.samples and now_s - heard_s < HEARD_S:
        return state, ()
    if answer is Answer.REFUSES:
        return _lose(state, peer, NodeReason.NO_PEERS, "is not there", now_s)
    missed = state.misses.get(peer.address, 0) + 1
    state = replace(state, misses={**state.misses, peer.address: missed})
    if missed >= MISSES:
        return _lose(state, peer, NodeReason.NO_PEERS, "does not answer", now_s)
    # Connections are made once a second: the next one is dialled while this one is asked again.
    spare = _candidate(state)
    ready = () if spare is None or len(state.current) > 1 else (spare,)
    state = replace(_probed(state, peer, now_s), asked=each_once((*state.asked, *ready)))
    return state, (*((Ask(ready),) if ready else ()), Probe(peer))


def on_tick(state: Pulling, *, now_s: float) -> Step:
    """Time passes: look for a deadline, a stall, and a parent that may be back."""
    if state.deadline_s is not None and now_s >= state.deadline_s:
        return state, (GiveUp(NodeReason.DEADLINE, "the deadline of the rollout has passed"),)
    effects: list[Effect] = []
    if state.leaving and now_s >= state.leave_s:
        left = tuple(peer for peer in state.leaving if peer not in state.asked)
        effects += [Leave(left)] if left else []
        state = replace(state, leaving=())
    if state.stage > Stage.PARENTS:
        state, more = _retry_parents(state, now_s)
        effects += more
    silence_s = now_s - max(state.heard_s, state.began_s)
    if silence_s >= state.quiet_s:
        state, more = _in_silence(state, silence_s, now_s)
        effects += more
    return state, tuple(effects)


# -- steps --------------------------------------------------------------------------------------


def _in_silence(state: Pulling, silence_s: float, now_s: float) -> Step:
    if silence_s >= NAMED_S and state.reason is None:
        state = _named(state)
    if state.stage is Stage.EVERYBODY:
        if now_s - state.dialled_s < state.patience_s:
            return state, ()
        # Whoever was set aside may be all that is left.
        return replace(state, dialled_s=now_s, bad=frozenset()), (Ask(state.known),)
    effects: list[Effect] = []
    away = []
    for peer in state.current:
        sample = state.samples.get(peer.address)
        if sample is None and silence_s >= REACH_S:
            return _lose(state, peer, NodeReason.NO_PEERS, "cannot be reached", now_s)
        if sample is not None and sample.interesting and silence_s >= state.patience_s:
            return _lose(state, peer, NodeReason.STALLED, "has pieces and sends none", now_s)
        wait_s = WAIT_MAX_S if peer in state.plan.parents else FALLBACK_WAIT_S
        if silence_s >= (wait_s if sample is not None else WAIT_MAX_S):
            return _lose(state, peer, NodeReason.STALLED, "has had nothing new", now_s)
        if sample is None:
            away.append(peer)
        seldom = silence_s >= NAMED_S and not state.misses.get(peer.address)
        every_s = PROBE_SELDOM_S if seldom else PROBE_EVERY_S
        if now_s - state.probed_s.get(peer.address, 0.0) >= every_s:
            state = _probed(state, peer, now_s)
            effects.append(Probe(peer))
    if away and now_s - state.dialled_s >= REDIAL_S:
        state = replace(state, dialled_s=now_s)
        effects.append(Ask(tuple(away)))
    return state, tuple(effects)


def _ahead_of(state: Pulling, parents: set[str], now_s: float) -> bool:
    """Whether the plan's parents are here, and have nothing yet that this node has not: it was
    moved down, and who fed it feeds another."""
    if now_s - state.began_s < AHEAD_S:
        return False
    here = [state.samples[address] for address in parents if address in state.samples]
    return len(here) == len(parents) and not any(sample.interesting for sample in here)


def _retry_parents(state: Pulling, now_s: float) -> Step:
    gone = tuple(peer for peer in state.plan.parents if peer.address not in state.samples)
    if not gone or now_s - state.retried_s < state.retry_s:
        return state, ()
    later_s = min(2 * state.retry_s, RETRY_MAX_S)
    return replace(state, retried_s=now_s, retry_s=later_s), (Ask(gone),)


def _lose(state: Pulling, peer: Peer, reason: NodeReason, what: str, now_s: float) -> Step:
    """Rely on ``peer`` no more. Its connection ends: others may give what it was asked for."""
    current = tuple(other for other in state.current if other != peer)
    state = replace(
        state,
        current=current,
        reason=reason,
        text=f"{peer.node} {what}",
        retried_s=now_s,
    )
    effects: tuple[Effect, ...] = (Leave((peer,)),)
    now_from = current[0] if current else _candidate(state)
    if peer in state.plan.parents:
        effects = (*effects, ParentLost(peer, now_from, reason))
    if current:
        return state, effects
    state, more = _next(state, now_s)
    return state, (*effects, *more)


def _next(state: Pulling, now_s: float) -> Step:
    """On to the next fallback; to everybody after the last."""
    state = replace(state, dialled_s=now_s, began_s=now_s, misses={}, probed_s={}, back_s=None)
    peer = _candidate(state)
    if peer is None:
        state = replace(
            state, stage=Stage.EVERYBODY, current=state.known, asked=state.known, bad=frozenset()
        )
        return state, (Ask(state.known),)
    asked = each_once((*state.plan.parents, peer))
    spare = tuple(other for other in state.asked if other not in asked)
    state = replace(
        state,
        stage=Stage.FALLBACKS,
        current=(peer,),
        asked=asked,
        tried=each_once((*state.tried, peer)),
    )
    left: tuple[Effect, ...] = (Leave(spare),) if spare else ()
    return _probed(state, peer, now_s), (*left, Ask((peer,)), Probe(peer))


def _candidate(state: Pulling) -> Peer | None:
    """The first fallback that was not tried since the parents were lost, and may have something."""
    tried = state.tried if state.stage is Stage.FALLBACKS else ()
    taken = {peer.address for peer in (*state.plan.parents, *tried)} | state.bad
    # Connected, and with nothing new: it fetches from this node, or waits for the same parent.
    taken |= {sample.address for sample in state.samples.values() if not sample.interesting}
    return next((peer for peer in state.plan.fallbacks if peer.address not in taken), None)


def _heard(state: Pulling, now_s: float) -> Pulling:
    return replace(state, heard_s=now_s, reason=None, text="")


def _named(state: Pulling) -> Pulling:
    """Say why nothing comes."""
    there = [peer for peer in state.current if peer.address in state.samples]
    if not there:
        names = ", ".join(peer.node for peer in state.current[:3]) or "nobody"
        return replace(state, reason=NodeReason.NO_PEERS, text=f"no connection to {names}")
    has = any(state.samples[peer.address].interesting for peer in there)
    what = "has pieces and sends none" if has else "has nothing new"
    return replace(state, reason=NodeReason.STALLED, text=f"{there[0].node} {what}")


def _probed(state: Pulling, peer: Peer, now_s: float) -> Pulling:
    return replace(state, probed_s={**state.probed_s, peer.address: now_s})
