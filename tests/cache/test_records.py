"""Records: their life, and what happens to files that cannot be read."""

from __future__ import annotations

import json
import re
from collections.abc import Callable
from dataclasses import replace
from datetime import datetime
from pathlib import Path

import pytest

from agent.cache.records import TRANSITIONS, ImageVersion, Records, VolumeRecord, absent
from distrib.bus.messages import NodeReason, State
from distrib.errors import Conflict

DOCUMENT = Path(__file__).parents[2] / "docs" / "formats" / "state.md"


@pytest.fixture
def record(image: Callable[..., ImageVersion], clock: Callable[[], datetime]) -> VolumeRecord:
    return absent(image(1), "file", clock()).moved(State.RESERVED, clock())


@pytest.fixture
def records(tmp_path: Path) -> Records:
    return Records(tmp_path / "volumes")


def test_a_record_comes_back_as_it_was_saved(records: Records, record: VolumeRecord) -> None:
    failed = record.moved(
        State.FAILED, record.since, reason=NodeReason.STALLED, text="no piece for 60 s"
    )
    records.save(failed)
    assert records.load().records == (failed,)
    records.delete(failed.infohash)
    assert records.load().records == ()


def test_the_record_in_the_documentation_can_be_read(tmp_path: Path) -> None:
    section = DOCUMENT.read_text(encoding="utf-8").partition("## A volume")[2]
    found = re.search(r"```json\n(.*?)```", section, re.DOTALL)
    assert found
    documented = json.loads(found[1])
    records = Records(tmp_path)
    (tmp_path / f"{documented['infohash']}.json").write_text(found[1])
    (read,) = records.load().records
    assert read.state is State.READY
    records.save(read)
    saved = json.loads((tmp_path / f"{documented['infohash']}.json").read_text())
    assert saved == documented


def test_every_life_begins_and_ends_absent() -> None:
    assert State.LEASED not in TRANSITIONS, "derived, never stored"
    assert all(steps <= set(TRANSITIONS) for steps in TRANSITIONS.values())
    reached, edge = {State.ABSENT}, {State.ABSENT}
    while edge:
        edge = {to for at in edge for to in TRANSITIONS[at]} - reached
        reached |= edge
    assert reached == set(TRANSITIONS)
    for state in set(TRANSITIONS) - {State.ABSENT, State.EVICTING}:
        assert State.EVICTING in TRANSITIONS[state], f"{state} can never be got rid of"


@pytest.mark.parametrize("state", sorted(TRANSITIONS))
@pytest.mark.parametrize("to", sorted(State))
def test_a_record_moves_along_the_table_alone(
    record: VolumeRecord, state: State, to: State
) -> None:
    start = replace(record, state=state)
    if to in TRANSITIONS[state]:
        assert start.moved(to, record.since).state is to
    else:
        with pytest.raises(Conflict, match=f"cannot become {to}"):
            start.moved(to, record.since)


def test_a_new_state_clears_the_reason_of_the_old(record: VolumeRecord) -> None:
    failed = record.moved(State.FAILED, record.since, reason=NodeReason.STALLED, text="x" * 5000)
    assert len(failed.text) == 1000
    again = failed.moved(State.RESERVED, record.since)
    assert (again.reason, again.text) == (None, "")


@pytest.mark.parametrize(
    "damaged",
    [b"", b"{", b"null", b"\xff\xfe", b'{"v": 2}', b"[" * 100_000, b'{"infohash": "../../x"}'],
)
def test_a_damaged_record_is_set_aside_and_named_and_the_others_are_read(
    tmp_path: Path, record: VolumeRecord, damaged: bytes
) -> None:
    records = Records(tmp_path)
    records.save(record)
    other = "f" * 64
    (tmp_path / f"{other}.json").write_bytes(damaged)
    found = records.load()
    assert found.records == (record,)
    ((infohash, error),) = found.corrupt
    assert infohash == other
    assert error.code == "state-corrupt"
    assert (tmp_path / f"{other}.json.bad").read_bytes() == damaged
    assert [name for name, _ in records.load().corrupt] == [other], "until it is replaced"
    records.delete(other)
    assert records.load().corrupt == ()


def test_a_record_under_another_volumes_name_is_not_believed(
    tmp_path: Path, record: VolumeRecord
) -> None:
    records = Records(tmp_path)
    records.save(record)
    (tmp_path / f"{record.infohash}.json").rename(tmp_path / f"{'e' * 64}.json")
    found = records.load()
    assert found.records == ()
    assert [name for name, _ in found.corrupt] == ["e" * 64]
