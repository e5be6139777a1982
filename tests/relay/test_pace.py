"""Who is slower than its place is found from what nodes report, and only after some seconds."""

from __future__ import annotations

from dataclasses import replace

from hypothesis import given
from hypothesis import strategies as st

from distrib.swarm.relay_pace import FAR_HOLD_S, HOLD_S, Meter, Pace, Pull, judge


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
        aged = {name: _aged(pull, second * every_s) for name, pull in now.items()}
        pace, guilty = judge(pace, aged, now_s=second * every_s)
        found.append(guilty)
    return found


def test_the_slow_node_is_named_and_not_those_behind_it() -> None:
    found = watch(*[chain(100, 100, 25, 25, 25)] * 8)
    assert found[:6] == [frozenset()] * 6
    assert found[6] == {"n2"}


def _aged(pull: Pull, seconds: float) -> Pull:
    return pull if pull.metered_at_s is None else replace(pull, metered_at_s=seconds)


def fresh(pulls: dict[str, Pull], *, but: str = "", at_s: float = 0.0) -> dict[str, Pull]:
    """The same, by what was received between two new reports."""
    return {
        name: replace(pull, metered_at_s=None if name == but else at_s)
        for name, pull in pulls.items()
    }


def test_who_is_far_slower_by_two_reports_is_named() -> None:
    found = watch(*[fresh(chain(100, 100, 25, 25, 25))] * 2)
    assert found == [frozenset(), {"n2"}]
    # A half is not far less: that may be a report that is a second older than the other's.
    assert not any(watch(*[fresh(chain(100, 100, 50, 50))] * 5))


def test_the_same_report_looked_at_again_is_no_second_one() -> None:
    pace, pulls = Pace(), fresh(chain(100, 100, 25), at_s=70.0)
    for turn in range(8):
        pace, guilty = judge(pace, pulls, now_s=turn * 0.25)
        assert not guilty
    assert judge(pace, fresh(pulls, at_s=71.0), now_s=2.0)[1] == {"n2"}


def test_below_a_parent_that_has_gone_silent_nobody_is_named_so_soon() -> None:
    assert not any(watch(*[fresh(chain(100, 100, 0, 0), but="n1")] * 5))


def test_a_meter_says_what_came_between_two_reports() -> None:
    meter = Meter(1000, 10.0, 50.0)
    assert meter.read(1000, 10.0, now_s=51.0) is meter
    assert meter.read(1500, 10.3, now_s=51.0) is meter
    after = meter.read(3000, 12.0, now_s=52.0)
    assert (after.rate_bps, after.heard_s) == (1000, 52.0)
    # Begun anew, or the node's clock was set back: no rate.
    assert after.read(500, 13.0, now_s=53.0).rate_bps is None
    assert after.read(4000, 3.0, now_s=53.0).rate_bps is None


def test_a_slow_node_at_the_end_does_not_hide_another() -> None:
    pace, named = Pace(), frozenset[str]()
    for turn in range(40):
        now_s = turn * 0.25
        # n2 gets half; n5, the last, next to nothing, and says so twice a second.
        pulls = fresh(chain(100, 100, 50, 50, 50, 5), at_s=now_s // 0.5 * 0.5)
        pace, guilty = judge(pace, pulls, now_s=now_s, movable=lambda name: name != "n5")
        named |= guilty
    assert named == {"n2"}


def test_a_pause_of_seconds_is_none() -> None:
    slow, well = chain(100, 100, 25, 25), chain(100, 100, 100, 100)
    assert not any(watch(*[slow] * 5, well, *[slow] * 5))


def test_whose_peers_change_all_the_while_is_neither_judged_nor_acquitted() -> None:
    slow = chain(100, 100, 25, 25)
    settling = slow | {"n2": replace(slow["n2"], settling=True)}
    assert not any(watch(slow, *[settling] * 8))
    assert watch(slow, *[settling] * 8, slow)[9] == {"n2"}


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


@given(st.lists(st.integers(0, 1000), max_size=12), st.floats(0.1, 4.0), st.booleans())
def test_nobody_is_named_before_the_time_and_nobody_unknown(
    rates: list[int], every_s: float, new: bool
) -> None:
    pace = Pace()
    for turn in range(8):
        now_s = turn * every_s
        pulls = fresh(chain(*rates), at_s=now_s) if new else chain(*rates)
        pace, guilty = judge(pace, pulls, now_s=now_s)
        assert guilty <= pulls.keys()
        if now_s < (FAR_HOLD_S if new else HOLD_S):
            assert not guilty
