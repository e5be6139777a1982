"""The loop of deliveries: every handler by itself, one event at a time, again until it is taken.

At least once: an event that was under way when the controller ended is delivered again at its next
start. ``DISTRIB_EVENT_ID`` stays the same, so a handler can tell.
"""

from __future__ import annotations

import asyncio
import random
from collections.abc import Callable, Sequence
from datetime import datetime, timedelta

import structlog

from distrib.db.intake_models import DeliveryState
from distrib.db.session import Database
from distrib.errors import DistribError
from distrib.events.backoff import Backoff
from distrib.events.environment import Site, handler_environment
from distrib.events.process import Ended, RunAs, run_handler
from distrib.events.queue import Due, Queue
from distrib.events.settings import HandlerSettings

log = structlog.get_logger(__name__)

LOOK_S = 1.0
PRUNE_S = 3600.0


class Delivery:
    """Tells ``handlers`` what is in the outbox. ``run`` for ever.

    Raises ConfigInvalid for a handler's user that there is not.
    """

    def __init__(
        self,
        *,
        database: Database,
        handlers: Sequence[HandlerSettings],
        site: Site,
        clock: Callable[[], datetime],
        keep: timedelta,
        look_s: float = LOOK_S,
    ) -> None:
        self._queue = Queue(database, clock=clock)
        self._handlers = tuple(handlers)
        self._users = {handler.name: RunAs.named(handler.user) for handler in handlers}
        self._site = site
        self._clock = clock
        self._keep = keep
        self._look_s = look_s

    def register(self) -> None:
        """From here on a new handler is told; before the first change of this process."""
        self._queue.register(self._handlers)

    async def run(self) -> None:
        """Deliver until cancelled; a handler under way is ended then."""
        async with asyncio.TaskGroup() as tasks:
            for handler in self._handlers:
                tasks.create_task(self._serve(handler), name=f"events for {handler.name}")
            tasks.create_task(self._forget(), name="old events")

    async def _serve(self, handler: HandlerSettings) -> None:
        while True:
            try:
                await asyncio.to_thread(self._queue.take_up, handler)
                due = await asyncio.to_thread(self._queue.begin, handler)
            except DistribError as error:
                log.warning("events-not-read", handler=handler.name, error=error)
                due = None
            if due is None:
                await asyncio.sleep(self._look_s)
            else:
                await self._deliver(handler, due)

    async def _deliver(self, handler: HandlerSettings, due: Due) -> None:
        run_as = self._users[handler.name]
        ended = await run_handler(
            handler.command,
            handler_environment(
                due.event, command=handler.command, home=run_as.home, site=self._site
            ),
            run_as=run_as,
            time_limit_s=handler.time_limit_s,
            grace_s=handler.grace_s,
        )
        state = await self._noted(handler, due, ended)
        told = {
            "handler": handler.name,
            "number": due.event.id,
            "type": due.event.type,
            "subject": due.event.subject,
            "attempts": due.attempts,
        }
        if state == DeliveryState.DONE:
            log.info("event-delivered", **told)
        elif state == DeliveryState.QUEUED:
            log.warning("event-handler-failed", exit_status=ended.exit_status, **told)
        else:
            log.error("event-given-up", exit_status=ended.exit_status, **told)

    async def _noted(self, handler: HandlerSettings, due: Due, ended: Ended) -> DeliveryState:
        """However long it takes: what was delivered is not run again for a database's sake."""
        backoff = Backoff(handler.retry_first_s, handler.retry_longest_s, handler.give_up_s)
        wait_s = backoff.jittered_s(due.attempts, random.random())  # noqa: S311 - jitter
        over = ended.ok or backoff.is_over(due.attempts)
        next_at = None if over else self._clock() + timedelta(seconds=wait_s)
        while True:
            try:
                return await asyncio.to_thread(
                    self._queue.finish, due.event.id, handler.name, ended, next_at=next_at
                )
            except DistribError as error:
                log.warning("event-not-noted", handler=handler.name, error=error)
                await asyncio.sleep(self._look_s)

    async def _forget(self) -> None:
        while True:
            try:
                gone = await asyncio.to_thread(self._queue.prune, self._handlers, keep=self._keep)
                if gone:
                    log.info("events-forgotten", events=gone)
            except DistribError as error:
                log.warning("events-not-pruned", error=error)
            await asyncio.sleep(PRUNE_S)
