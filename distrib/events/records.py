"""Events and their deliveries for people: looked up, shown, and queued again."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime

from sqlalchemy import exists, or_, select
from sqlalchemy.orm import Session

from distrib.db.audit import record
from distrib.db.intake_models import DeliveryState, Event, EventDelivery
from distrib.db.outbox import EventType
from distrib.errors import Conflict, NotFound


@dataclass(frozen=True)
class Wanted:
    """Which events to list; ``image`` is a UUID or ``UUID@VERSION``."""

    type: EventType | None = None
    state: DeliveryState | None = None
    handler: str | None = None
    image: str | None = None
    before: int | None = None


def list_events(
    session: Session, wanted: Wanted, *, limit: int
) -> list[tuple[Event, list[EventDelivery]]]:
    """Events with their deliveries, newest first."""
    query = select(Event).order_by(Event.id.desc()).limit(limit)
    if wanted.type is not None:
        query = query.where(Event.type == str(wanted.type))
    if wanted.before is not None:
        query = query.where(Event.id < wanted.before)
    if wanted.image is not None:
        # Autoescape: what is given is a name, not a pattern.
        of_image = Event.subject.startswith(f"{wanted.image}@", autoescape=True)
        query = query.where(or_(Event.subject == wanted.image, of_image))
    if wanted.state is not None or wanted.handler is not None:
        delivery = exists().where(EventDelivery.event == Event.id)
        if wanted.state is not None:
            delivery = delivery.where(EventDelivery.state == str(wanted.state))
        if wanted.handler is not None:
            delivery = delivery.where(EventDelivery.handler == wanted.handler)
        query = query.where(delivery)
    events = list(session.scalars(query))
    found = _deliveries(session, [event.id for event in events])
    return [(event, found.get(event.id, [])) for event in events]


def show_event(session: Session, number: int) -> tuple[Event, list[EventDelivery]]:
    """One event. Raises NotFound."""
    event = session.get(Event, number)
    if event is None:
        raise NotFound(f"no event {number}", hint="distrib event list", event=number)
    return event, _deliveries(session, [number]).get(number, [])


def retry(
    session: Session, number: int, *, handler: str | None, at: datetime, actor: str
) -> tuple[Event, list[EventDelivery]]:
    """Queue again what was given up, and try at once what waits; ``handler`` None: all of them.

    Raises NotFound; Conflict where nothing is to be tried, or where the handler was told later
    events of the image already: an old ``Available`` must not undo a newer ``Expire``.
    """
    event, deliveries = show_event(session, number)
    chosen = [one for one in deliveries if handler in {None, one.handler}]
    if not chosen:
        raise NotFound(
            f"event {number} was not for {handler or 'any handler'}",
            hint="distrib event show says whom it was for",
            event=number,
        )
    open_ones = [one for one in chosen if one.state != DeliveryState.DONE]
    if not open_ones:
        raise Conflict(
            f"event {number} was delivered", hint="there is nothing to retry", event=number
        )
    for one in open_ones:
        if one.state == DeliveryState.GIVEN_UP:
            _check_newest(session, event, one.handler)
            one.state, one.attempts = DeliveryState.QUEUED, 0
        one.next_at = None
    record(
        session,
        at=at,
        actor=actor,
        action="event-retried",
        subject=str(number),
        handlers=[one.handler for one in open_ones],
    )
    return event, deliveries


def _check_newest(session: Session, event: Event, handler: str) -> None:
    identifier, is_image, _version = event.subject.partition("@")
    if not is_image:
        return
    later = (
        select(Event.id)
        .join(EventDelivery, EventDelivery.event == Event.id)
        .where(
            Event.id > event.id,
            Event.subject.startswith(f"{identifier}@", autoescape=True),
            EventDelivery.handler == handler,
            or_(EventDelivery.state == str(DeliveryState.DONE), EventDelivery.attempts > 0),
        )
    )
    found = session.scalar(later.order_by(Event.id).limit(1))
    if found is not None:
        raise Conflict(
            f"{handler} was told event {found} of the same image after event {event.id}",
            hint="run the handler by hand; distrib event show prints its variables",
            event=event.id,
        )


def _deliveries(session: Session, events: Sequence[int]) -> dict[int, list[EventDelivery]]:
    query = select(EventDelivery).where(EventDelivery.event.in_(events))
    found: dict[int, list[EventDelivery]] = {}
    for one in session.scalars(query.order_by(EventDelivery.handler)):
        found.setdefault(one.event, []).append(one)
    return found
