"""Mutated inputs: each ends without a crash, a hang, or the acceptance of what nobody signed.

An input is made from its target's seeds and its number. Keys are new in every run, so a fault is
told with the whole input. Inputs that once failed are in ``test_regressions``.
"""

from __future__ import annotations

import signal
import time
import traceback
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from random import Random

import pytest

from tests.fuzz.mutator import mutate
from tests.fuzz.targets import Target, encoded, targets
from tests.trust.conftest import World

ORDINARY, LONG = 3_000, 100_000
#: Of processor time: more than any input needs by far, even where the machine is busy.
INPUT_MAX_S = 2.0
HANG_S = 30


class Hung(Exception):
    """An input that does not end."""


@contextmanager
def hang_is_named() -> Iterator[None]:
    def tell(number: int, frame: object) -> None:
        raise Hung(f"not done within {HANG_S} s")

    previous = signal.signal(signal.SIGALRM, tell)
    signal.setitimer(signal.ITIMER_REAL, HANG_S)
    try:
        yield
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, previous)


def make(target: Target, number: int) -> bytes:
    """Input ``number`` of a target."""
    return mutate(Random(f"{target.name}:{number}"), target.seeds)


def fault_of(target: Target, data: bytes) -> str:
    """What is wrong with how the target took it; empty if nothing."""
    start = time.process_time()
    try:
        with hang_is_named():
            target.run(data)
    except Exception:  # noqa: BLE001  (whatever comes out is what is looked for)
        return traceback.format_exc(limit=-6)
    spent = time.process_time() - start
    return f"took {spent:.1f} s" if spent > INPUT_MAX_S else ""


def fuzz(found: list[Target], first: int, count: int) -> list[str]:
    """The faults among ``count`` inputs, spread over all targets."""
    faults = []
    for index in range(first, first + count):
        target, number = found[index % len(found)], index // len(found)
        data = make(target, number)
        fault = fault_of(target, data)
        if fault:
            faults.append(f"{target.name} {number}: {fault}{encoded(data)}")
    return faults


@pytest.fixture(scope="module")
def all_targets(world: World, tmp_path_factory: pytest.TempPathFactory) -> list[Target]:
    return targets(world, tmp_path_factory.mktemp("fuzz"))


def test_seeds_are_taken_as_they_are(all_targets: list[Target]) -> None:
    """Else the mutations would only knock at the outermost door."""
    assert len(all_targets) == 14
    for target in all_targets:
        for seed in target.seeds:
            assert fault_of(target, seed) == "", target.name


def test_some_mutated_inputs(all_targets: list[Target]) -> None:
    assert fuzz(all_targets, 0, ORDINARY) == []


@pytest.mark.long
@pytest.mark.timeout(3600)
def test_a_hundred_thousand_mutated_inputs(all_targets: list[Target]) -> None:
    faults = fuzz(all_targets, ORDINARY, LONG)
    assert faults[:20] == [], len(faults)


def test_the_fuzzer_would_see_a_crash_a_hang_and_an_acceptance(tmp_path: Path) -> None:
    def crash(data: bytes) -> None:
        raise RecursionError

    def accept(data: bytes) -> None:
        assert data == b"signed"

    def slow(data: bytes) -> None:
        deadline = time.process_time() + INPUT_MAX_S + 0.1
        while time.process_time() < deadline:
            pass

    def run(reader: object) -> list[str]:
        return fuzz([Target("t", (b"signed",), reader)], 0, 1)  # type: ignore[arg-type]

    assert "RecursionError" in run(crash)[0]
    assert "AssertionError" in run(accept)[0]
    assert "took" in run(slow)[0]
