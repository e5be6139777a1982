"""Whom a pull asks, and when it looks elsewhere."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

from hypothesis import given
from hypothesis import strategies as st

from agent.pull import machine
from agent.pull.pulling import (
    STALL_MAX_S,
    STALL_MIN_S,
    Answer,
    Ask,
    Effect,
    GiveUp,
    Leave,
    ParentLost,
    Plan,
    Probe,
    Stage,
)
from distrib.bus.messages import NodeReason, Peer
from distrib.swarm.events import PeerSample


def _peer(number: int) -> Peer:
    return Peer(node=f"wn{number}", address=f"127.0.0.{number}", port=6881)


PARENT, GRANDPARENT, SEEDER, FRIEND, OTHER = map(_peer, (2, 3, 4, 5, 6))
PLAN = Plan((PARENT,), (GRANDPARENT, SEEDER), (FRIEND,))


def _sample(peer: Peer, received: int, *, interesting: bool = True) -> PeerSample:
    return PeerSample(peer.address, peer.port, interesting, received, 0, 0, 0)


class Story:
    """A pull, its clock, and what it has done so far. Pieces come every 50 ms."""

    def __init__(self, plan: Plan = PLAN) -> None:
        self.now_s = 100.0
        self.done: list[Effect] = []
        self.received: dict[Peer, int] = {}
        self.state, effects = machine.start(plan, now_s=self.now_s)
        self.done += effects

    def step(self, step: machine.Step) -> tuple[Effect, ...]:
        self.state, effects = step
        self.done += effects
        return effects

    def fed_by(
        self, *peers: Peer, for_s: float = 2.0, idle: Sequence[Peer] = ()
    ) -> tuple[Effect, ...]:
        effects: tuple[Effect, ...] = ()
        until_s = self.now_s + for_s
        while self.now_s < until_s:
            self.now_s += 0.05
            effects += self.step(machine.on_piece(self.state, now_s=self.now_s))
            if round(self.now_s / 0.05) % 10 == 0:
                for peer in peers:
                    self.received[peer] = self.received.get(peer, 0) + 1000
                effects += self.sampled(*peers, *idle)
            effects += self.step(machine.on_tick(self.state, now_s=self.now_s))
        return effects

    def sampled(self, *peers: Peer, interesting: bool = True) -> tuple[Effect, ...]:
        samples = [_sample(p, self.received.get(p, 0), interesting=interesting) for p in peers]
        return self.step(machine.on_sample(self.state, samples, now_s=self.now_s))

    def silence(
        self, for_s: float, answer: Answer, *connected: Peer, interesting: bool = True
    ) -> tuple[Effect, ...]:
        """Nothing comes; a probe without an answer takes its time."""
        effects: tuple[Effect, ...] = ()
        until_s, waiting = self.now_s + for_s, []
        count = 0
        while self.now_s < until_s:
            self.now_s += 0.1
            count += 1
            news = self.step(machine.on_tick(self.state, now_s=self.now_s))
            if count % 5 == 0:
                there = [p for p in connected if p in (*self.state.asked, *self.state.leaving)]
                news += self.sampled(*there, interesting=interesting)
            due = [peer for at_s, peer in waiting if at_s <= self.now_s]
            waiting = [(at_s, peer) for at_s, peer in waiting if at_s > self.now_s]
            for peer in due:
                news += self.step(machine.on_probe(self.state, peer, answer, now_s=self.now_s))
            takes_s = 0.5 if answer is Answer.NONE else 0.0
            waiting += [(self.now_s + takes_s, e.peer) for e in news if isinstance(e, Probe)]
            effects += news
        return effects

    def down(self, peer: Peer, answer: Answer) -> tuple[Effect, ...]:
        effects = self.step(machine.on_peer_down(self.state, peer.address, now_s=self.now_s))
        for probe in [e for e in effects if isinstance(e, Probe)]:
            step = machine.on_probe(self.state, probe.peer, answer, now_s=self.now_s)
            effects += self.step(step)
        return effects


def test_a_pull_begins_with_its_parents_alone() -> None:
    story = Story()
    assert story.done == [Ask((PARENT,))]
    assert story.state.stage is Stage.PARENTS


def test_without_a_parent_it_begins_with_whoever_is_known() -> None:
    assert Story(Plan(neighbours=(FRIEND,))).done == [Ask((FRIEND,))]


def test_a_parent_that_was_killed_is_replaced_at_once_and_the_head_is_told() -> None:
    story = Story()
    story.fed_by(PARENT)
    story.now_s += 1.0
    effects = story.down(PARENT, Answer.REFUSES)
    assert ParentLost(PARENT, GRANDPARENT, NodeReason.NO_PEERS) in effects
    assert Ask((GRANDPARENT,)) in effects
    assert Leave((PARENT,)) in effects
    assert story.state.reason is NodeReason.NO_PEERS
    assert story.state.text == "wn2 is not there"


def test_a_parent_whose_link_is_dark_is_replaced_within_two_seconds() -> None:
    story = Story()
    story.fed_by(PARENT)
    effects = story.silence(2.0, Answer.NONE, PARENT)
    assert ParentLost(PARENT, GRANDPARENT, NodeReason.NO_PEERS) in effects
    # The grandparent was dialled as soon as one probe had no answer.
    assert effects.index(Ask((GRANDPARENT,))) < effects.index(Leave((PARENT,)))
    assert SEEDER not in {p for e in effects if isinstance(e, Ask) for p in e.peers}


def test_a_parent_that_waits_itself_is_kept() -> None:
    story = Story()
    story.fed_by(PARENT)
    effects = story.silence(20.0, Answer.TAKES, PARENT, interesting=False)
    assert {type(effect) for effect in effects} == {Probe}
    assert story.state.reason is NodeReason.STALLED
    assert story.state.text == "wn2 has nothing new"
    assert len(effects) < 20


def test_a_reason_is_named_within_three_seconds() -> None:
    story = Story(Plan((PARENT,)))
    story.silence(2.9, Answer.TAKES)
    assert (story.state.reason, story.state.text) == (
        NodeReason.NO_PEERS,
        "no connection to wn2",
    )


def test_a_parent_that_has_pieces_and_sends_none_is_replaced() -> None:
    story = Story()
    story.fed_by(PARENT)
    effects = story.silence(2.5, Answer.TAKES, PARENT)
    assert not [effect for effect in effects if isinstance(effect, ParentLost)]
    effects = story.silence(2.0, Answer.TAKES, PARENT)
    assert ParentLost(PARENT, GRANDPARENT, NodeReason.STALLED) in effects
    assert story.state.text == "wn2 has pieces and sends none"


def test_a_parent_that_is_not_ready_yet_is_dialled_again_for_four_seconds() -> None:
    story = Story()
    effects = story.down(PARENT, Answer.TAKES) + story.silence(3.5, Answer.TAKES)
    assert effects.count(Ask((PARENT,))) >= 3
    assert story.state.stage is Stage.PARENTS
    story.silence(1.0, Answer.TAKES)
    assert story.state.current == (GRANDPARENT,)


def test_a_parent_that_has_not_begun_yet_is_left_time_to_connect_itself() -> None:
    story = Story()
    story.now_s += 0.2
    assert not [one for one in story.down(PARENT, Answer.TAKES) if isinstance(one, Ask)]
    story.now_s += 0.4
    assert Ask((PARENT,)) in story.down(PARENT, Answer.TAKES)


def test_a_parent_whose_connection_is_lost_is_dialled_again_at_once_if_it_is_there() -> None:
    story = Story()
    story.fed_by(PARENT)
    assert Ask((PARENT,)) in story.down(PARENT, Answer.TAKES)
    story.fed_by(PARENT, for_s=0.6)
    effects = story.down(GRANDPARENT, Answer.TAKES)
    assert not effects


def test_fallbacks_are_asked_one_after_another_and_then_everybody() -> None:
    story = Story()
    story.fed_by(PARENT)
    story.down(PARENT, Answer.REFUSES)
    story.down(GRANDPARENT, Answer.REFUSES)
    assert story.state.current == (SEEDER,)
    effects = story.down(SEEDER, Answer.REFUSES)
    assert story.state.stage is Stage.EVERYBODY
    assert Ask((PARENT, GRANDPARENT, SEEDER, FRIEND)) in effects
    again = story.silence(10.0, Answer.REFUSES)
    assert again.count(Ask((PARENT, GRANDPARENT, SEEDER, FRIEND))) >= 2


def test_a_parent_that_delivers_again_is_gone_back_to_and_the_others_are_left() -> None:
    story = Story()
    story.fed_by(PARENT)
    story.down(PARENT, Answer.REFUSES)
    effects = story.fed_by(GRANDPARENT, for_s=5)
    assert Ask((PARENT,)) in effects
    effects = story.fed_by(GRANDPARENT, PARENT, for_s=3)
    assert Leave((GRANDPARENT,)) in effects
    assert story.state.current == (PARENT,)
    assert story.state.asked == (PARENT,)


def test_a_fallback_that_has_nothing_new_has_its_turn_for_two_seconds() -> None:
    story = Story()
    story.fed_by(PARENT)
    story.down(PARENT, Answer.REFUSES)
    story.silence(1.5, Answer.TAKES, GRANDPARENT, interesting=False)
    assert story.state.current == (GRANDPARENT,)
    story.silence(0.7, Answer.TAKES, GRANDPARENT, interesting=False)
    assert story.state.current == (SEEDER,)


def test_a_fallback_that_fetches_from_this_node_is_passed_over() -> None:
    story = Story()
    story.fed_by(PARENT)
    story.sampled(GRANDPARENT, interesting=False)
    story.down(PARENT, Answer.REFUSES)
    assert story.state.current == (SEEDER,)


def test_a_false_alarm_leaves_who_was_dialled_for_it() -> None:
    story = Story()
    story.fed_by(PARENT)
    story.silence(1.1, Answer.NONE, PARENT)
    assert GRANDPARENT in story.state.asked
    assert Leave((GRANDPARENT,)) in story.fed_by(PARENT, idle=(GRANDPARENT,))
    assert not [effect for effect in story.done if isinstance(effect, ParentLost)]


def test_a_dark_parent_is_found_although_the_spare_delivers_already() -> None:
    story = Story()
    story.fed_by(PARENT)
    story.silence(1.1, Answer.NONE, PARENT)
    story.fed_by(GRANDPARENT, idle=(PARENT,), for_s=0.6)
    story.step(machine.on_probe(story.state, PARENT, Answer.NONE, now_s=story.now_s))
    assert story.state.current == (GRANDPARENT,)


def test_who_sends_bad_bytes_is_left_and_as_a_parent_dialled_again_ever_more_seldom() -> None:
    story = Story(Plan((PARENT,), (GRANDPARENT, SEEDER)))
    effects = story.step(machine.on_banned(story.state, PARENT.address, now_s=story.now_s))
    assert ParentLost(PARENT, GRANDPARENT, NodeReason.HASH_FAILED) in effects
    assert story.state.reason is NodeReason.HASH_FAILED
    effects = story.fed_by(GRANDPARENT, for_s=20)
    assert effects.count(Ask((PARENT,))) == 3
    # A fallback that did so has had its turn.
    story.step(machine.on_banned(story.state, GRANDPARENT.address, now_s=story.now_s))
    assert story.state.current == (SEEDER,)


def test_a_new_plan_leaves_the_old_parents_once_the_new_ones_deliver() -> None:
    story = Story()
    story.fed_by(PARENT)
    plan = Plan((OTHER,), (FRIEND,))
    effects = story.step(machine.on_plan(story.state, plan, now_s=story.now_s, deadline_s=None))
    assert effects == (Ask((OTHER,)),)
    assert not story.fed_by(PARENT, for_s=0.9)
    assert Leave((PARENT,)) in story.fed_by(OTHER, PARENT, for_s=1.1)
    assert story.state.asked == (OTHER,)
    # Who was in the old plan is not forgotten: with no plan that works, all are asked.
    assert PARENT in story.state.known


def test_a_plan_that_says_nothing_new_changes_nothing() -> None:
    story = Story()
    story.fed_by(PARENT)
    state = story.state
    assert machine.on_plan(state, PLAN, now_s=200, deadline_s=7) == (
        replace(state, deadline_s=7),
        (),
    )


def test_each_stripe_has_its_own_parent_and_the_other_ones_last() -> None:
    plan = Plan((PARENT, OTHER), (SEEDER,), (FRIEND,), stripes=2)
    assert plan.of_stripe(1) == Plan((OTHER,), (SEEDER,), (FRIEND, PARENT))
    assert Plan((PARENT,), stripes=2).of_stripe(1) == Plan((PARENT,))


def test_only_a_deadline_ends_a_pull() -> None:
    state, _ = machine.start(PLAN, now_s=0, deadline_s=1000)
    for second in range(1, 1000, 7):
        state, effects = machine.on_tick(state, now_s=float(second))
        assert not any(isinstance(effect, GiveUp) for effect in effects)
    _, effects = machine.on_tick(state, now_s=1000)
    assert [e.reason for e in effects if isinstance(e, GiveUp)] == [NodeReason.DEADLINE]


PEERS = [PARENT, GRANDPARENT, SEEDER, FRIEND, OTHER]
PLANS = [PLAN, Plan((OTHER,)), Plan((), (FRIEND,)), Plan((SEEDER, PARENT), (OTHER,))]


@given(
    st.lists(
        st.tuples(
            st.sampled_from("ptdbsrn"),
            st.floats(0.01, 40),
            st.sampled_from(PEERS),
            st.sampled_from(Answer),
        ),
        max_size=80,
    )
)
def test_whatever_happens_somebody_of_the_plan_is_asked(
    steps: list[tuple[str, float, Peer, Answer]],
) -> None:
    now_s, received, dialled = 0.0, 0, set()
    state, effects = machine.start(PLAN, now_s=now_s)
    for kind, gap_s, peer, answer in [("t", 0.1, PARENT, Answer.TAKES), *steps]:
        dialled |= {p for e in effects if isinstance(e, Ask) for p in e.peers}
        dialled -= {p for e in effects if isinstance(e, Leave) for p in e.peers}
        # Nobody stays connected who may not be; the lost are dialled again in time.
        assert dialled <= {*state.asked, *state.leaving}
        assert state.current
        assert {*state.current} <= {*state.asked} <= {*state.known, *state.plan.parents}
        assert STALL_MIN_S <= state.patience_s <= STALL_MAX_S
        assert not any(isinstance(effect, GiveUp) for effect in effects)
        now_s += gap_s
        received += 1000
        match kind:
            case "p":
                state, effects = machine.on_piece(state, now_s=now_s)
            case "t":
                state, effects = machine.on_tick(state, now_s=now_s)
            case "d":
                state, effects = machine.on_peer_down(state, peer.address, now_s=now_s)
            case "b":
                state, effects = machine.on_banned(state, peer.address, now_s=now_s)
            case "s":
                samples = [_sample(peer, received)]
                state, effects = machine.on_sample(state, samples, now_s=now_s)
            case "r":
                state, effects = machine.on_probe(state, peer, answer, now_s=now_s)
            case _:
                plan = PLANS[int(gap_s) % len(PLANS)]
                state, effects = machine.on_plan(state, plan, now_s=now_s, deadline_s=None)


def test_whoever_comes_last_is_found_when_all_others_are_gone() -> None:
    """No order comes any more, and everybody named dies but one: that one is asked."""
    story = Story()
    story.fed_by(PARENT)
    for peer in (PARENT, GRANDPARENT, SEEDER):
        story.down(peer, Answer.REFUSES)
    story.fed_by(FRIEND, for_s=5)
    assert FRIEND in story.state.current
    story.done.clear()
    story.silence(8.0, Answer.REFUSES)
    assert any(FRIEND in e.peers for e in story.done if isinstance(e, Ask))


def test_who_is_moved_below_a_node_that_has_less_leaves_who_fed_it() -> None:
    story = Story()
    story.fed_by(PARENT)
    story.step(machine.on_plan(story.state, Plan((OTHER,)), now_s=story.now_s, deadline_s=None))
    assert Leave((PARENT,)) not in story.fed_by(PARENT, for_s=0.8)
    left: tuple[Effect, ...] = ()
    while Leave((PARENT,)) not in left:
        story.now_s += 0.5
        assert story.now_s < 105.0
        story.received[PARENT] += 1000
        samples = [
            _sample(PARENT, story.received[PARENT]),
            _sample(OTHER, 0, interesting=False),
        ]
        left = story.step(machine.on_sample(story.state, samples, now_s=story.now_s))
    assert story.state.asked == (OTHER,)
