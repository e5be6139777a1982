"""What arrives for this node on the bus, and who is told of it."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import Awaitable, Callable, Collection, Coroutine, Iterator

import structlog

from agent.authority import Authority
from agent.puller import Puller
from distrib.bus.messages import EndUses, Orders
from distrib.bus.mqtt import Bus
from distrib.bus.topics import Topics
from distrib.errors import DistribError

log = structlog.get_logger(__name__)


EndUsesOf = Callable[[str, str], Awaitable[Collection[str]]]
"""Ends guests and leases of an info-hash, for a reason; returns the leases."""


class Inbox:
    """Subscribes to the node's topics. What is refused is counted and named, and changes nothing.

    ``refused`` is called after each refusal, ``told`` before anybody acts on what was accepted: who
    is served, and how fast, may be another."""

    def __init__(
        self,
        bus: Bus,
        topics: Topics,
        node: str,
        *,
        authority: Authority,
        puller: Callable[[], Puller],
        refused: Callable[[], None],
        told: Callable[[Orders | None], None] = lambda _: None,
    ) -> None:
        self._bus = bus
        self._topics = topics
        self._node = node
        self._authority = authority
        self._puller = puller
        self._refused = refused
        self._told = told
        self._torrents: set[str] = set()
        self._orders: set[asyncio.Task[None]] = set()
        self.end_uses: EndUsesOf | None = None

    def open(self) -> None:
        """Subscribe to what is always heard; before the bus connects, or kept messages are lost."""
        self._bus.subscribe(self._topics.crl, self._on_crl)
        self._bus.subscribe(self._topics.site_list, self._on_site_list)
        self._bus.subscribe(self._topics.farm, self._on_farm)
        self._bus.subscribe(self._topics.node(self._node, "desired"), self._on_desired)
        self._bus.subscribe(self._topics.node(self._node, "orders"), self._on_orders)

    def want_torrent(self, infohash: str) -> None:
        """Hear the torrent's retained message."""
        if infohash not in self._torrents:
            self._torrents.add(infohash)
            self._bus.subscribe(self._topics.torrent(infohash), self._on_torrent)

    def forget_torrent(self, infohash: str) -> None:
        """Its retained message is heard again when it is wanted again."""
        if infohash in self._torrents:
            self._torrents.discard(infohash)
            self._bus.unsubscribe(self._topics.torrent(infohash))

    def _on_crl(self, topic: str, payload: bytes) -> None:
        with self._refusals(topic):
            if payload and self._authority.offer_crl(payload):
                self._told(None)
                self._puller().wake()

    def _on_site_list(self, topic: str, payload: bytes) -> None:
        with self._refusals(topic):
            if payload and self._authority.offer_site_list(payload):
                log.info("site-list-accepted")
                self._told(None)
                self._puller().wake()

    def _on_desired(self, topic: str, payload: bytes) -> None:
        # Empty means no new orders, never eviction.
        with self._refusals(topic):
            if payload:
                self._authority.offer_desired(payload)
                self._told(None)
                self._puller().wake()

    def _on_farm(self, topic: str, payload: bytes) -> None:
        with self._refusals(topic):
            if payload:
                self._authority.offer_farm(payload)
                self._told(None)

    def _on_orders(self, topic: str, payload: bytes) -> None:
        with self._refusals(topic):
            if payload:
                orders = self._authority.offer_orders(payload)
                self._told(orders)
                self._begin(self._puller().obey(orders))
                for order in orders.orders:
                    if isinstance(order, EndUses):
                        self._begin(self._end(order))

    def _on_torrent(self, topic: str, payload: bytes) -> None:
        with self._refusals(topic):
            if payload:
                self._puller().offer_torrent(topic.rpartition("/")[2], payload)

    def _begin(self, work: Coroutine[object, object, None]) -> None:
        task = asyncio.create_task(work, name="orders")
        self._orders.add(task)
        task.add_done_callback(self._orders.discard)

    async def _end(self, order: EndUses) -> None:
        if self.end_uses is not None:
            leases = await self.end_uses(order.infohash, order.text)
            log.warning("uses-ended", infohash=order.infohash, leases=leases, why=order.text)

    @contextlib.contextmanager
    def _refusals(self, topic: str) -> Iterator[None]:
        try:
            yield
        except DistribError as error:
            log.warning("refused", topic=topic, code=error.code, why=error.message)
            self._refused()
