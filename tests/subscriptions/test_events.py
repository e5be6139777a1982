"""What handlers are told of a poll: one run, from its beginning to its end."""

from __future__ import annotations

from datetime import timedelta

from sqlalchemy import select

from distrib.db.intake_models import Event
from tests.head.stories import LIST, WORKER, entry, image_bytes
from tests.subscriptions.stories import Follower

RUN = "VMCATCHER_EVENT_UUID_SESSION"


def told(follower: Follower, after: int = 0) -> list[Event]:
    """Events since that one, after a site list where one is due."""
    follower.head.catalogue.publisher.publish_if_due()
    with follower.head.database.reading() as session:
        return list(session.scalars(select(Event).where(Event.id > after).order_by(Event.id)))


def lines(events: list[Event]) -> list[str]:
    return [f"{event.type} {event.subject}".strip() for event in events]


async def test_a_poll_is_one_run_and_the_site_list_that_follows_another(follower: Follower) -> None:
    content = image_bytes()
    follower.subscribe()
    await follower.follows(entry(content), version="1.0.0")
    first = told(follower)
    assert lines(first[:3]) == [
        # Which list it is, the poll finds out.
        "ProcessPrefix",
        f"SubscriptionImageNew {WORKER}@1.0.0",
        f"ProcessPostfix {LIST}",
    ]
    await follower.approve(WORKER, content)
    before = told(follower)[-1].id
    await follower.follows(version="2.0.0")
    gone = told(follower, before)
    assert lines(gone) == [
        f"ProcessPrefix {LIST}",
        f"ExpirePrefix {WORKER}@1.0.0",
        f"ProcessPostfix {LIST}",
        "ProcessPrefix",
        f"ExpirePostfix {WORKER}@1.0.0",
        "ProcessPostfix",
    ]
    runs = [event.environment[RUN] for event in gone]
    assert (len(set(runs[:3])), len(set(runs[3:])), len(set(runs))) == (1, 1, 2)
    assert "no longer on the list" in gone[1].environment["DISTRIB_EVENT_REASON"]


async def test_what_lapses_expires_and_comes_back_with_a_newer_list(follower: Follower) -> None:
    content = image_bytes()
    follower.subscribe()
    await follower.follows(entry(content), version="1.0.0", lifetime=timedelta(hours=1))
    await follower.approve(WORKER, content)
    before = told(follower)[-1].id
    follower.head.clock.ahead = timedelta(hours=2)
    await follower.poll()
    gone = told(follower, before)
    assert "ExpirePostfix" in [event.type for event in gone]
    await follower.follows(
        entry(content), version="1.0.1", now=follower.head.clock(), lifetime=timedelta(days=1)
    )
    back = [event.type for event in told(follower, gone[-1].id)]
    assert back == [
        "ProcessPrefix",
        "AvailablePrefix",
        "ProcessPostfix",
        "ProcessPrefix",
        "AvailablePostfix",
        "ProcessPostfix",
    ]


async def test_a_poll_that_fails_has_an_end_too(follower: Follower) -> None:
    follower.subscribe()
    follower.server.serve(b"no list at all")
    row = await follower.poll()
    assert row.failures == 1
    assert [event.type for event in told(follower)] == ["ProcessPrefix", "ProcessPostfix"]
