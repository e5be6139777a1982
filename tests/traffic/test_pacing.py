"""Caps are kept over seconds, and the background makes way: simulated, and as properties."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable

from hypothesis import given
from hypothesis import strategies as st

from distrib.swarm.pacing import (
    FLOOR_SHARE,
    LINK_SHARE,
    OLD_QUOTA_S,
    Background,
    Budget,
    react,
    spend,
)

LINK = 6_250_000
STEP_S = 0.1


def windows(rates: list[float], seconds: float) -> list[float]:
    """Means over all windows of so many seconds."""
    n = int(seconds / STEP_S)
    return [sum(rates[i : i + n]) / n for i in range(len(rates) - n + 1)]


def moved_within(cap: int, want: Callable[[int], dict[str, float]], steps: int) -> list[float]:
    """What moves by a limiter that lets through half a second of its limit that was not used."""
    budget = Budget(cap, limits=dict.fromkeys(want(0), cap // len(want(0))))
    unused = dict.fromkeys(want(0), 0.0)
    total = []
    for step in range(steps):
        moved = {}
        for one, wanted in want(step).items():
            limit = budget.limits[one]
            unused[one] = min(unused[one] + limit * STEP_S, limit * (STEP_S + 0.5))
            moved[one] = min(wanted * STEP_S, unused[one])
            unused[one] -= moved[one]
        budget = spend(budget, moved, STEP_S)
        total.append(sum(moved.values()) / STEP_S)
    return total


def test_one_cap_is_shared_by_who_can_use_it_and_kept() -> None:
    def want(step: int) -> dict[str, float]:
        # Two stripes and an idle session; one stripe ends, the other takes its part.
        return {"s0": 9e9, "s1": 9e9 if step < 200 else 0.0, "idle": 0.0}

    rates = moved_within(LINK, want, 400)
    assert max(windows(rates, 10)) <= 1.05 * LINK
    assert min(windows(rates[20:180], 10)) >= 0.95 * LINK
    assert min(windows(rates[240:], 10)) >= 0.95 * LINK


def test_what_was_idle_does_not_burst() -> None:
    rates = moved_within(LINK, lambda step: {"s": 9e9 if step > 300 else 0.0}, 450)
    assert max(windows(rates, 10)) <= 1.05 * LINK


def moved_after_none(cap: int, unlimited_s: float, budget: Budget) -> list[float]:
    """What moves where a connection goes on for so long at the link's rate as if without limit."""
    total = []
    for step in range(300):
        limit = LINK if step * STEP_S < unlimited_s else budget.limits["s"]
        budget = spend(budget, {"s": limit * STEP_S}, STEP_S)
        total.append(float(limit))
    return total


def test_a_cap_that_begins_is_kept_once_what_was_given_before_is_used() -> None:
    cap = LINK // 10
    begun = Budget(cap, limits={"s": cap}, forgiven_s=OLD_QUOTA_S)
    rates = moved_after_none(cap, 2.5, begun)
    after = windows(rates[26:], 10)
    assert 0.95 * cap <= min(after)
    assert max(after) <= 1.05 * cap


def test_a_cap_that_falls_is_forgiven_what_was_given_before_and_one_that_rises_is_not() -> None:
    capped = Budget(LINK, limits={"s": LINK})
    assert capped.at(LINK // 2).forgiven_s == OLD_QUOTA_S
    assert capped.at(2 * LINK).forgiven_s == 0
    rates = moved_after_none(LINK // 10, 2.5, capped.at(LINK // 10))
    assert min(windows(rates[26:], 10)) >= 0.95 * LINK / 10


@given(
    cap=st.integers(100_000, 1_250_000_000),
    moves=st.lists(st.lists(st.floats(0, 3), min_size=3, max_size=3), min_size=1, max_size=40),
)
def test_no_more_than_the_cap_is_handed_out(cap: int, moves: list[list[float]]) -> None:
    budget = Budget(cap)
    for shares in moves:
        moved = {str(one): share * cap * STEP_S for one, share in enumerate(shares)}
        budget = spend(budget, moved, STEP_S)
        assert sum(budget.limits.values()) <= 1.11 * cap
        assert all(limit > 0 for limit in budget.limits.values())


def beside(job: Callable[[float], float], seconds: float) -> tuple[list[float], list[float]]:
    """Our rates and the job's on one link; a job that wants all of it gets what we leave.

    Our rate is used 0.2 s after it was said, as libtorrent and the sockets need it."""
    state, ours_then = Background.begin(LINK), deque([0.0, 0.0])
    ours, jobs = [], []
    for step in range(int(seconds / STEP_S)):
        ours_then.append(state.rate_bps)
        wanted = job(step * STEP_S)
        mine = ours_then.popleft()
        # On a full link TCP shares by what each has in flight: here half and half.
        given_job = min(wanted, max(LINK - mine, LINK / 2))
        mine = min(mine, LINK - given_job)
        state = react(state, total_bps=mine + given_job, ours_bps=mine, elapsed_s=STEP_S)
        ours.append(mine)
        jobs.append(given_job)
    return ours, jobs


def test_a_job_that_takes_the_link_gets_it_within_a_second() -> None:
    ours, jobs = beside(lambda at: LINK if at >= 15 else 0, 30)
    assert ours[140] > 0.85 * LINK
    assert min(jobs[160:]) >= 0.95 * LINK
    assert sum(jobs[150:]) / 150 >= 0.9 * LINK
    assert min(ours[160:]) >= 0.9 * FLOOR_SHARE * LINK


def test_alone_on_the_link_it_has_its_share_within_three_seconds() -> None:
    ours, _ = beside(lambda _at: 0, 10)
    assert min(ours[30:]) >= 0.85 * LINK


def test_a_job_that_comes_and_goes_keeps_most_of_what_it_wants() -> None:
    def on_and_off(at: float) -> float:
        return LINK if at % 6 < 3 else 0

    _, jobs = beside(on_and_off, 60)
    wanted = sum(on_and_off(step * STEP_S) for step in range(600))
    assert sum(jobs) >= 0.8 * wanted


def test_beside_a_job_that_wants_a_part_the_rest_is_used() -> None:
    ours, jobs = beside(lambda at: 0.4 * LINK if at >= 5 else 0, 40)
    assert min(jobs[60:]) >= 0.4 * LINK - 1
    assert 0.45 * LINK <= sum(ours[200:]) / len(ours[200:]) <= 0.51 * LINK
    both = [mine + theirs for mine, theirs in zip(ours, jobs, strict=True)]
    assert max(both[80:]) <= LINK_SHARE * LINK * 1.01


def test_once_the_job_has_ended_the_link_is_ours_again() -> None:
    ours, _ = beside(lambda at: LINK if at < 10 else 0, 30)
    assert ours[95] < 0.05 * LINK
    assert ours[-1] > 0.85 * LINK


@given(
    st.lists(
        st.tuples(st.floats(0, 2), st.floats(0, 2), st.floats(0.01, 2)), min_size=1, max_size=60
    )
)
def test_the_background_stays_between_its_floor_and_its_share(
    seen: list[tuple[float, float, float]],
) -> None:
    state = Background.begin(LINK)
    for total, ours, elapsed_s in seen:
        state = react(state, total_bps=total * LINK, ours_bps=ours * LINK, elapsed_s=elapsed_s)
        assert FLOOR_SHARE * LINK <= state.rate_bps <= LINK_SHARE * LINK
        room = LINK_SHARE * LINK - state.others_bps
        assert state.rate_bps <= max(room, FLOOR_SHARE * LINK) + 1
