"""What handlers of a site are told as its images come and go; and what operators see of that."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator, Callable
from datetime import timedelta
from pathlib import Path

import pytest
from sqlalchemy import select

from distrib.catalogue.intake import ImageChoice
from distrib.cli.main import main
from distrib.db.intake_models import DeliveryState, Event, EventDelivery
from distrib.db.models import Image, Role
from distrib.db.outbox import EventType, emit
from distrib.events.environment import Site, handler_environment
from distrib.events.process import Ended
from distrib.events.queue import Queue
from distrib.events.settings import HandlerSettings
from distrib.trust.signature import open_smime, sign_smime
from tests.head.stories import WORKER, Endorser, Head, entry, image_bytes
from tests.head.test_commands import client_config

OLD, NEW = image_bytes(1), image_bytes(2)
HANDLER = HandlerSettings(name="glance", command="true")


async def chunks(content: bytes) -> AsyncIterator[bytes]:
    yield content


def approve(head: Head, signed: bytes, content: bytes, version: str) -> None:
    catalogue = head.catalogue
    catalogue.intake.announce(signed, ImageChoice(version=version), actor="test")
    asyncio.run(catalogue.quarantine.receive(WORKER, version, chunks(content), actor="test"))
    asyncio.run(catalogue.approval.approve(WORKER, version, actor="test"))


def since(head: Head, mark: list[int]) -> list[str]:
    """What was emitted since the last call, after a new site list where one is due."""
    head.catalogue.publisher.publish_if_due()
    with head.database.reading() as session:
        query = select(Event).where(Event.id > (mark[-1] if mark else 0)).order_by(Event.id)
        events = list(session.scalars(query))
    mark.extend(event.id for event in events)
    return [
        " ".join(filter(None, (event.type, event.subject.partition("@")[2])))
        + (" replaced" if "DISTRIB_EVENT_REPLACED_BY" in event.environment else "")
        for event in events
    ]


def within(*lines: str) -> list[str]:
    """A site list's own bracket around what it tells."""
    return ["ProcessPrefix", *lines, "ProcessPostfix"]


def test_an_image_comes_is_replaced_and_goes(head: Head, endorser: Endorser) -> None:
    mark: list[int] = []
    approve(head, endorser.sign(entry(OLD)), OLD, "1.0.0")
    assert since(head, mark) == [
        "SubscriptionImageNew 1.0.0",
        "AvailablePrefix 1.0.0",
        *within("AvailablePostfix 1.0.0"),
    ]
    assert since(head, mark) == []
    approve(head, endorser.sign(entry(NEW, version="2.0.0"), version="2.0.0"), NEW, "2.0.0")
    # 1.0.0 stays for its grace: a handler that knows one version of a UUID has the new one.
    assert since(head, mark) == [
        "SubscriptionImageNew 2.0.0",
        "AvailablePrefix 2.0.0",
        *within("AvailablePostfix 2.0.0"),
    ]
    head.catalogue.denial.deny(WORKER, "2.0.0", reason="CVE", actor="alice")
    assert since(head, mark) == [
        "ExpirePrefix 2.0.0",
        *within("ExpirePostfix 2.0.0", "AvailablePrefix 1.0.0", "AvailablePostfix 1.0.0"),
    ]
    head.catalogue.denial.undeny(WORKER, "2.0.0", reason="no CVE", actor="alice")
    assert since(head, mark) == ["AvailablePrefix 2.0.0", *within("AvailablePostfix 2.0.0")]
    head.catalogue.intake._accept(endorser.sign(version="3.0.0"), actor="test")
    both = ["ExpirePrefix 1.0.0", "ExpirePrefix 2.0.0"]
    found = since(head, mark)
    assert sorted(line.removesuffix(" replaced") for line in found[:2]) == both
    assert found[2:] == within("ExpirePostfix 1.0.0", "ExpirePostfix 2.0.0")


def test_a_version_past_its_grace_is_told_as_replaced(head: Head, endorser: Endorser) -> None:
    mark: list[int] = []
    approve(head, endorser.sign(entry(OLD)), OLD, "1.0.0")
    approve(head, endorser.sign(entry(NEW, version="2.0.0"), version="2.0.0"), NEW, "2.0.0")
    since(head, mark)
    with head.database.transaction() as session:
        session.get_one(Image, (WORKER, "1.0.0")).until = head.clock() + timedelta(hours=1)
    head.clock.ahead = timedelta(hours=2)
    assert since(head, mark) == within(
        "ExpirePrefix 1.0.0 replaced", "ExpirePostfix 1.0.0 replaced"
    )


def test_the_vo_of_a_list_is_that_of_its_images(head: Head, endorser: Endorser) -> None:
    document = json.loads(open_smime(endorser.sign(entry(OLD))).document)
    document["hv:imagelist"]["ad:vo"] = "vo.example.org"
    issued = endorser.issued
    signed = sign_smime(json.dumps(document).encode(), issued.certificate, issued.key)
    head.catalogue.intake.announce(signed, ImageChoice(), actor="test")
    store = head.catalogue.store
    site = Site(
        database="sqlite:///distrib.db",
        images=store.images,
        downloads=store.quarantine,
        certificates=head.pki.experiment.trust_directory,
        image_file=store.image_file,
        list_file=store.list_file,
    )
    with head.database.reading() as session:
        event = session.scalars(select(Event)).one()
    told = handler_environment(event, command="true", home="/", site=site)
    assert told["VMCATCHER_EVENT_VO"] == "vo.example.org"
    # Nothing has come in yet.
    assert "VMCATCHER_EVENT_FILENAME" not in told


def test_a_denial_before_anything_was_listed_tells_nothing(head: Head, endorser: Endorser) -> None:
    mark: list[int] = []
    head.catalogue.intake.announce(endorser.sign(entry(OLD)), ImageChoice(), actor="test")
    assert since(head, mark) == ["SubscriptionImageNew 1.0.0"]
    head.catalogue.denial.deny(WORKER, "1.0.0", reason="no", actor="alice")
    assert since(head, mark) == []


def test_the_queue_holds_what_a_handler_is_still_to_be_told(head: Head) -> None:
    queue = Queue(head.database, clock=head.clock)
    queue.register([HANDLER])
    with head.database.transaction() as session:
        numbers = [emit(session, head.clock(), EventType.PROCESS_PREFIX).id for _ in range(2)]
    assert queue.take_up(HANDLER) == 2
    assert queue.take_up(HANDLER) == 0
    first = queue.begin(HANDLER)
    assert first is not None
    assert (first.event.id, first.attempts) == (numbers[0], 1)
    later = head.clock() + timedelta(minutes=5)
    failed = Ended(1, "no")
    assert queue.finish(numbers[0], "glance", failed, next_at=later) == DeliveryState.QUEUED
    second = queue.begin(HANDLER)
    assert second is not None
    assert queue.finish(second.event.id, "glance", Ended(0, ""), next_at=None) == "done"
    assert queue.begin(HANDLER) is None
    head.clock.ahead = timedelta(minutes=6)
    again = queue.begin(HANDLER)
    assert again is not None
    assert (again.event.id, again.attempts) == (numbers[0], 2)
    assert queue.finish(numbers[0], "glance", failed, next_at=None) == "given-up"
    head.clock.ahead = timedelta(days=91)
    assert queue.take_up(HANDLER) == 0
    assert queue.prune([HANDLER], keep=timedelta(days=90)) == 1


@pytest.fixture
def given_up(served: Head) -> int:
    """An event that a handler did not take, with a title that a terminal would act on."""
    with served.database.transaction() as session:
        event = emit(session, served.clock(), EventType.PROCESS_POSTFIX)
        session.add(
            EventDelivery(
                event=event.id,
                handler="glance",
                state=DeliveryState.GIVEN_UP,
                attempts=81,
                exit_status=3,
                output="no cloud\n\x1b[2Jreally\n",
            )
        )
        number: int = event.id
        return number


def test_events_are_listed_shown_and_retried_over_the_api(served: Head, given_up: int) -> None:
    with served.http(served.token(Role.VIEWER)) as viewer:
        [event] = viewer.get("/events", params={"state": "given-up"}).json()["events"]
        assert event["id"] == given_up
        assert event["deliveries"][0]["exit_status"] == 3
        assert "output" not in event["deliveries"][0]
        for query in (
            {"state": "done"},
            {"type": "ExpirePrefix"},
            {"image": WORKER},
            {"handler": "mail"},
            {"before": given_up},
        ):
            assert viewer.get("/events", params=query).json() == {"events": []}
        assert viewer.get("/events", params={"type": "Nothing"}).status_code == 422
        assert viewer.get("/events", params={"limit": 1001}).status_code == 422
        shown = viewer.get(f"/events/{given_up}").json()
        assert shown["environment"]["VMCATCHER_EVENT_TYPE"] == "ProcessPostfix"
        assert viewer.get("/events/999").status_code == 404
        assert viewer.post(f"/events/{given_up}/retry", json={}).status_code == 403
    with served.http() as admin:
        assert admin.post(f"/events/{given_up}/retry", json={"handler": "mail"}).status_code == 404
        retried = admin.post(f"/events/{given_up}/retry", json={}).json()
        assert (retried["deliveries"][0]["state"], retried["deliveries"][0]["attempts"]) == (
            "queued",
            0,
        )
    assert served.actions()[-1] == "event-retried"


@pytest.fixture
def run(
    served: Head,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> Callable[..., tuple[int, str]]:
    """Runs ``distrib ...`` as an admin: status and output."""
    monkeypatch.setenv("DISTRIB_CONFIG", str(client_config(served, tmp_path)))

    def run_one(*arguments: object) -> tuple[int, str]:
        capsys.readouterr()
        with pytest.raises(SystemExit) as ended:
            main([str(argument) for argument in arguments])
        return int(ended.value.code or 0), capsys.readouterr().out

    return run_one


def test_an_operator_sees_what_was_given_up_and_retries_it(
    run: Callable[..., tuple[int, str]], given_up: int
) -> None:
    status, out = run("event", "list", "--state", "given-up")
    assert status == 0
    assert "glance: given-up (exit 3)" in out
    status, out = run("event", "show", given_up)
    assert status == 0
    assert "  VMCATCHER_EVENT_TYPE=ProcessPostfix\n" in out
    assert "  | no cloud\n" in out
    assert "\x1b" not in out
    status, out = run("event", "retry", given_up, "--json")
    assert json.loads(out)["deliveries"][0]["state"] == "queued"
    assert run("event", "retry", given_up, "--handler", "mail")[0] == 4


def test_a_handler_that_is_new_is_told_of_what_is_there(
    served: Head, endorser: Endorser, run: Callable[..., tuple[int, str]]
) -> None:
    mark: list[int] = []
    approve(served, endorser.sign(entry(OLD)), OLD, "1.0.0")
    since(served, mark)
    with served.http(served.token(Role.VIEWER)) as viewer:
        assert viewer.post("/events/replay/glance", json={}).status_code == 403
    status, out = run("event", "replay", "glance", "--json")
    told = json.loads(out)
    assert (status, told["handler"], told["images"]) == (0, "glance", [f"{WORKER}@1.0.0"])
    assert since(served, mark) == within("AvailablePrefix 1.0.0", "AvailablePostfix 1.0.0")
    assert mark[-4:] == [*range(told["first"], told["last"] + 1)]
    assert served.actions()[-1] == "events-replayed"
    assert run("event", "replay", "mail")[0] == 4
    status, out = run("event", "replay", "glance")
    assert (status, out.splitlines()[1]) == (0, f"  {WORKER}@1.0.0")
