"""The queue of deliveries, on disk: a row for each event and handler, until the handler took it.

A handler that is new gets the events from now on. Events are found by what has no delivery yet, not
by a number that was reached: on PostgreSQL a transaction may commit after a later one. Only those
older than ``SETTLED`` are passed over for good.
"""

from __future__ import annotations

from collections.abc import Callable, Collection
from dataclasses import dataclass
from datetime import datetime, timedelta

from sqlalchemy import delete, exists, func, select
from sqlalchemy.orm import Session

from distrib.db.counters import set_to, value_of
from distrib.db.intake_models import DeliveryState, Event, EventDelivery
from distrib.db.models import Counter
from distrib.db.outbox import REPLACED_BY_VARIABLE, REPLAYED_FOR_VARIABLE, RUN_VARIABLE
from distrib.db.session import Database
from distrib.events.order import Waiting, next_of
from distrib.events.process import Ended
from distrib.events.settings import HandlerSettings

SETTLED = timedelta(hours=1)
"""No transaction is open for longer."""

_QUEUED = str(DeliveryState.QUEUED)


@dataclass(frozen=True)
class Due:
    """An event to be delivered now; ``attempts`` counts this one."""

    event: Event
    attempts: int


class Queue:
    """What handlers are still to be told. Synchronous; ``clock`` gives the time."""

    def __init__(self, database: Database, *, clock: Callable[[], datetime]) -> None:
        self._database = database
        self._clock = clock

    def register(self, handlers: Collection[HandlerSettings]) -> None:
        """Note from which event on each handler is told."""
        with self._database.transaction() as session:
            newest = session.scalar(select(func.max(Event.id))) or 0
            for handler in handlers:
                if session.get(Counter, _told(handler)) is None:
                    session.add(Counter(name=_told(handler), value=newest))

    def take_up(self, handler: HandlerSettings) -> int:
        """Queue the events that the handler is to be told and has no row for; how many."""
        before = self._clock() - SETTLED
        with self._database.reading() as session:
            if not self._untold(session, handler) and not self._passed(session, handler, before):
                return 0
        with self._database.transaction() as session:
            found = self._untold(session, handler)
            session.add_all(
                EventDelivery(event=event, handler=handler.name, state=_QUEUED) for event in found
            )
            passed = self._passed(session, handler, before)
            if passed:
                set_to(session, _told(handler), passed)
        return len(found)

    def begin(self, handler: HandlerSettings) -> Due | None:
        """The next event that is due, its attempt counted; None if there is none."""
        longest = timedelta(seconds=2 * max(handler.retry_first_s, handler.retry_longest_s))
        with self._database.reading() as session:
            chosen = next_of(_waiting(session, handler.name), self._clock(), longest=longest)
        if chosen is None:
            return None
        with self._database.transaction() as session:
            row = session.get_one(EventDelivery, (chosen.event, handler.name))
            # Before it runs: one that takes the controller down with it is counted too.
            row.attempts += 1
            return Due(session.get_one(Event, chosen.event), row.attempts)

    def finish(
        self, event: int, handler: str, ended: Ended, *, next_at: datetime | None
    ) -> DeliveryState:
        """Note how it went. ``next_at`` None: a failure is given up."""
        with self._database.transaction() as session:
            row = session.get_one(EventDelivery, (event, handler))
            row.exit_status, row.output = ended.exit_status, ended.output
            if ended.ok:
                row.state = DeliveryState.DONE
            elif next_at is None:
                row.state = DeliveryState.GIVEN_UP
            row.next_at = next_at if row.state == DeliveryState.QUEUED else None
            row.finished_at = self._clock()
            return DeliveryState(row.state)

    def prune(self, handlers: Collection[HandlerSettings], *, keep: timedelta) -> int:
        """Forget what is old and waits for no handler that is still there; how many events.

        Never the newest: on SQLite its number would be given again.
        """
        names = [handler.name for handler in handlers]
        wanted = exists().where(
            EventDelivery.event == Event.id,
            EventDelivery.state == _QUEUED,
            EventDelivery.handler.in_(names),
        )
        with self._database.transaction() as session:
            newest = session.scalar(select(func.max(Event.id))) or 0
            old = select(Event.id).where(
                Event.at < self._clock() - keep, Event.id < newest, ~wanted
            )
            found = session.scalars(old).all()
            for first in range(0, len(found), 500):
                session.execute(delete(Event).where(Event.id.in_(found[first : first + 500])))
            return len(found)

    def _untold(self, session: Session, handler: HandlerSettings) -> list[int]:
        told = exists().where(
            EventDelivery.event == Event.id, EventDelivery.handler == handler.name
        )
        query = select(
            Event.id,
            Event.environment[REPLACED_BY_VARIABLE].as_string(),
            Event.environment[REPLAYED_FOR_VARIABLE].as_string(),
        ).where(Event.id > value_of(session, _told(handler)), ~told)
        if handler.types:
            query = query.where(Event.type.in_([str(one) for one in handler.types]))
        rows = session.execute(query.order_by(Event.id)).all()
        return [
            event
            for event, replaced_by, replayed_for in rows
            if (handler.versions or not replaced_by) and replayed_for in {None, handler.name}
        ]

    def _passed(self, session: Session, handler: HandlerSettings, before: datetime) -> int:
        """The newest event that can have no older one to come; 0 if the handler has passed it."""
        newest = session.scalar(select(func.max(Event.id)).where(Event.at < before)) or 0
        return newest if newest > value_of(session, _told(handler)) else 0


def _waiting(session: Session, handler: str) -> list[Waiting]:
    query = (
        select(
            Event.id,
            Event.type,
            Event.subject,
            Event.environment[RUN_VARIABLE].as_string(),
            EventDelivery.next_at,
        )
        .join(EventDelivery, EventDelivery.event == Event.id)
        .where(EventDelivery.handler == handler, EventDelivery.state == _QUEUED)
    )
    rows = session.execute(query.order_by(Event.id)).all()
    return [Waiting(*row) for row in rows]


def _told(handler: HandlerSettings) -> str:
    return f"events-told:{handler.name}"
