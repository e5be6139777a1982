"""When subscriptions are polled: each on its own interval, a few at once, one poll of each at most.

A poll that was asked for and one that was due are the same poll. The clock of lists is watched here
as well: what lapses is taken off the site list when it does, and a list that nobody could confirm
for ``alarm_age_s`` is told once.
"""

from __future__ import annotations

import asyncio
import random
from collections import Counter
from collections.abc import Mapping
from datetime import datetime, timedelta

import structlog
from sqlalchemy import select

from distrib.catalogue.clock import Clock
from distrib.catalogue.following import lapses_are_due, next_lapse, note_lapses
from distrib.catalogue.polling import Poll
from distrib.catalogue.publisher import Publisher
from distrib.catalogue.transitions import Change
from distrib.db.intake_models import Subscription
from distrib.db.session import Database
from distrib.errors import DistribError

log = structlog.get_logger(__name__)

AT_ONCE = 4
JITTER = 0.1
FIRST_RETRY_S = 60.0
LONGEST_RETRY_S = 3600.0
#: The clock is looked at this often, whatever is due: it may be set.
_LOOK_S = 30.0
_LEAST_WAIT_S = 0.05


def delay_s(interval_s: float, failures: int, *, jitter: float = 0.0) -> float:
    """Seconds to the next poll; ``jitter`` (-1 … 1) moves it by up to 10 %.

    After a failure sooner than the interval, then less and less often: twice the time each time, up
    to an hour or the interval, whichever is longer.
    """
    wait_s = interval_s
    if failures > 0:
        first_s = min(FIRST_RETRY_S, interval_s)
        wait_s = min(first_s * 2.0 ** min(failures - 1, 30), max(interval_s, LONGEST_RETRY_S))
    return wait_s * (1 + JITTER * jitter)


def next_in(row: Subscription, failures: int) -> timedelta:
    """The time to the next poll of a subscription."""
    jitter = random.SystemRandom().uniform(-1, 1)
    return timedelta(seconds=delay_s(row.interval_s, failures, jitter=jitter))


def age(row: Subscription, now: datetime) -> timedelta:
    """How long ago the list was known to be the newest; before the first, since it is wanted."""
    return now - (row.ok_at or row.added_at)


def is_stale(row: Subscription, now: datetime) -> bool:
    """Whether nobody could confirm the list for longer than the site wants to hear of."""
    return age(row, now) > timedelta(seconds=row.alarm_age_s)


class Schedule:
    """Polls what is due, and what is asked for."""

    def __init__(
        self,
        *,
        database: Database,
        poll: Poll,
        publisher: Publisher,
        clock: Clock,
        at_once: int = AT_ONCE,
    ) -> None:
        self._database = database
        self._poll = poll
        self._publisher = publisher
        self._clock = clock
        self._slots = asyncio.Semaphore(at_once)
        self._polls: dict[int, asyncio.Task[Subscription]] = {}
        self._wake = asyncio.Event()
        self._stale: set[int] = set()
        self._resting: set[int] = set()
        self._endings: Counter[str] = Counter()

    @property
    def endings(self) -> Mapping[str, int]:
        """How many polls have ended since the start, by code."""
        return dict(self._endings)

    @property
    def stale(self) -> frozenset[int]:
        """The subscriptions whose lists are too old, when last looked at."""
        return frozenset(self._stale)

    async def poll(self, subscription_id: int, *, actor: str) -> Subscription:
        """Poll now, or wait for the poll that is under way. Raises NotFound."""
        # The poll belongs to nobody: who asked for it may go away.
        return await asyncio.shield(self._started(subscription_id, actor))

    def wake(self) -> None:
        """Something may be due: a new subscription. In the loop's thread."""
        self._wake.set()

    async def run(self) -> None:
        """Poll what is due, for ever."""
        try:
            while True:
                self._wake.clear()
                wait_s = _LOOK_S
                try:
                    await asyncio.to_thread(self._watch_lapses)
                    due, wait_s = await asyncio.to_thread(self._look)
                    for subscription_id in due:
                        self._started(subscription_id, "controller")
                except DistribError as error:
                    log.warning("subscriptions-not-read", code=error.code, why=error.message)
                await self._woken(wait_s)
        finally:
            polls = list(self._polls.values())
            for poll in polls:
                poll.cancel()
            await asyncio.gather(*polls, return_exceptions=True)

    def _started(self, subscription_id: int, actor: str) -> asyncio.Task[Subscription]:
        task = self._polls.get(subscription_id)
        if task is None:
            name = f"poll of subscription {subscription_id}"
            task = asyncio.create_task(self._one(subscription_id, actor), name=name)
            self._polls[subscription_id] = task
            task.add_done_callback(lambda done: self._done(subscription_id, done))
        return task

    def _done(self, subscription_id: int, task: asyncio.Task[Subscription]) -> None:
        self._polls.pop(subscription_id, None)
        self._wake.set()
        if not task.cancelled() and (error := task.exception()) is not None:
            # It was unsubscribed meanwhile, or the database is away; who waits is told. How it
            # ended could not be written down, so it would be due again at once.
            log.info("poll-not-ended", subscription=subscription_id, why=str(error))
            self._resting.add(subscription_id)
            asyncio.get_running_loop().call_later(_LOOK_S, self._resting.discard, subscription_id)

    async def _one(self, subscription_id: int, actor: str) -> Subscription:
        async with self._slots:
            row = await self._poll.run(subscription_id, actor=actor)
        self._endings[row.code or ""] += 1
        await asyncio.to_thread(self._publish)
        return row

    async def _woken(self, wait_s: float) -> None:
        try:
            async with asyncio.timeout(wait_s):
                await self._wake.wait()
        except TimeoutError:
            return

    def _publish(self) -> None:
        try:
            self._publisher.publish_if_due()
        except DistribError as error:
            log.warning("site-list-not-published", why=error.message, code=error.code)

    def _watch_lapses(self) -> None:
        now = self._clock()
        with self._database.reading() as session:
            if not lapses_are_due(session, now):
                return
        with self._database.transaction() as session:
            note_lapses(session, Change(now, "controller"))
        self._publish()

    def _look(self) -> tuple[list[int], float]:
        """What is due now, and how long nothing more will be."""
        now = self._clock()
        with self._database.reading() as session:
            rows = list(session.scalars(select(Subscription).order_by(Subscription.next_at)))
            times = [lapse for lapse in [next_lapse(session, now)] if lapse is not None]
        self._alarm(rows, now)
        busy = self._polls.keys() | self._resting
        idle = [row for row in rows if row.id not in busy]
        due = [row.id for row in idle if row.next_at is None or row.next_at <= now]
        times += [row.next_at for row in idle if row.next_at is not None and row.next_at > now]
        wait_s = min(((time - now).total_seconds() for time in times), default=_LOOK_S)
        return due, min(max(wait_s, _LEAST_WAIT_S), _LOOK_S)

    def _alarm(self, rows: list[Subscription], now: datetime) -> None:
        stale = {row.id: row for row in rows if is_stale(row, now)}
        for row in rows:
            if row.id in stale and row.id not in self._stale:
                log.error(
                    "list-not-confirmed",
                    subscription=row.id,
                    url=row.url,
                    age_s=int(age(row, now).total_seconds()),
                    why=row.text,
                )
            elif row.id in self._stale and row.id not in stale:
                log.warning("list-confirmed-again", subscription=row.id, url=row.url)
        self._stale = set(stale)
