"""The one task that changes rollouts, and the queue that leads to it.

Bus messages, calls of the API and the clock are put into the queue. The task takes what is there,
changes the state in memory, *settles* it (``State.settle``), and only then publishes. After a
restart the state comes from the database and the retained messages, our own among them, so that
nothing is said twice.
"""

from __future__ import annotations

import asyncio
import secrets
from collections.abc import Awaitable, Callable, Mapping
from dataclasses import dataclass
from datetime import datetime, timedelta
from typing import Any, TypeVar

import structlog
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

from distrib.bus.messages import (
    Event,
    ImageWanted,
    ParentLost,
    Presence,
    Report,
    Request,
    SeederPresence,
    TokensWanted,
)
from distrib.bus.mqtt import Bus
from distrib.errors import DistribError
from distrib.rollout.desired import open_own
from distrib.rollout.fleet import Cleared, Heard
from distrib.rollout.orders import ORDERS_EXPIRE, Outbox
from distrib.rollout.state import State

log = structlog.get_logger(__name__)

TICK_S = 1.0
LOOK_S = 0.25
"""So often at who is slow: half a second of a link at a quarter is felt by all who come after."""
COALESCE_S = 0.05
SYNC_AGAIN = timedelta(seconds=5)
_BATCH = 2000

T = TypeVar("T")


@dataclass(frozen=True)
class _Said:
    topic: str
    payload: bytes


@dataclass(frozen=True)
class _Call:
    action: Callable[[], Awaitable[Any]]
    answer: asyncio.Future[Any]


class _Connected:
    pass


class _Tick:
    pass


class _Look:
    pass


class Loop:
    """Feeds ``state`` from ``bus``, and ``bus`` from ``state``; runs calls in between."""

    def __init__(
        self,
        state: State,
        bus: Bus,
        *,
        key: Ed25519PrivateKey,
        clock: Callable[[], datetime],
        on_changed: Callable[[frozenset[str]], None],
        on_wanted: Callable[[str, ImageWanted], None],
    ) -> None:
        self._synced = asyncio.Event()
        self._state = state
        self._bus = bus
        self._key = key
        self._clock = clock
        self._on_changed = on_changed
        self._on_wanted = on_wanted
        self._queue: asyncio.Queue[_Said | _Call | _Connected | _Tick | _Look] = asyncio.Queue()
        self._sync_topic = f"{bus.topics.prefix}/controller/sync"
        self._sync_token = ""
        self._asked_at: datetime | None = None
        self._own: dict[str, bytes] = {}
        self._events: list[Event] = []
        self._subscribe()

    def _subscribe(self) -> None:
        """Before the first connection: what the broker kept for us comes with it, and is gone for
        good where nobody listens yet."""
        topics = self._bus.topics
        for leaf in ("presence", "report", "request", "event"):
            self._bus.subscribe(topics.every_node(leaf), self._on_message)
        self._bus.subscribe(topics.every_seeder, self._on_message)
        self._bus.subscribe(topics.every_node("desired"), self._on_own)
        self._bus.subscribe(self._sync_topic, self._on_message)

    async def run(self) -> None:
        """Serve until cancelled."""
        async with asyncio.TaskGroup() as group:
            group.create_task(self._serve(), name="rollouts")
            group.create_task(self._every(TICK_S, _Tick()), name="rollouts clock")
            group.create_task(self._every(LOOK_S, _Look()), name="rollouts pace")

    @property
    def synced(self) -> bool:
        """Whether all that was retained has been heard once."""
        return self._synced.is_set()

    async def wait_synced(self) -> None:
        """Until then."""
        await self._synced.wait()

    def connected(self) -> None:
        """The bus has a connection, and has subscribed."""
        self._queue.put_nowait(_Connected())

    async def call(self, action: Callable[[], Awaitable[T]]) -> T:
        """Run ``action`` in the task, before anything that comes later; its result or error."""
        answer: asyncio.Future[T] = asyncio.get_running_loop().create_future()
        self._queue.put_nowait(_Call(action, answer))
        return await answer

    def put(self, action: Callable[[], Awaitable[object]]) -> None:
        """As ``call``, without waiting; a failure is logged. From the loop's thread."""
        answer: asyncio.Future[object] = asyncio.get_running_loop().create_future()
        answer.add_done_callback(_log_failure)
        self._queue.put_nowait(_Call(action, answer))

    async def _serve(self) -> None:
        while True:
            batch = [await self._queue.get()]
            while not self._queue.empty() and len(batch) < _BATCH:
                batch.append(self._queue.get_nowait())
            for one in batch:
                await self._take(one)
            if self.synced:
                await self._settle()
            if all(isinstance(one, _Said) for one in batch):
                # Nodes come and go by the hundred: plan once for all of them.
                await asyncio.sleep(COALESCE_S)

    async def _every(self, period_s: float, one: _Tick | _Look) -> None:
        while True:
            await asyncio.sleep(period_s)
            self._queue.put_nowait(one)

    async def _settle(self) -> None:
        events, self._events = self._events, []
        try:
            outbox = await self._state.settle(events)
        except DistribError as error:
            # Nothing was said that is not on disk; the next tick tries again.
            log.warning("rollouts-not-saved", code=error.code, why=error.message, hint=error.hint)
            self._events = events + self._events
            return
        self._publish(outbox)
        if outbox.changed:
            self._on_changed(outbox.changed)

    def _publish(self, outbox: Outbox) -> None:
        self._tell(outbox.desired)
        expiry_s = int(ORDERS_EXPIRE.total_seconds())
        for node, payload in outbox.orders.items():
            self._bus.send(self._bus.topics.node(node, "orders"), payload, expiry_s=expiry_s)

    def _tell(self, desired: Mapping[str, bytes]) -> None:
        for node, payload in desired.items():
            self._bus.retain(self._bus.topics.node(node, "desired"), payload)

    # -- what comes in --------------------------------------------------------------------------

    def _on_message(self, topic: str, payload: bytes) -> None:
        self._queue.put_nowait(_Said(topic, payload))

    def _on_own(self, topic: str, payload: bytes) -> None:
        parsed = self._bus.topics.parse_node(topic)
        if parsed is not None and not self.synced:
            self._own[parsed[0]] = payload

    async def _take(self, one: _Said | _Call | _Connected | _Tick | _Look) -> None:
        match one:
            case _Said(topic, payload) if topic == self._sync_topic:
                if payload == self._sync_token.encode():
                    self._sync()
            case _Said(topic, payload):
                heard = self._state.fleet.hear(topic, payload)
                if heard is not None:
                    self._hear(heard)
            case _Call(action, answer):
                await _answer(action, answer)
            case _Connected():
                self._ask_sync()
            case _Tick() if self._bus.connected.is_set():
                self._on_tick()
            case _Look() if self._bus.connected.is_set() and self.synced:
                self._state.time_passed(clocks=False)

    def _hear(self, heard: Heard) -> None:
        match heard.message:
            case Presence(node=node) | Cleared(node=node, leaf="presence"):
                self._state.presence_changed(node, heard.before)
            case Report(node=node):
                self._state.report_changed(node, heard.before)
            case SeederPresence() as seeder:
                self._state.seeder_changed(seeder, heard.before)
            case Request(request=ParentLost() as lost, node=node):
                self._state.parent_lost(lost, child=node)
            case Request(request=TokensWanted() as tokens, node=node):
                self._state.granting.ask(node, tokens, self._state.assigned.get(node, ()))
            case Request(request=ImageWanted() as wanted, node=node):
                self._on_wanted(node, wanted)
            case Event() as event:
                self._events.append(event)
            case _:
                pass

    def _on_tick(self) -> None:
        if self.synced:
            self._state.time_passed()
        elif self._asked_at is not None and self._clock() - self._asked_at > SYNC_AGAIN:
            self._ask_sync()

    def _ask_sync(self) -> None:
        """Ask to hear ourselves: before that everything that was retained has arrived."""
        self._sync_token = secrets.token_hex(8)
        self._asked_at = self._clock()
        self._bus.send(self._sync_topic, self._sync_token.encode())

    def _sync(self) -> None:
        if self.synced:
            # The broker may have lost what it retained; a node that has it already is told nothing
            # new by the same generation.
            self._tell(self._state.sent)
        else:
            opened = {node: open_own(node, raw, self._key) for node, raw in self._own.items()}
            own = {node: desired for node, desired in opened.items() if desired is not None}
            self._state.adopt(own, self._own)
            self._own = {}
            self._synced.set()
            self._bus.unsubscribe(self._bus.topics.every_node("desired"))
        self._state.listening()
        fleet = self._state.fleet
        log.info("rollouts-synced", nodes=len(fleet.inventory), online=len(fleet.online()))


async def _answer(action: Callable[[], Awaitable[Any]], answer: asyncio.Future[Any]) -> None:
    try:
        result = await action()
    except Exception as error:  # noqa: BLE001
        # Whoever called gets it; a failing call must not end the task.
        if not answer.done():
            answer.set_exception(error)
    else:
        if not answer.done():
            answer.set_result(result)


def _log_failure(answer: asyncio.Future[object]) -> None:
    if not answer.cancelled() and (error := answer.exception()) is not None:
        log.error("rollouts-change-not-taken", exc_info=error)
