"""The MQTT 5 adapter: one supervised connection, an outbox that coalesces, handlers by topic.

aiomqtt's client is one connection; what stays over reconnects lives here. ``retain`` keeps only
the newest payload of a topic (progress must not queue up behind a slow broker), ``send`` keeps
messages in order up to a bound. Handlers run one after the other in the receiving task: they are
short and hand long work to their own tasks. A handler that raises is logged as the bug that it is,
and the connection goes on: whoever can send a message must not be able to cut us off with it.
"""

from __future__ import annotations

import asyncio
import logging
import random
import ssl
from collections import deque
from collections.abc import AsyncIterator, Callable, Coroutine
from contextlib import asynccontextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import aiomqtt
import structlog
from paho.mqtt.packettypes import PacketTypes
from paho.mqtt.properties import Properties
from pydantic import Field

from distrib.bus.schema import MESSAGE_MAX_BYTES
from distrib.bus.topics import DEFAULT_PREFIX, Topics
from distrib.config import Section
from distrib.errors import ConfigInvalid

log = structlog.get_logger(__name__)

Handler = Callable[[str, bytes], None]
"""Called with topic and payload; an empty payload is a retained message that was deleted."""

OUTBOX_MESSAGES = 10_000
FIRST_WAIT_S = 0.2
STEADY_S = 10.0
"""A connection that held this long was a good one: the next attempt comes soon again."""


class BusSettings(Section):
    """How to reach the broker."""

    host: str = Field("127.0.0.1", description="the broker's name or address")
    port: int = Field(8883, ge=1, le=65535, description="the broker's TLS port")
    ca: Path = Field(Path("/etc/distrib/site-ca.pem"), description="CA of the broker's certificate")
    cert: Path = Field(Path("/etc/distrib/client.pem"), description="own certificate; CN = name")
    key: Path = Field(Path("/etc/distrib/client.key"), description="its private key")
    prefix: str = Field(
        DEFAULT_PREFIX, pattern=r"^[\w-]+(/[\w-]+)*$", description="first part of every topic"
    )
    keepalive_s: int = Field(20, ge=1, le=3600, description="silence after which a side is dead")
    reconnect_max_s: float = Field(
        30.0, gt=0, description="longest wait between two attempts to connect; waits are jittered"
    )


@dataclass(frozen=True)
class Publication:
    """A message that is to go out. ``expiry_s`` is MQTT 5's message expiry."""

    topic: str
    payload: bytes
    qos: int
    retain: bool
    expiry_s: int | None = None


def client_tls(settings: BusSettings) -> ssl.SSLContext:
    """Mutual TLS with the site's CA alone. Raises ConfigInvalid naming the file at fault."""
    for key, path in (("ca", settings.ca), ("cert", settings.cert), ("key", settings.key)):
        if not path.is_file():
            raise ConfigInvalid(
                f"bus.{key} = {path}: no such file", hint="see docs/operations.md, Certificates"
            )
    try:
        context = ssl.create_default_context(cafile=str(settings.ca))
        context.load_cert_chain(settings.cert, settings.key)
    except (ssl.SSLError, OSError) as error:
        raise ConfigInvalid(
            f"bus.cert = {settings.cert}: {error}",
            hint="certificate, key and CA must be PEM files that fit each other",
        ) from None
    context.minimum_version = ssl.TLSVersion.TLSv1_2
    return context


class Bus:
    """A connection that is always being made. ``async with bus.running():`` is its lifetime."""

    def __init__(
        self,
        settings: BusSettings,
        *,
        client_id: str,
        will: Publication | None = None,
        on_connect: Callable[[], None] | None = None,
        session_expiry_s: int = 0,
    ) -> None:
        """``session_expiry_s``: how long the broker keeps QoS 1 messages for us while we are away.

        With 0, what is not retained is lost to us then."""
        self.topics = Topics(settings.prefix)
        self.connected = asyncio.Event()
        self._settings = settings
        self._client_id = client_id
        self._will = will
        self._on_connect = on_connect
        self._session_expiry_s = session_expiry_s
        self._handlers: dict[str, Handler] = {}
        self._newest: dict[str, Publication] = {}
        self._queue: deque[Publication] = deque(maxlen=OUTBOX_MESSAGES)
        self._wake = asyncio.Event()
        self._idle = asyncio.Event()
        self._idle.set()
        self._subscribed: set[str] = set()
        self._client: aiomqtt.Client | None = None
        self._background: set[asyncio.Task[None]] = set()

    def retain(self, topic: str, payload: bytes, *, qos: int = 1) -> None:
        """Publish retained; replaces what waits for the same topic. Never blocks.

        An empty payload deletes the retained message. One of more than MESSAGE_MAX_BYTES is
        dropped: the broker would cut the connection, each time that it is tried again."""
        if self._is_too_large(topic, payload):
            return
        self._newest[topic] = Publication(topic, payload, qos, retain=True)
        self._outbox_filled()

    def send(self, topic: str, payload: bytes, *, expiry_s: int | None = None) -> None:
        """Publish once with QoS 1, in order. Never blocks; the oldest give way past the bound."""
        if self._is_too_large(topic, payload):
            return
        self._queue.append(Publication(topic, payload, 1, retain=False, expiry_s=expiry_s))
        self._outbox_filled()

    def subscribe(self, topic_filter: str, handler: Handler) -> None:
        """Call ``handler`` for what matches, from now on and after every reconnect."""
        self._handlers[topic_filter] = handler
        self._start(self._subscribe_now())

    def unsubscribe(self, topic_filter: str) -> None:
        """Hear no more of ``topic_filter``."""
        self._handlers.pop(topic_filter, None)
        self._start(self._unsubscribe(topic_filter))

    @asynccontextmanager
    async def running(self) -> AsyncIterator[None]:
        """Keep connecting until the block is left; what waits in the outbox goes out first.

        Raises ConfigInvalid at once where the certificate files cannot be used.
        """
        client_tls(self._settings)
        task = asyncio.create_task(self._supervise(), name=f"bus {self._client_id}")
        task.add_done_callback(_log_bug)
        try:
            yield
            await self._drain(limit_s=2.0)
        finally:
            for running in (task, *self._background):
                running.cancel()
            await asyncio.gather(task, *self._background, return_exceptions=True)

    async def _drain(self, *, limit_s: float) -> None:
        if not self.connected.is_set():
            return
        try:
            async with asyncio.timeout(limit_s):
                await self._idle.wait()
        except TimeoutError:
            log.warning("bus-outbox-lost", waiting=len(self._newest) + len(self._queue))

    async def _supervise(self) -> None:
        loop = asyncio.get_running_loop()
        wait_s = FIRST_WAIT_S
        while True:
            started = loop.time()
            try:
                await self._connection()
            except* (aiomqtt.MqttError, OSError, TimeoutError, ConfigInvalid) as errors:
                # Certificates may be replaced under a running service: wait for good ones.
                lost = self.connected.is_set()
                why = "; ".join(sorted({str(error) for error in _leaves(errors)}))
                log.log(
                    logging.WARNING if lost else logging.INFO,
                    "bus-lost" if lost else "bus-unreachable",
                    broker=self._broker,
                    why=why,
                )
            finally:
                steady = self.connected.is_set() and loop.time() - started > STEADY_S
                self.connected.clear()
                self._client = None
            if steady:
                wait_s = FIRST_WAIT_S
            # Jitter: a broker that comes back must not meet all nodes at once.
            await asyncio.sleep(random.uniform(wait_s / 2, wait_s))  # noqa: S311
            wait_s = min(wait_s * 2, self._settings.reconnect_max_s)

    @property
    def _broker(self) -> str:
        return f"{self._settings.host}:{self._settings.port}"

    async def _connection(self) -> None:
        will = self._will
        async with aiomqtt.Client(
            self._settings.host,
            self._settings.port,
            identifier=self._client_id,
            protocol=aiomqtt.ProtocolVersion.V5,
            tls_context=client_tls(self._settings),
            keepalive=self._settings.keepalive_s,
            timeout=10,
            will=None
            if will is None
            else aiomqtt.Will(will.topic, will.payload, qos=will.qos, retain=will.retain),
            clean_start=self._session_expiry_s == 0,
            properties=self._session(),
            # A node's `desired` of hundreds of images arrives in one go.
            max_queued_incoming_messages=0,
        ) as client:
            self._client = client
            self._subscribed = set()
            await self._subscribe_missing()
            self.connected.set()
            # What was put into the outbox while there was no connection.
            self._wake.set()
            log.info("bus-connected", broker=self._broker)
            self._greet()
            async with asyncio.TaskGroup() as group:
                sender = group.create_task(self._send_all(client), name="bus outbox")
                try:
                    await self._receive(client)
                finally:
                    sender.cancel()

    def _session(self) -> Properties:
        properties = Properties(PacketTypes.CONNECT)  # type: ignore[no-untyped-call]
        properties.SessionExpiryInterval = self._session_expiry_s
        return properties

    def _greet(self) -> None:
        try:
            if self._on_connect is not None:
                self._on_connect()
        except Exception:
            # A bug, but one that must not end the connection for good.
            log.exception("bus-greeting-failed", broker=self._broker)

    async def _receive(self, client: aiomqtt.Client) -> None:
        async for message in client.messages:
            payload = message.payload if isinstance(message.payload, bytes) else b""
            for topic_filter, handler in list(self._handlers.items()):
                if message.topic.matches(topic_filter):
                    try:
                        handler(message.topic.value, payload)
                    except Exception:
                        # A bug, but one that a sender must not be able to make an outage of.
                        log.exception("bus-handler-failed", topic=message.topic.value)

    async def _send_all(self, client: aiomqtt.Client) -> None:
        while True:
            await self._wake.wait()
            self._wake.clear()
            while self._queue or self._newest:
                if self._queue:
                    publication = self._queue[0]
                    await self._publish(client, publication)
                    # Past its bound the queue may have dropped it in the meantime.
                    if self._queue and self._queue[0] is publication:
                        self._queue.popleft()
                else:
                    topic, publication = next(iter(self._newest.items()))
                    await self._publish(client, publication)
                    if self._newest.get(topic) is publication:
                        del self._newest[topic]
            self._idle.set()

    def _is_too_large(self, topic: str, payload: bytes) -> bool:
        if len(payload) <= MESSAGE_MAX_BYTES:
            return False
        log.error("bus-message-too-large", topic=topic, size_bytes=len(payload))
        return True

    def _outbox_filled(self) -> None:
        self._idle.clear()
        self._wake.set()

    async def _publish(self, client: aiomqtt.Client, publication: Publication) -> None:
        properties = None
        if publication.expiry_s is not None:
            properties = Properties(PacketTypes.PUBLISH)  # type: ignore[no-untyped-call]
            properties.MessageExpiryInterval = publication.expiry_s
        await client.publish(
            publication.topic,
            publication.payload,
            qos=publication.qos,
            retain=publication.retain,
            properties=properties,
        )

    def _start(self, step: Coroutine[Any, Any, None]) -> None:
        if self._client is None:
            # The next connection subscribes to what there is then.
            step.close()
            return
        task = asyncio.create_task(step, name=f"bus {self._client_id} subscriptions")
        self._background.add(task)
        task.add_done_callback(self._background.discard)
        task.add_done_callback(_log_bug)

    async def _subscribe_now(self) -> None:
        try:
            await self._subscribe_missing()
        except aiomqtt.MqttError as error:
            log.info("bus-subscribe-later", why=str(error))

    async def _subscribe_missing(self) -> None:
        client = self._client
        while client is not None and (missing := self._handlers.keys() - self._subscribed):
            topic_filter = min(missing)
            self._subscribed.add(topic_filter)
            try:
                codes = await client.subscribe(topic_filter, qos=1)
            except aiomqtt.MqttError:
                self._subscribed.discard(topic_filter)
                raise
            # A refusal is no exception in MQTT.
            refused = [str(code) for code in codes if getattr(code, "is_failure", False)]
            if refused:
                log.warning("bus-subscribe-refused", topic=topic_filter, why=refused[0])

    async def _unsubscribe(self, topic_filter: str) -> None:
        client = self._client
        if client is None or topic_filter in self._handlers:
            return
        self._subscribed.discard(topic_filter)
        try:
            await client.unsubscribe(topic_filter)
        except aiomqtt.MqttError as error:
            log.info("bus-unsubscribe-later", topic=topic_filter, why=str(error))


def _leaves(group: BaseExceptionGroup[Any]) -> list[BaseException]:
    leaves: list[BaseException] = []
    for error in group.exceptions:
        leaves.extend(_leaves(error) if isinstance(error, BaseExceptionGroup) else [error])
    return leaves


def _log_bug(task: asyncio.Task[None]) -> None:
    if not task.cancelled() and (error := task.exception()) is not None:
        log.error("bus-task-failed", task=task.get_name(), exc_info=error)
