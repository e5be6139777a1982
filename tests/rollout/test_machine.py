"""The state of a rollout, from what nodes say and do not say."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta

from hypothesis import given
from hypothesis import strategies as st

from distrib.rollout.machine import (
    DEFAULT_SILENT_S,
    NO_REPORT,
    Bucket,
    Claim,
    ImageKey,
    Phase,
    Rollout,
    aborted,
    advanced,
    begin,
    issued,
    joined,
    left,
    listening,
    reported,
    seen,
)

START = datetime(2026, 3, 1, 12, tzinfo=UTC)
IMAGE = ImageKey("7cb7a2d5-0f0e-4f43-9a11-3a9f5e0f6c11", "1.0.0", "ab" * 32)
SIZE = 1000


def after(seconds: float) -> datetime:
    return START + timedelta(seconds=seconds)


def rollout(online: str = "wn001 wn002", offline: str = "", **changes: object) -> Rollout:
    begun = begin(
        rollout="r-1",
        image=IMAGE,
        size_bytes=SIZE,
        online=online.split(),
        offline=offline.split(),
        now=START,
        **changes,  # type: ignore[arg-type]
    )
    for node in online.split():
        begun = issued(begun, node, 7, START)
    return begun


def says(
    rollout: Rollout, node: str, state: str, *, generation: int = 7, done: int = 0, at: float = 1
) -> Rollout:
    claim = Claim(state, after(at), bytes_done=done, bytes_total=SIZE, rate_bps=10)
    changed = reported(rollout, node, generation=generation, claim=claim, now=after(at))
    return advanced(changed, after(at))


def test_a_rollout_is_done_when_every_online_target_is_ready() -> None:
    running = rollout("wn001 wn002", offline="wn003")
    running = says(running, "wn001", "pulling", done=400)
    assert running.summary().pulling == 1
    assert running.summary().rate_bps == 10
    running = says(running, "wn001", "ready", done=SIZE)
    assert running.phase is Phase.RUNNING
    done = says(running, "wn002", "leased", done=SIZE, at=9)
    assert (done.phase, done.ended_at) == (Phase.DONE, after(9))
    assert done.summary().offline == 1
    assert done.summary().bytes_done == 2 * SIZE
    assert done.summary().bytes_total == 3 * SIZE


def test_a_report_from_before_the_order_does_not_count() -> None:
    running = says(rollout("wn001"), "wn001", "ready", generation=6)
    assert running.targets["wn001"].bucket is Bucket.WAITING
    assert says(running, "wn001", "ready", generation=8).phase is Phase.DONE


def test_a_report_without_the_image_is_waiting() -> None:
    heard = reported(rollout("wn001"), "wn001", generation=7, claim=None, now=after(1))
    assert heard.targets["wn001"].bucket is Bucket.WAITING
    late = advanced(heard, after(DEFAULT_SILENT_S))
    assert late.phase is Phase.RUNNING, "it speaks: it may be waiting for the site list"


def waits(rollout: Rollout, node: str, reason: str, at: float) -> Rollout:
    claim = Claim("absent", after(at), reason=reason)
    return advanced(reported(rollout, node, generation=7, claim=claim, now=after(at)), after(at))


def test_a_rollout_whose_nodes_only_wait_fails_after_a_while() -> None:
    running = says(rollout(), "wn001", "ready", done=SIZE)
    running = waits(running, "wn002", "waiting-for-site-list", at=100)
    for at in (150, 200, 250):
        running = waits(running, "wn002", "not-on-site-list", at=at)
        assert running.phase is Phase.RUNNING
    assert advanced(running, after(149 + DEFAULT_SILENT_S)).phase is Phase.RUNNING
    failed = waits(running, "wn002", "not-on-site-list", at=150 + DEFAULT_SILENT_S)
    assert failed.phase is Phase.FAILED
    assert failed.targets["wn002"].reason == "not-on-site-list"


def test_who_waits_while_another_pulls_is_waited_for() -> None:
    running = waits(rollout(), "wn002", "waiting-for-torrent", at=1)
    for at in range(10, 1000, 50):
        running = says(running, "wn001", "pulling", done=at, at=at)
    assert running.phase is Phase.RUNNING
    running = says(running, "wn001", "ready", done=SIZE, at=1000)
    assert advanced(running, after(1001)).phase is Phase.RUNNING, "now it is its turn"
    assert advanced(running, after(1000 + DEFAULT_SILENT_S)).phase is Phase.FAILED


def test_a_failed_node_fails_the_rollout_only_when_nothing_moves() -> None:
    running = says(rollout(), "wn001", "failed")
    assert running.phase is Phase.RUNNING
    running = says(running, "wn002", "verifying")
    assert running.phase is Phase.RUNNING
    assert says(running, "wn002", "ready").phase is Phase.FAILED


def test_a_failed_node_that_tries_again_may_still_be_ready() -> None:
    running = says(rollout(), "wn001", "failed")
    running = says(running, "wn001", "pulling", at=2)
    running = says(running, "wn002", "ready", at=3)
    assert says(running, "wn001", "ready", at=4).phase is Phase.DONE


def test_a_rollout_in_which_nobody_reports_fails() -> None:
    running = advanced(rollout(), after(DEFAULT_SILENT_S - 1))
    assert running.phase is Phase.RUNNING
    failed = advanced(running, after(DEFAULT_SILENT_S))
    assert failed.phase is Phase.FAILED
    assert {target.reason for target in failed.targets.values()} == {NO_REPORT}


def test_a_node_that_falls_silent_while_it_pulls_is_counted_as_failed() -> None:
    running = says(rollout("wn001"), "wn001", "pulling", at=10)
    running = says(running, "wn001", "pulling", at=20)
    assert advanced(running, after(15 + DEFAULT_SILENT_S)).phase is Phase.RUNNING
    assert advanced(running, after(20 + DEFAULT_SILENT_S)).phase is Phase.FAILED


def test_a_rollout_whose_targets_all_go_offline_fails_after_a_while() -> None:
    running = seen(rollout("wn001"), "wn001", online=False, now=after(500))
    assert advanced(running, after(500 + DEFAULT_SILENT_S - 1)).phase is Phase.RUNNING
    assert advanced(running, after(500 + DEFAULT_SILENT_S)).phase is Phase.FAILED


def test_a_node_that_returns_goes_on_and_has_its_time_to_speak() -> None:
    running = says(rollout(), "wn001", "pulling", done=500)
    running = says(running, "wn002", "pulling")
    running = seen(running, "wn001", online=False, now=after(5))
    assert running.targets["wn001"].bucket is Bucket.OFFLINE
    running = seen(running, "wn001", online=True, now=after(900))
    assert running.targets["wn001"].bucket is Bucket.PULLING
    assert running.bytes_done(running.targets["wn001"]) == 500


def test_a_late_joiner_is_warmed_and_an_ended_rollout_does_not_open_again() -> None:
    done = says(says(rollout(), "wn001", "ready"), "wn002", "ready")
    grown = joined(done, "wn003", online=True, now=after(60))
    grown = issued(grown, "wn003", 9, after(60))
    grown = says(grown, "wn003", "pulling", generation=9, done=10, at=61)
    assert grown.phase is Phase.DONE
    assert grown.targets["wn003"].bucket is Bucket.PULLING


def test_an_aborted_rollout_shows_what_was_cancelled_and_stays_so() -> None:
    running = says(rollout("wn001 wn002 wn004", offline="wn003"), "wn001", "pulling", done=5)
    running = says(says(running, "wn002", "ready", done=SIZE), "wn004", "failed")
    ended = aborted(running, after(2))
    assert ended.phase is Phase.ABORTED
    assert [str(row.bucket) for _, row in sorted(ended.targets.items())] == [
        "cancelled",
        "ready",
        "offline",
        "failed",
    ]
    assert (ended.summary().cancelled, ended.summary().rate_bps) == (1, 0)
    back = seen(ended, "wn003", online=True, now=after(3))
    assert back.targets["wn003"].bucket is Bucket.CANCELLED
    assert joined(ended, "wn009", online=True, now=after(3)) is ended
    assert says(ended, "wn001", "ready", at=4) is ended
    assert aborted(ended, after(5)) is ended


def test_a_node_does_not_join_what_has_failed() -> None:
    failed = says(rollout("wn001"), "wn001", "failed")
    assert failed.phase is Phase.FAILED
    assert joined(failed, "wn009", online=True, now=after(3)) is failed


def test_a_forgotten_node_holds_nobody_up() -> None:
    running = says(rollout(), "wn001", "ready")
    assert advanced(left(running, "wn002"), after(2)).phase is Phase.DONE


def test_the_deadline_ends_a_rollout_that_still_moves() -> None:
    running = rollout(deadline=after(60))
    running = says(running, "wn001", "pulling", at=59)
    running = says(running, "wn002", "ready", at=59)
    assert advanced(running, after(61)).phase is Phase.RUNNING, "time for last words"
    assert advanced(running, after(90)).phase is Phase.FAILED


def test_silence_while_we_could_not_listen_is_nobodys_fault() -> None:
    deaf = listening(rollout(), after(1000))
    assert advanced(deaf, after(1001)).phase is Phase.RUNNING
    assert advanced(deaf, after(1000 + DEFAULT_SILENT_S)).phase is Phase.FAILED


def test_a_claim_of_more_than_the_image_is_cut() -> None:
    running = says(rollout("wn001"), "wn001", "pulling", done=10**15)
    assert running.summary().bytes_done == SIZE


NODES = ("wn001", "wn002", "wn003")
steps = st.one_of(
    st.tuples(
        st.just("report"),
        st.sampled_from(NODES),
        st.integers(5, 9),
        st.sampled_from(
            ["absent", "reserved", "pulling", "verifying", "ready", "leased", "failed", "blocked"]
        ),
    ),
    st.tuples(st.just("seen"), st.sampled_from(NODES), st.booleans(), st.none()),
    st.tuples(st.just("issued"), st.sampled_from(NODES), st.integers(5, 9), st.none()),
    st.tuples(st.just("left"), st.sampled_from(NODES), st.none(), st.none()),
    st.tuples(st.just("joined"), st.sampled_from(NODES), st.booleans(), st.none()),
    st.tuples(st.just("tick"), st.integers(1, 200), st.none(), st.none()),
    st.tuples(st.just("listening"), st.none(), st.none(), st.none()),
    st.tuples(st.just("abort"), st.none(), st.none(), st.none()),
)


@given(st.lists(steps, max_size=40))
def test_whatever_happens_the_invariants_hold(script: list[tuple[object, ...]]) -> None:
    state, now = rollout("wn001 wn002", offline="wn003"), 0.0
    for kind, one, two, three in script:
        before, now = state, now + 1
        match kind:
            case "report":
                state = says(state, str(one), str(three), generation=int(str(two)), at=now)
            case "seen":
                state = seen(state, str(one), online=bool(two), now=after(now))
            case "issued":
                state = issued(state, str(one), int(str(two)), after(now))
            case "left":
                state = left(state, str(one))
            case "joined":
                state = joined(state, str(one), online=bool(two), now=after(now))
            case "tick":
                now += int(str(one))
            case "listening":
                state = listening(state, after(now))
            case "abort":
                state = aborted(state, after(now))
        state = advanced(state, after(now))
        counts = state.summary()
        assert (
            counts.targets
            == len(state.targets)
            == sum((counts.ready, counts.pulling, counts.verifying))
            + sum((counts.waiting, counts.failed, counts.cancelled, counts.offline))
        )
        assert 0 <= counts.bytes_done <= counts.bytes_total
        assert (state.ended_at is None) == (state.phase is Phase.RUNNING)
        if not before.is_running:
            assert (state.phase, state.ended_at) == (before.phase, before.ended_at)
        elif state.phase is Phase.DONE:
            assert counts.ready > 0
            assert counts.ready + counts.offline == counts.targets
