"""Who goes before whom, and how long a failure waits: decided without clock or database."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta

from hypothesis import given
from hypothesis import strategies as st

from distrib.events.backoff import JITTER, Backoff
from distrib.events.order import Waiting, next_of

NOW = datetime(2026, 3, 1, 12, tzinfo=UTC)
LATER = NOW + timedelta(minutes=5)
HOUR = timedelta(hours=1)


def waiting(
    event: int, image: str = "", *, run: str = "", type_: str = "x", later: bool = False
) -> Waiting:
    return Waiting(event, type_, image, run or f"run {event}", LATER if later else None)


def test_a_version_waits_for_every_version_of_its_image() -> None:
    queue = [waiting(1, "a@1", later=True), waiting(2, "a@2"), waiting(3, "b@1")]
    assert next_of(queue, NOW, longest=HOUR) == queue[2]
    assert next_of(queue[:2], NOW, longest=HOUR) is None
    assert next_of(queue, LATER, longest=HOUR) == queue[0]


def test_a_run_begins_with_its_prefix_and_ends_with_its_postfix() -> None:
    first = waiting(1, run="r", type_="ProcessPrefix", later=True)
    within, other = waiting(2, "a@1", run="r"), waiting(3, "b@1", run="s")
    assert next_of([first, within, other], NOW, longest=HOUR) == other
    late, last = waiting(2, "a@1", run="r", later=True), waiting(4, run="r", type_="ProcessPostfix")
    assert next_of([late, last], NOW, longest=HOUR) is None
    assert next_of([last], NOW, longest=HOUR) == last


def test_a_time_from_a_clock_that_was_ahead_holds_nothing_up() -> None:
    far = Waiting(1, "x", "a@1", "r", NOW + timedelta(days=400))
    assert next_of([far], NOW, longest=HOUR) == far


@given(
    first=st.floats(0.01, 100),
    longest=st.floats(0.01, 10_000),
    give_up=st.floats(0, 1e6),
    failures=st.integers(1, 3000),
    dice=st.floats(0, 1, exclude_max=True),
)
def test_waits_double_up_to_the_longest_and_their_sum_ends_them(
    first: float, longest: float, give_up: float, failures: int, dice: float
) -> None:
    backoff = Backoff(first, longest, give_up)
    wait = backoff.wait_s(failures)
    assert first <= wait <= max(first, longest)
    assert abs(backoff.jittered_s(failures, dice) - wait) <= JITTER * wait * 1.001
    waited = sum(backoff.wait_s(one) for one in range(1, failures))
    if abs(waited - give_up) > 1e-6 * max(waited, 1):
        assert backoff.is_over(failures) == (waited >= give_up)


def test_three_days_are_about_eighty_tries() -> None:
    backoff = Backoff(10, 3600, 3 * 86400)
    assert [backoff.is_over(failures) for failures in (1, 80, 81)] == [False, False, True]
