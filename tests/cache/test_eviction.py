"""The eviction policy, whatever the cache holds."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta

from hypothesis import given
from hypothesis import strategies as st

from agent.cache.eviction import Candidate, Choice, choose_relief, choose_victims, order

START = datetime(2026, 3, 1, tzinfo=UTC)
FLAGS = ("leased", "pulling", "pinned", "active", "desired")


def candidate(n: int, room_bytes: int = 10, *, hours: int = 0, **flags: bool) -> Candidate:
    return Candidate(f"{n:064x}", room_bytes, START + timedelta(hours=hours), **flags)


@st.composite
def caches(draw: st.DrawFn) -> tuple[list[Candidate], int, int, int, float]:
    """Candidates, need, used, capacity, watermark; others may use room besides the candidates."""
    shapes = st.tuples(
        st.integers(1, 100),
        st.integers(0, 50),
        st.booleans(),
        st.one_of(st.none(), st.sampled_from(FLAGS)),
    )
    candidates = [
        candidate(n, size, hours=hours, unusable=unusable, **({flag: True} if flag else {}))
        for n, (size, hours, unusable, flag) in enumerate(draw(st.lists(shapes, max_size=12)))
    ]
    used = sum(one.room_bytes for one in candidates) + draw(st.integers(0, 100))
    return (
        candidates,
        draw(st.integers(0, 300)),
        used,
        draw(st.integers(0, 1500)),
        draw(st.floats(0, 1)),
    )


@given(caches())
def test_what_is_in_use_or_wanted_is_never_chosen(
    cache: tuple[list[Candidate], int, int, int, float],
) -> None:
    for victim in choose_victims(*cache).victims:
        assert not any(getattr(victim, flag) for flag in FLAGS)


@given(caches())
def test_it_is_enough_or_nothing_goes(
    cache: tuple[list[Candidate], int, int, int, float],
) -> None:
    candidates, need, used, capacity, _ = cache
    choice = choose_victims(*cache)
    freed = sum(one.room_bytes for one in choice.victims)
    possible = sum(one.room_bytes for one in order(candidates))
    if used - possible + need > capacity:
        assert choice.victims == ()
        assert choice.missing_bytes == used - possible + need - capacity
        assert choice.why_not
    else:
        assert used - freed + need <= capacity
        assert (choice.missing_bytes, choice.why_not) == (0, "")


@given(caches())
def test_nothing_goes_while_there_is_room(
    cache: tuple[list[Candidate], int, int, int, float],
) -> None:
    _, need, used, capacity, _ = cache
    if used + need <= capacity:
        assert choose_victims(*cache) == Choice()


@given(caches())
def test_it_goes_down_to_the_low_watermark_and_no_further(
    cache: tuple[list[Candidate], int, int, int, float],
) -> None:
    candidates, need, used, capacity, watermark = cache
    victims = choose_victims(*cache).victims
    if not victims:
        return
    goal = min(capacity - need, int(capacity * watermark))
    without_last = used - sum(one.room_bytes for one in victims[:-1])
    assert without_last > goal, "the last one was needed"
    if len(victims) < len(order(candidates)):
        assert without_last - victims[-1].room_bytes <= goal


@given(caches())
def test_the_order_is_kept(cache: tuple[list[Candidate], int, int, int, float]) -> None:
    victims = choose_victims(*cache).victims
    assert victims == order(cache[0])[: len(victims)]


def test_failed_ones_go_first_then_the_least_recently_leased() -> None:
    old, new, failed = (
        candidate(1, hours=1),
        candidate(2, hours=9),
        candidate(3, hours=10, unusable=True),
    )
    assert order([new, failed, old]) == (failed, old, new)


def test_why_it_is_not_enough_is_said_in_a_line() -> None:
    kept = [candidate(1, leased=True), candidate(2, pinned=True), candidate(3, pinned=True)]
    choice = choose_victims(kept, 50, 30, 60, 0.8)
    assert choice.missing_bytes == 20
    assert choice.why_not == "leased: 1 (10 bytes), pinned: 2 (20 bytes)"


def test_above_the_high_watermark_it_goes_down_to_the_low_one_and_below_it_nothing_goes() -> None:
    there = [candidate(n, 20, hours=n) for n in range(1, 5)]
    assert choose_relief(there, 80, 100, 0.5, 0.8) == ()
    assert choose_relief(there, 81, 100, 0.5, 0.8) == (there[0], there[1])


def test_relief_takes_what_it_can_where_that_is_not_enough() -> None:
    there = [candidate(1, 20), candidate(2, 70, leased=True)]
    assert choose_relief(there, 90, 100, 0.5, 0.8) == (there[0],)
