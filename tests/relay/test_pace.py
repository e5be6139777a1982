"""Who is slower than its place is found from what nodes report, and only after some seconds."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from distrib.swarm.relay_pace import HOLD_S, Pace, Pull, judge


def chain(*rates_bps: int, progress: float = 0.4) -> dict[str, Pull]:
    """n0 is fed by the seeder, every other one by the one before it."""
    return {
        f"n{i}": Pull(rate, progress, (f"n{i - 1}" if i else "seeder",))
        for i, rate in enumerate(rates_bps)
    }


def watch(*pulls: dict[str, Pull], every_s: float = 1.0) -> list[frozenset[str]]:
    """Who is at fault after each second."""
    pace, found = Pace(), []
    for second, now in enumerate(pulls):
        pace, guilty = judge(pace, now, now_s=second * every_s)
        found.append(guilty)
    return found


def test_the_slow_node_is_named_and_not_those_behind_it() -> None:
    found = watch(*[chain(100, 100, 25, 25, 25)] * 8)
    assert found[:6] == [frozenset()] * 6
    assert found[6] == {"n2"}


def test_a_pause_of_seconds_is_none() -> None:
    slow, well = chain(100, 100, 25, 25), chain(100, 100, 100, 100)
    assert not any(watch(*[slow] * 5, well, *[slow] * 5))


def test_who_gets_a_little_better_is_not_acquitted() -> None:
    assert watch(*[chain(100, 55)] * 4, *[chain(100, 70)] * 3)[6] == {"n1"}
    assert not any(watch(*[chain(100, 70)] * 20))


def test_who_is_slow_right_below_the_seeder_is_measured_against_the_others() -> None:
    below = {"a": 25, "b": 100, "c": 100}
    pulls = {name: Pull(rate, 0.4, ("seeder",)) for name, rate in below.items()}
    assert watch(*[pulls] * 7)[6] == {"a"}


def test_a_parent_all_of_whose_children_are_slow_is_at_fault() -> None:
    pulls = {
        "p": Pull(100, 0.4, ("seeder",)),
        "a": Pull(30, 0.4, ("p",)),
        "b": Pull(30, 0.4, ("p",)),
        "c": Pull(100, 0.4, ("seeder",)),
    }
    assert watch(*[pulls] * 7)[6] == {"p"}


def test_a_parent_is_at_fault_when_one_child_after_another_is_slow() -> None:
    pace = Pace()
    first, second = chain(100, 100, 25), chain(100, 100)
    second["n3"] = Pull(25, 0.4, ("n1",))
    named = []
    for now_s in range(16):
        pace, guilty = judge(pace, first if now_s < 8 else second, now_s=float(now_s))
        named += [guilty] if guilty else []
    assert named == [{"n2"}, {"n1"}]


def test_the_end_of_a_pull_is_left_alone() -> None:
    assert not any(watch(*[chain(100, 10, progress=0.99)] * 12))


@given(st.lists(st.integers(0, 1000), max_size=12), st.floats(0.1, 4.0))
def test_nobody_is_named_before_the_time_and_nobody_unknown(
    rates: list[int], every_s: float
) -> None:
    pulls = chain(*rates)
    pace, began_s = Pace(), 0.0
    for turn in range(8):
        pace, guilty = judge(pace, pulls, now_s=began_s + turn * every_s)
        assert guilty <= pulls.keys()
        if turn * every_s < HOLD_S:
            assert not guilty
