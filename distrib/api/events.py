"""Events: what handlers were told, how that went, and once more."""

from __future__ import annotations

from typing import Annotated, Any

from fastapi import APIRouter, Path, Query
from pydantic import Field

from distrib.api.access import Admin, Use, Viewer
from distrib.api.body import Body, RowNumber
from distrib.api.views import time_text
from distrib.db.intake_models import DeliveryState, Event, EventDelivery
from distrib.db.outbox import EventType
from distrib.events.records import Wanted, list_events, retry, show_event
from distrib.events.replay import replay

router = APIRouter(tags=["events"])


class Retry(Body):
    """``handler`` None: every handler that the event was for."""

    handler: Annotated[str, Field(min_length=1, max_length=64)] | None = None


@router.get("/events")
def events(
    services: Use,
    _actor: Viewer,
    *,
    type: EventType | None = None,
    state: DeliveryState | None = None,
    handler: Annotated[str, Query(max_length=64)] | None = None,
    image: Annotated[str, Query(max_length=120)] | None = None,
    limit: Annotated[int, Query(ge=1, le=1000)] = 100,
    before: Annotated[int | None, Query(ge=1)] = None,
) -> dict[str, Any]:
    """Newest first, without variables and output; ``before`` an id pages on."""
    wanted = Wanted(type, state, handler, image, before)
    with services.database.reading() as session:
        found = list_events(session, wanted, limit=limit)
    return {"events": [_view(event, deliveries) for event, deliveries in found]}


@router.get("/events/{number}")
def event(number: RowNumber, services: Use, _actor: Viewer) -> dict[str, Any]:
    """One event with its variables and the last output of its handlers."""
    with services.database.reading() as session:
        found, deliveries = show_event(session, number)
    return _full_view(found, deliveries)


@router.post("/events/{number}/retry")
def retry_event(number: RowNumber, body: Retry, services: Use, actor: Admin) -> dict[str, Any]:
    """Queue again what was given up; what waits is tried at once."""
    with services.database.transaction() as session:
        found, deliveries = retry(
            session, number, handler=body.handler, at=services.clock(), actor=actor.name
        )
    return _full_view(found, deliveries)


@router.post("/events/replay/{handler}")
def replay_events(
    handler: Annotated[str, Path(max_length=64)], services: Use, actor: Admin
) -> dict[str, Any]:
    """Tell one handler of everything that is on the site list now."""
    with services.database.transaction() as session:
        told = replay(session, handler, services.handlers, at=services.clock(), actor=actor.name)
    return {
        "handler": told.handler,
        "images": list(told.images),
        "first": told.first,
        "last": told.last,
    }


def _view(event: Event, deliveries: list[EventDelivery]) -> dict[str, Any]:
    return {
        "id": event.id,
        "at": time_text(event.at),
        "type": event.type,
        "subject": event.subject,
        "deliveries": [
            {
                "handler": one.handler,
                "state": one.state,
                "attempts": one.attempts,
                "next_at": time_text(one.next_at),
                "finished_at": time_text(one.finished_at),
                "exit_status": one.exit_status,
            }
            for one in deliveries
        ],
    }


def _full_view(event: Event, deliveries: list[EventDelivery]) -> dict[str, Any]:
    view = _view(event, deliveries) | {"environment": event.environment}
    for shown, one in zip(view["deliveries"], deliveries, strict=True):
        shown["output"] = one.output
    return view
