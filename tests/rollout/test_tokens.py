"""Leave to fetch otherwise than by the swarm: the budget of a farm that has lost its swarm."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta

from distrib.rollout.tokens import BURST_S, FORGET, Asked, Bucket, Queue

NOW = datetime(2026, 3, 1, tzinfo=UTC)
MIB = 1 << 20


def asked(node: int, *, costs: bool = True, at: datetime = NOW, pieces: int = 100) -> Asked:
    return Asked(f"wn{node}", "0" * 64, pieces, MIB, costs, at)


def test_a_thousand_nodes_at_once_bring_upon_the_seeders_what_is_set_and_no_more() -> None:
    rate_bps = 50 * MIB
    queue = Queue(Bucket(rate_bps))
    for number in range(1000):
        queue = queue.with_asked(asked(number))
    given_bytes, served, now = 0, [], NOW
    for second in range(20):
        now = NOW + timedelta(seconds=second)
        queue, granted = queue.served(now)
        given_bytes += sum(one.pieces * one.asked.piece_bytes for one in granted)
        served += [one.asked.node for one in granted]
    # One grant may overdraw the bucket.
    assert rate_bps * 19 <= given_bytes <= rate_bps * (19 + BURST_S) + 100 * MIB
    assert served == [f"wn{number}" for number in range(len(served))]


def test_who_asks_other_nodes_costs_nothing_and_waits_for_nobody() -> None:
    queue = Queue(Bucket(1))
    for number in range(3):
        queue = queue.with_asked(asked(number))
    queue, first = queue.served(NOW)
    assert [one.asked.node for one in first] == ["wn0"]
    queue = queue.with_asked(asked(9, costs=False))
    queue, second = queue.served(NOW)
    assert [(one.asked.node, one.pieces) for one in second] == [("wn9", 100)]
    assert [one.node for one in queue.waiting] == ["wn1", "wn2"]


def test_a_repeated_wish_keeps_its_place_and_one_that_is_not_repeated_is_forgotten() -> None:
    queue = Queue(Bucket(1))
    queue, _ = queue.with_asked(asked(0)).served(NOW)
    later = NOW + FORGET + timedelta(seconds=1)
    queue = queue.with_asked(asked(1)).with_asked(asked(2)).with_asked(asked(1, at=later))
    assert [one.node for one in queue.waiting] == ["wn1", "wn2"]
    queue, _ = queue.served(later)
    assert [one.node for one in queue.waiting] == ["wn1"]
