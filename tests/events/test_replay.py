"""A handler that was added later is told what is there; the others hear nothing of it."""

from __future__ import annotations

from collections.abc import Callable
from datetime import timedelta

import pytest

from distrib.db.models import ImageState
from distrib.db.outbox import EventType
from distrib.errors import Conflict, NotFound
from distrib.events.replay import Replayed, replay
from distrib.events.settings import HandlerSettings
from tests.events.stories import AVAILABLE, EXPIRE, ONE, TWO, Outbox, Script, until

MakeScript = Callable[..., Script]


def replayed(outbox: Outbox, name: str, *handlers: HandlerSettings) -> Replayed:
    with outbox.database.transaction() as session:
        return replay(session, name, handlers, at=outbox.clock(), actor="alice")


async def test_a_new_handler_is_told_what_is_there_and_then_what_happens(
    outbox: Outbox, script: MakeScript
) -> None:
    old, new = script(name="old"), script(name="new")
    both = old.settings("old"), new.settings("new")
    outbox.deliverer(both[0])
    image, other = outbox.image(ONE), outbox.image(TWO, infohash="b4" * 32)
    before = [outbox.emit(AVAILABLE, image), outbox.emit(AVAILABLE, other)]
    async with outbox.delivering(*both):
        told = replayed(outbox, "new", *both)
        assert told.images == (f"{TWO}@1.0.0", f"{ONE}@1.0.0")
        after = outbox.emit(EXPIRE, image)
        await until(lambda: outbox.is_done(*before, after, handler="old"))
        await until(lambda: outbox.is_done(told.last, after, handler="new"))
    assert old.told() == [*before, after]
    assert new.told() == [*range(told.first, told.last + 1), after]
    seen = [new.environment(event) for event in range(told.first, told.last + 1)]
    assert [one["VMCATCHER_EVENT_TYPE"] for one in seen] == [
        "ProcessPrefix",
        *["AvailablePrefix", "AvailablePostfix"] * 2,
        "ProcessPostfix",
    ]
    assert {one["DISTRIB_EVENT_REPLAYED_FOR"] for one in seen} == {"new"}
    assert seen[2]["VMCATCHER_EVENT_FILENAME"].endswith(f"{'b4' * 32}/image.raw")


def test_only_what_is_on_the_site_list_is_told(outbox: Outbox) -> None:
    plain = HandlerSettings(name="h", command="true")
    versions = HandlerSettings(name="v", command="true", versions=True)
    outbox.image(ONE, "1.9.0", state=ImageState.SUPERSEDED)
    outbox.image(ONE, "1.10.0", infohash="b4" * 32)
    outbox.image(ONE, "1.8.0", infohash="b5" * 32, until=outbox.clock() - timedelta(seconds=1))
    outbox.image(TWO, state=ImageState.DENIED, infohash="b6" * 32)
    begun = outbox.image(TWO, "2.0.0", infohash="b7" * 32)
    outbox.emit(EventType.AVAILABLE_PREFIX, begun)
    assert replayed(outbox, "h", plain).images == (f"{ONE}@1.10.0",)
    assert replayed(outbox, "v", versions).images == (f"{ONE}@1.9.0", f"{ONE}@1.10.0")
    # Once the list that has it was signed, it is there too.
    outbox.emit(AVAILABLE, begun)
    assert f"{TWO}@2.0.0" in replayed(outbox, "h", plain).images


def test_a_replay_for_nobody_is_refused(outbox: Outbox) -> None:
    deaf = HandlerSettings(name="mail", command="true", types=[EXPIRE])
    with pytest.raises(NotFound, match="no event handler 'glance'"):
        replayed(outbox, "glance", deaf)
    with pytest.raises(Conflict, match="neither of AvailablePrefix nor of AvailablePostfix"):
        replayed(outbox, "mail", deaf)
    assert outbox.events() == []
