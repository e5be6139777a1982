"""What handlers are told: all of it, in order, again until they take it, and never for ever."""

from __future__ import annotations

import os
import sqlite3
from collections.abc import Callable
from datetime import timedelta
from pathlib import Path

import pytest
import structlog

from distrib.db.intake_models import DeliveryState
from distrib.db.outbox import VALUE_MAX_BYTES, EventType, emit, one_run
from distrib.errors import Conflict, StorageFailed
from distrib.events.process import RunAs
from distrib.events.records import retry
from distrib.events.settings import EventsSettings
from tests.events.stories import (
    AVAILABLE,
    EXPIRE,
    INFOHASH,
    LIST,
    ONE,
    TWO,
    Outbox,
    Script,
    until,
)

MakeScript = Callable[..., Script]


async def test_a_handler_sees_the_variables_of_the_field_and_none_of_ours(
    outbox: Outbox, script: MakeScript, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("DISTRIB_CATALOGUE_PASSPHRASE", "a secret")
    monkeypatch.setenv("VMCATCHER_EVENT_FILENAME", "of somebody else")
    entry = {
        "dc:description": "A worker",
        "hv:uri": "https://images.example.org/worker.qcow2",
        "hv:format": "QCOW2",
        "hv:hypervisor": "kvm,xen",
        "sl:arch": "x86_64",
        "sl:os": "Linux",
        "sl:osversion": "SL 6.4",
        "sl:comments": "none",
        "ad:mpuri": "https://marketplace.example.org/1",
        "ad:vo": "vo.example.org",
    }
    handler = script()
    async with outbox.delivering(handler.settings(command=f"{handler.file} {handler.folder}")):
        event = outbox.emit(AVAILABLE, outbox.image(entry=entry, sha512="ef" * 64, size_bytes=4096))
        await until(lambda: outbox.is_done(event))
    told = handler.environment(event)
    run = told.pop("VMCATCHER_EVENT_UUID_SESSION")
    assert len(run) == 36
    assert told == {
        "PATH": os.environ["PATH"],
        "HOME": RunAs.named("").home,
        "LANG": "C.UTF-8",
        "VMCATCHER_RDBMS": "postgresql+psycopg://distrib:***@db/distrib",
        "VMCATCHER_CACHE_EVENT": f"{handler.file} {handler.folder}",
        "VMCATCHER_CACHE_DIR_CACHE": str(outbox.state_dir / "images"),
        "VMCATCHER_CACHE_DIR_DOWNLOAD": str(outbox.state_dir / "quarantine"),
        "VMCATCHER_CACHE_DIR_EXPIRE": str(outbox.state_dir / "images"),
        "VMCATCHER_DIR_CERT": "/etc/grid-security/certificates",
        "VMCATCHER_LOG_CONF": "",
        "VMCATCHER_EVENT_TYPE": "AvailablePostfix",
        "VMCATCHER_EVENT_DC_IDENTIFIER": ONE,
        "VMCATCHER_EVENT_DC_TITLE": "worker",
        "VMCATCHER_EVENT_DC_DESCRIPTION": "A worker",
        "VMCATCHER_EVENT_HV_HYPERVISOR": "kvm,xen",
        "VMCATCHER_EVENT_HV_SIZE": "1000",
        "VMCATCHER_EVENT_HV_URI": "https://images.example.org/worker.qcow2",
        "VMCATCHER_EVENT_HV_VERSION": "1.0.0",
        # What is at FILENAME was converted, and handlers open it by this.
        "VMCATCHER_EVENT_HV_FORMAT": "RAW",
        "VMCATCHER_EVENT_SL_ARCH": "x86_64",
        "VMCATCHER_EVENT_SL_CHECKSUM_SHA512": "cd" * 64,
        "VMCATCHER_EVENT_SL_COMMENTS": "none",
        "VMCATCHER_EVENT_SL_OS": "Linux",
        "VMCATCHER_EVENT_SL_OSVERSION": "SL 6.4",
        "VMCATCHER_EVENT_FILENAME": str(outbox.state_dir / "images" / INFOHASH / "image.raw"),
        "VMCATCHER_EVENT_IL_DC_IDENTIFIER": LIST,
        "VMCATCHER_EVENT_AD_MPURI": "https://marketplace.example.org/1",
        "VMCATCHER_EVENT_VO": "vo.example.org",
        "DISTRIB_EVENT_ID": str(event),
        "DISTRIB_EVENT_INFOHASH": INFOHASH,
        "DISTRIB_EVENT_AUDIENCE": "all",
        "DISTRIB_EVENT_RAW_SHA512": "ef" * 64,
        "DISTRIB_EVENT_RAW_SIZE": "4096",
        "DISTRIB_EVENT_ENDORSED_FORMAT": "QCOW2",
        "DISTRIB_EVENT_STATE": "approved",
        "DISTRIB_EVENT_ENDORSER_DN": "/CN=Endorser",
        "DISTRIB_EVENT_LIST_SHA512": "ab" * 64,
    }
    page = (Path(__file__).parents[2] / "docs" / "formats" / "events.md").read_text("utf-8")
    assert [name for name in told if f"`{name}`" not in page] == []


async def test_what_an_endorser_writes_is_text_whatever_it_is(
    outbox: Outbox, script: MakeScript, tmp_path: Path
) -> None:
    trap = tmp_path / "trap"
    shell = f"a\"b'c $(touch {trap}) `touch {trap}` ; touch {trap}"
    title = f"{shell}\nVMCATCHER_EVENT_TYPE=x\0\x1b[2J\u202e"
    entry = {"dc:description": "é" * 5_000_000, "sl:comments": {"no": "text"}, "sl:os": "\ud800"}
    handler = script()
    async with outbox.delivering(handler.settings(command=f"{handler.file} {handler.folder}")):
        image = outbox.image(title=title, entry=entry)
        event = outbox.emit(AVAILABLE, image)
        await until(lambda: outbox.is_done(event))
    told = handler.environment(event)
    assert told["VMCATCHER_EVENT_DC_TITLE"] == f"{shell} VMCATCHER_EVENT_TYPE=x [2J"
    assert told["VMCATCHER_EVENT_TYPE"] == "AvailablePostfix"
    assert len(told["VMCATCHER_EVENT_DC_DESCRIPTION"].encode()) == VALUE_MAX_BYTES
    assert "VMCATCHER_EVENT_SL_COMMENTS" not in told
    assert "VMCATCHER_EVENT_SL_OS" not in told
    assert not trap.exists()


async def test_events_come_in_order_and_two_handlers_each_get_theirs(
    outbox: Outbox, script: MakeScript
) -> None:
    everything, some = script(name="everything"), script(name="some")
    one, two = outbox.image(ONE), outbox.image(TWO)
    async with outbox.delivering(
        everything.settings("everything"), some.settings("some", types=[EXPIRE])
    ):
        with one_run():
            first = outbox.emit(EventType.PROCESS_PREFIX, list=LIST)
            second = outbox.emit(AVAILABLE, one)
            third = outbox.emit(EXPIRE, two)
            last = outbox.emit(EventType.PROCESS_POSTFIX, list=LIST)
        await until(lambda: outbox.is_done(last, handler="everything"))
        await until(lambda: outbox.is_done(third, handler="some"))
    assert everything.told() == [first, second, third, last]
    assert some.told() == [third]
    assert outbox.delivery(second, "some") is None
    sessions = {
        everything.environment(event)["VMCATCHER_EVENT_UUID_SESSION"]
        for event in (first, second, third, last)
    }
    assert len(sessions) == 1


async def test_a_failure_is_tried_again_and_nothing_later_of_the_image_passes_it(
    outbox: Outbox, script: MakeScript
) -> None:
    handler = script(
        f'[ "$VMCATCHER_EVENT_DC_IDENTIFIER" != {ONE} ] && exit 0\n'
        '[ -e "$DIR/mended" ] && exit 0\necho "no cloud"; exit 3\n'
    )
    one, other = outbox.image(ONE), outbox.image(TWO)
    async with outbox.delivering(handler.settings()):
        with one_run():
            failing = outbox.emit(AVAILABLE, one)
            later = outbox.emit(EXPIRE, one)
            passing = outbox.emit(AVAILABLE, other)
            closing = outbox.emit(EventType.PROCESS_POSTFIX)
        await until(lambda: outbox.is_done(passing) and handler.told().count(failing) >= 3)
        row = outbox.delivery(failing)
        assert row is not None
        assert (row.state, row.exit_status, row.output) == ("queued", 3, "no cloud\n")
        assert {later, closing}.isdisjoint(handler.told())
        (handler.folder / "mended").touch()
        await until(lambda: outbox.is_done(failing, later, passing, closing))
    told = handler.told()
    assert told[-3:] == [failing, later, closing]
    row = outbox.delivery(failing)
    assert row is not None
    assert (row.exit_status, row.attempts) == (0, told.count(failing))


async def test_an_event_is_given_up_in_the_end_and_an_operator_may_retry_it(
    outbox: Outbox, script: MakeScript
) -> None:
    handler = script('[ -e "$DIR/mended" ] || exit 1\n')
    settings = handler.settings(give_up_s=0.1)
    with structlog.testing.capture_logs() as logs:
        async with outbox.delivering(settings):
            given_up = outbox.emit(AVAILABLE, outbox.image())
            await until(lambda: outbox.state(given_up) == DeliveryState.GIVEN_UP)
            row = outbox.delivery(given_up)
            assert row is not None
            # Waits of 0.02, 0.04 and 0.08 s are more than 0.1 s.
            assert (row.attempts, row.next_at) == (4, None)
            (handler.folder / "mended").touch()
            with outbox.database.transaction() as session:
                retry(session, given_up, handler="h", at=outbox.clock(), actor="alice")
            await until(lambda: outbox.is_done(given_up))
            with outbox.database.transaction() as session, pytest.raises(Conflict, match="deliver"):
                retry(session, given_up, handler=None, at=outbox.clock(), actor="alice")
    assert [entry["event"] for entry in logs].count("event-given-up") == 1


async def test_an_old_event_is_not_told_again_after_a_newer_one_of_its_image(
    outbox: Outbox, script: MakeScript
) -> None:
    handler = script('[ "$VMCATCHER_EVENT_TYPE" = ExpirePrefix ] || exit 1\n')
    image = outbox.image()
    async with outbox.delivering(handler.settings(give_up_s=0)):
        available, expire = outbox.emit(AVAILABLE, image), outbox.emit(EXPIRE, image)
        await until(lambda: outbox.is_done(expire))
    assert outbox.state(available) == DeliveryState.GIVEN_UP
    with outbox.database.transaction() as session, pytest.raises(Conflict, match="same image"):
        retry(session, available, handler=None, at=outbox.clock(), actor="alice")


async def test_while_the_database_is_away_nothing_is_lost_and_nothing_done_twice(
    outbox: Outbox, script: MakeScript, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setattr("distrib.db.session.BUSY_TIMEOUT_S", 0.05)
    (tmp_path / "impatient").mkdir()
    impatient = Outbox(tmp_path / "impatient")
    handler = script('mkfifo "$DIR/gate"\nread -r _ < "$DIR/gate"\n')
    with structlog.testing.capture_logs() as logs:
        async with impatient.delivering(handler.settings()):
            event = impatient.emit(AVAILABLE, impatient.image())
            await until((handler.folder / "gate").exists)
            hog = sqlite3.connect(impatient.state_dir / "distrib.db", isolation_level=None)
            hog.execute("BEGIN IMMEDIATE")
            with pytest.raises(StorageFailed):
                impatient.emit(EXPIRE)
            with (handler.folder / "gate").open("w") as gate:
                gate.write("go\n")
            await until(lambda: "event-not-noted" in [entry["event"] for entry in logs])
            hog.close()
            await until(lambda: impatient.is_done(event))
    impatient.database.close()
    assert handler.told() == [event]


def test_what_is_rolled_back_was_never_said(outbox: Outbox) -> None:
    image = outbox.image()
    with pytest.raises(Conflict), outbox.database.transaction() as session:
        emit(session, outbox.clock(), AVAILABLE, image=image)
        raise Conflict("overtaken")
    assert outbox.events() == []


async def test_a_new_handler_is_told_from_now_on_and_an_old_one_what_it_missed(
    outbox: Outbox, script: MakeScript
) -> None:
    first, second = script(name="first"), script(name="second")
    image = outbox.image()
    before = outbox.emit(AVAILABLE, image)
    outbox.deliverer(first.settings("first"))
    missed = outbox.emit(EXPIRE, image)
    async with outbox.delivering(first.settings("first"), second.settings("second")):
        now = outbox.emit(AVAILABLE, image)
        await until(lambda: outbox.is_done(missed, now, handler="first"))
        await until(lambda: outbox.is_done(now, handler="second"))
    assert first.told() == [missed, now]
    assert second.told() == [now]
    assert outbox.delivery(before, "first") is None


async def test_old_events_are_forgotten_unless_somebody_waits_for_them(
    outbox: Outbox, script: MakeScript
) -> None:
    failing, image = script("exit 1\n"), outbox.image()
    settings = failing.settings(retry_first_s=1000, types=[EXPIRE])
    queue = outbox.deliverer(settings)._queue
    done, waited_for = outbox.emit(AVAILABLE, image), outbox.emit(EXPIRE, image)
    newest = outbox.emit(AVAILABLE, image)
    assert queue.take_up(settings) == 1
    outbox.ahead = timedelta(days=91)
    assert queue.take_up(settings) == 0
    assert queue.prune([settings], keep=timedelta(days=90)) == 1
    assert [event.id for event in outbox.events()] == [waited_for, newest]
    # A handler that was taken off the settings waits for nothing.
    assert queue.prune([], keep=timedelta(days=90)) == 1
    assert [event.id for event in outbox.events()] == [newest]
    assert done < outbox.emit(EXPIRE, image)
    assert queue.take_up(settings) == 1


async def test_a_version_that_was_replaced_goes_unnoticed_by_handlers_that_know_one_of_a_uuid(
    outbox: Outbox, script: MakeScript
) -> None:
    one, all_ = script(name="one"), script(name="all")
    old = outbox.image(ONE, "1.0.0", state="superseded")
    new = outbox.image(ONE, "1.10.0", infohash="b4" * 32)
    async with outbox.delivering(one.settings("one"), all_.settings("all", versions=True)):
        gone = outbox.emit(EXPIRE, old)
        last = outbox.emit(EXPIRE, new)
        await until(lambda: outbox.is_done(gone, last, handler="all"))
        await until(lambda: outbox.is_done(last, handler="one"))
    assert one.told() == [last]
    assert all_.told() == [gone, last]
    assert all_.environment(gone)["DISTRIB_EVENT_REPLACED_BY"] == "1.10.0"
    assert "DISTRIB_EVENT_REPLACED_BY" not in all_.environment(last)


@pytest.mark.parametrize(
    ("handlers", "what"),
    [
        ([{"name": "a", "command": "x"}, {"name": "a", "command": "y"}], "same name"),
        ([{"name": "../a", "command": "x"}], "pattern"),
        ([{"name": "a", "command": []}], "at least 1"),
        ([{"name": "a", "command": "x", "types": ["ExpirePosfix"]}], "ExpirePostfix"),
        ([{"name": "a", "command": "x", "time_limit_s": 0}], "greater than 0"),
    ],
)
def test_handlers_that_cannot_be_are_refused(handlers: list[object], what: str) -> None:
    with pytest.raises(ValueError, match=what):
        EventsSettings.model_validate({"handlers": handlers})
