"""Whom a pull asks, and when it looks elsewhere."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from agent.pull import machine
from agent.pull.machine import Ask, GiveUp, ParentLost, Plan, Stage
from distrib.bus.messages import NodeReason, Peer


def _peer(number: int) -> Peer:
    return Peer(node=f"wn{number}", address=f"127.0.0.{number}", port=6881)


PARENT, GRANDPARENT, FRIEND = _peer(2), _peer(3), _peer(4)
PLAN = Plan((PARENT,), (GRANDPARENT,), (FRIEND,))


def test_a_pull_begins_with_its_parents_alone() -> None:
    state, effects = machine.start(PLAN, now_s=0)
    assert effects == (Ask((PARENT,)),)
    assert state.stage is Stage.PARENTS


def test_without_a_parent_it_begins_with_whoever_is_known() -> None:
    _, effects = machine.start(Plan(neighbours=(FRIEND,)), now_s=0)
    assert effects == (Ask((FRIEND,)),)


def test_a_vanished_parent_is_replaced_at_once_and_the_head_is_told() -> None:
    state, _ = machine.start(PLAN, now_s=0)
    state, effects = machine.on_peer_down(state, PARENT.address, connected=0)
    assert effects == (Ask((PARENT, GRANDPARENT)), ParentLost(PARENT, GRANDPARENT))
    assert state.reason is NodeReason.NO_PEERS


def test_a_vanished_peer_is_no_matter_while_others_are_connected() -> None:
    state, _ = machine.start(PLAN, now_s=0)
    assert machine.on_peer_down(state, PARENT.address, connected=1) == (state, ())


def test_a_silent_parent_is_given_the_time_of_ten_pieces() -> None:
    state, _ = machine.start(PLAN, now_s=0)
    for second in range(1, 60):
        state, _ = machine.on_piece(state, now_s=float(second))
    _, effects = machine.on_tick(state, connected=1, now_s=59 + 9.9)
    assert effects == ()
    state, effects = machine.on_tick(state, connected=1, now_s=59 + 10.1)
    assert Ask((PARENT, GRANDPARENT)) in effects
    assert state.reason is NodeReason.STALLED


def test_every_further_stall_asks_everybody_again() -> None:
    state, _ = machine.start(PLAN, now_s=0)
    asked = []
    for second in range(0, 40, 4):
        state, effects = machine.on_tick(state, connected=1, now_s=float(second))
        asked += [effect.peers for effect in effects if isinstance(effect, Ask)]
    assert asked[-1] == (PARENT, GRANDPARENT, FRIEND)
    assert len(asked) > 3


def test_a_piece_ends_the_complaint() -> None:
    state, _ = machine.start(PLAN, now_s=0)
    state, _ = machine.on_tick(state, connected=0, now_s=5)
    assert state.reason is NodeReason.NO_PEERS
    state, _ = machine.on_piece(state, now_s=6)
    assert state.reason is None


def test_only_a_deadline_ends_a_pull() -> None:
    state, _ = machine.start(PLAN, now_s=0, deadline_s=1000)
    for second in range(1, 1000, 7):
        state, effects = machine.on_tick(state, connected=0, now_s=float(second))
        assert not any(isinstance(effect, GiveUp) for effect in effects)
    _, effects = machine.on_tick(state, connected=0, now_s=1000)
    assert [e.reason for e in effects if isinstance(e, GiveUp)] == [NodeReason.DEADLINE]


def test_a_new_plan_asks_its_parents_and_an_old_one_changes_nothing() -> None:
    state, _ = machine.start(PLAN, now_s=0)
    assert machine.on_plan(state, PLAN, now_s=1, deadline_s=None) == (state, ())
    state, effects = machine.on_plan(state, Plan((FRIEND,)), now_s=1, deadline_s=None)
    assert effects == (Ask((FRIEND,)),)


@given(st.lists(st.tuples(st.sampled_from("ptd"), st.floats(0.01, 40)), max_size=60))
def test_whatever_happens_nobody_outside_the_plan_is_asked(steps: list[tuple[str, float]]) -> None:
    known = {PARENT, GRANDPARENT, FRIEND}
    now_s = 0.0
    state, effects = machine.start(PLAN, now_s=now_s)
    for kind, gap_s in steps:
        now_s += gap_s
        if kind == "p":
            state, effects = machine.on_piece(state, now_s=now_s)
        elif kind == "t":
            state, effects = machine.on_tick(state, connected=1, now_s=now_s)
        else:
            state, effects = machine.on_peer_down(state, PARENT.address, connected=0)
        for effect in effects:
            assert not isinstance(effect, GiveUp)
            if isinstance(effect, Ask):
                assert set(effect.peers) <= known
        assert machine.STALL_MIN_S <= state.patience_s <= machine.STALL_MAX_S
