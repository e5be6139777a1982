"""Which pieces are copied from where, and when copying pays: pure."""

from __future__ import annotations

import random

import pytest

from agent.pull.copying import STEP_BYTES, DiskRate
from agent.pull.delta import Base, Rates, Run, delta_s, is_worth_it, match, plain_s

GB = 10**9


def test_the_same_place_first_then_any_place_in_long_runs() -> None:
    old = Base("old", [b"a", b"b", b"c", b"b", b"d"])
    assert match([b"a", b"b", b"x", b"b", b"d"], range(5), [old]) == (
        Run("old", 0, 0, 2),
        Run("old", 3, 3, 2),
    )
    assert match([b"y", b"a", b"b", b"c"], range(4), [old]) == (Run("old", 0, 1, 3),)


def test_what_is_there_is_not_copied_and_later_bases_fill_the_gaps() -> None:
    bases = [Base("newer", [b"a", b"b"]), Base("older", [b"q", b"c"])]
    assert match([b"a", b"b", b"c"], [1, 2], bases) == (
        Run("newer", 1, 1, 1),
        Run("older", 1, 2, 1),
    )
    assert match([b"a"], [], bases) == ()
    assert match([b"z"], [0], bases) == ()


@pytest.mark.parametrize("seed", range(20))
def test_every_piece_that_is_found_is_copied_once_and_is_the_right_one(seed: int) -> None:
    chance = random.Random(seed)
    alphabet = [bytes([letter]) for letter in range(12)]
    bases = [Base(str(n), chance.choices(alphabet[:8], k=30)) for n in range(3)]
    wanted = chance.choices(alphabet, k=40)
    missing = sorted(chance.sample(range(40), 30))
    runs = match(wanted, missing, bases)
    hashes = {base.infohash: base.hashes for base in bases}
    copied = [
        (run.piece + i, hashes[run.base][run.base_piece + i])
        for run in runs
        for i in range(run.count)
    ]
    known = {one for base in bases for one in base.hashes}
    assert [piece for piece, _ in copied] == [i for i in missing if wanted[i] in known]
    assert all(wanted[piece] == found for piece, found in copied)


def test_a_large_image_is_copied_over_a_slow_link_and_fetched_over_a_fast_one() -> None:
    gigabit = Rates(link_bps=125e6, disk_bps=200e6)
    assert is_worth_it(10 * GB, 10 * GB, 9 * GB, gigabit, shares_blocks=False)
    ten_gigabit = Rates(link_bps=1250e6, disk_bps=200e6)
    assert not is_worth_it(10 * GB, 10 * GB, 9 * GB, ten_gigabit, shares_blocks=False)
    assert is_worth_it(10 * GB, 10 * GB, 9 * GB, ten_gigabit, shares_blocks=True)


def test_nothing_to_copy_is_never_worth_it() -> None:
    assert not is_worth_it(GB, GB, 0, Rates(1e6, 1e9), shares_blocks=True)


def test_the_digest_and_the_disk_bound_both_ways() -> None:
    rates = Rates(link_bps=100e6, disk_bps=400e6, hash_bps=500e6)
    assert plain_s(GB, GB, rates) == pytest.approx(10)
    assert delta_s(GB, GB, GB, rates, shares_blocks=False) == pytest.approx(2.5)
    assert delta_s(GB, GB, GB, rates, shares_blocks=True) == pytest.approx(2)
    assert delta_s(GB, GB, GB // 2, rates, shares_blocks=False) == pytest.approx(5)


def test_a_disk_is_believed_at_first_and_measured_then() -> None:
    disk = DiskRate(200e6)
    disk.note(1000, 10)
    assert disk.bps == 200e6, "too little to say anything"
    disk.note(STEP_BYTES, 1)
    assert disk.bps == STEP_BYTES
    disk.note(3 * STEP_BYTES, 1)
    assert disk.bps == 2 * STEP_BYTES
