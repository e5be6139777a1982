"""What the node tells the site: reports of its state, and events for the audit."""

from __future__ import annotations

import asyncio
import contextlib
import time
import uuid
from collections import Counter
from collections.abc import Callable, Iterable
from datetime import datetime
from typing import Any

from agent.authority import Authority
from agent.cache.cache import Cache
from agent.cache.holders import JobHolder, ProcessHolder, TimeHolder
from agent.cache.leases import Lease
from agent.cache.records import UNDER_WAY
from agent.cache.snapshot import Holding
from agent.pull.running import RunningPull
from agent.puller import Puller, Waiting
from distrib.bus.messages import (
    HOLDER_MAX_CHARS,
    REPORTED_HOLDERS,
    BadPeer,
    Event,
    EventKind,
    HolderKind,
    ImageReport,
    LeaseHolder,
    Link,
    NodeReason,
    Presence,
    Report,
    Request,
    RequestBody,
    State,
)
from distrib.bus.mqtt import Bus
from distrib.bus.schema import encode
from distrib.command import product_version
from distrib.swarm.events import PeerSample
from distrib.swarm.relay_pace import Meter

SPACING_S = 0.1
"""Changes that follow each other closely go out as one report."""

DEFAULT_INTERVAL_S = 2.0

REPORTED_LINKS = 32


class Reporter:
    """Publishes the report on every change, and at intervals while something moves."""

    def __init__(
        self,
        node: str,
        boot_id: str,
        *,
        bus: Bus,
        cache: Cache,
        authority: Authority,
        puller: Callable[[], Puller],
        stripe_ports: tuple[int, int],
        ssh_port: int = 0,
        clock: Callable[[], datetime],
    ) -> None:
        self._node = node
        self._boot_id = boot_id
        self._bus = bus
        self._cache = cache
        self._authority = authority
        self._puller = puller
        self._stripe_ports = stripe_ports
        self._ssh_port = ssh_port
        self._clock = clock
        self._changed = asyncio.Event()
        self._hello_due = False
        self._meters: dict[str, Meter] = {}

    def changed(self) -> None:
        """Something that a report says has changed. From the loop's thread only."""
        self._changed.set()

    def hello(self) -> None:
        """A connection was made: say who is there, and report, soon."""
        self._hello_due = True
        self._changed.set()

    def goodbye(self) -> None:
        """Say that the agent goes."""
        self._publish_presence(Presence(node=self._node, online=False, sent_at=self._clock()))

    def event(self, kind: EventKind, **fields: Any) -> None:
        """Tell the audit; repeats of an id are harmless."""
        event = Event(node=self._node, id=uuid.uuid4().hex, at=self._clock(), kind=kind, **fields)
        self._bus.send(self._bus.topics.node(self._node, "event"), encode(event))

    def request(self, body: RequestBody) -> None:
        """Ask the controller for something."""
        request = Request(node=self._node, sent_at=self._clock(), request=body)
        self._bus.send(self._bus.topics.node(self._node, "request"), encode(request))

    async def run(self) -> None:
        """Report until cancelled."""
        while True:
            desired = self._authority.desired
            interval_s = desired.report_interval_s if desired else DEFAULT_INTERVAL_S
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(interval_s):
                    await self._changed.wait()
            if self._changed.is_set() or self._puller().pulls:
                self._changed.clear()
                await self._publish()
                await asyncio.sleep(SPACING_S)

    async def _publish(self) -> None:
        report = await self.report()
        if self._hello_due:
            self._hello_due = False
            self._publish_presence(
                Presence(
                    node=self._node,
                    online=True,
                    agent_version=product_version(),
                    boot_id=self._boot_id,
                    swarm_port=self._stripe_ports[0],
                    stripe_ports=self._stripe_ports,
                    ssh_port=self._ssh_port,
                    cache_bytes=report.capacity_bytes,
                    cache_used_bytes=report.used_bytes,
                    sent_at=self._clock(),
                )
            )
        self._bus.retain(self._bus.topics.node(self._node, "report"), encode(report), qos=0)

    def _publish_presence(self, presence: Presence) -> None:
        self._bus.retain(self._bus.topics.node(self._node, "presence"), encode(presence))

    async def report(self) -> Report:
        """The state of the node as it is told to the site and to local callers."""
        # In a thread: the cache's lock may be held for as long as an instance takes to make.
        snapshot = await asyncio.to_thread(self._cache.snapshot)
        pulls = self._puller().pulls
        self._meters = {key: kept for key, kept in self._meters.items() if key in pulls}
        room, images = REPORTED_HOLDERS, []
        for holding in sorted(snapshot.holdings, key=_is_wanted_less):
            images.append(self._image(holding, room=room))
            room -= len(images[-1].holders)
        held = {image.infohash for image in images}
        waiting = self._puller().waiting
        images += [_waiting(one) for key, one in waiting.items() if key not in held]
        site_list = self._authority.site_list
        return Report(
            node=self._node,
            boot_id=self._boot_id,
            sent_at=self._clock(),
            generation=self._authority.generation,
            site_list_version=site_list.version if site_list else "",
            refused=dict(self._authority.refused),
            capacity_bytes=snapshot.capacity_bytes,
            used_bytes=snapshot.used_bytes,
            images=tuple(images),
        )

    def _other_rate_bps(self, running: RunningPull) -> int:
        """What comes by other transports than BitTorrent, by what came between two reports."""
        infohash, now_s = running.image.infohash, time.monotonic()
        brought = running.brought.total()
        meter = self._meters.get(infohash, Meter(brought, now_s, now_s))
        self._meters[infohash] = meter = meter.read(brought, now_s, now_s=now_s)
        return meter.rate_bps or 0

    def _image(self, holding: Holding, *, room: int) -> ImageReport:
        record = holding.record
        moving: dict[str, Any] = {
            "bytes_done": record.size_bytes if record.state is State.READY else 0,
            "fetched_bytes": record.fetched_bytes,
            "wasted_bytes": record.wasted_bytes,
            "copied_bytes": record.copied_bytes,
            "reason": record.reason,
            "text": record.text,
            "by_transport": dict(self._puller().seeding.brought.get(record.infohash, {})),
        }
        puller = self._puller()
        running = puller.pulls.get(record.infohash)
        pull = running.pull if running else None
        transfer = pull.transfer if pull else puller.seeding.get(record.infohash)
        if pull is not None and running is not None and record.state in UNDER_WAY:
            moving |= {
                "bytes_done": pull.done_bytes,
                "rate_bps": pull.transfer.rate_bps + self._other_rate_bps(running),
                "fetched_bytes": pull.fetched_bytes,
                "wasted_bytes": pull.wasted_bytes,
                "copied_bytes": pull.copied_bytes,
                "resumed_bytes": pull.resumed_bytes,
                "reason": running.reason,
                "text": running.text,
                "by_transport": running.by_transport,
            }
        waiting = puller.waiting.get(record.infohash)
        if waiting is not None and record.state is State.RESERVED:
            moving |= {"reason": waiting.reason, "text": waiting.text}
        if transfer is not None:
            moving["peers"] = len(transfer.peers)
            moving["links"] = links_of(
                transfer.samples, lambda address: puller.node_at(record.infohash, address)
            )
            failures = Counter(transfer.hash_failures)
            others = running.bad_peers if running else puller.seeding.bad_peers.get(record.infohash)
            failures.update(others or {})
            moving["bad_peers"] = tuple(
                BadPeer(
                    address=address,
                    node=puller.node_at(record.infohash, address),
                    hash_failures=count,
                )
                for address, count in sorted(failures.items())[:64]
            )
        return ImageReport(
            identifier=record.identifier,
            version=record.version,
            infohash=record.infohash,
            state=holding.state,
            active=record.active,
            bytes_total=record.size_bytes,
            leases=len(holding.leases),
            holders=tuple(_holder_told(lease) for lease in holding.leases[:room]),
            since=record.since,
            **moving,
        )


def links_of(
    samples: Iterable[PeerSample], name_of: Callable[[str], str | None]
) -> tuple[Link, ...]:
    """The peers with which payload flows, those with most first; both stripes of a peer as one."""
    flows: dict[str, tuple[int, int]] = {}
    for sample in samples:
        down, up = flows.get(sample.address, (0, 0))
        flows[sample.address] = (down + sample.download_bps, up + sample.upload_bps)
    moving = [(down, up, address) for address, (down, up) in flows.items() if down or up]
    moving.sort(key=lambda flow: (-(flow[0] + flow[1]), flow[2]))
    return tuple(
        Link(node=name_of(address), address=address, download_bps=down, upload_bps=up)
        for down, up, address in moving[:REPORTED_LINKS]
    )


def _is_wanted_less(holding: Holding) -> bool:
    """Who uses what was withdrawn is told first: there may not be room for all."""
    return holding.state is not State.BLOCKED


def _holder_told(lease: Lease) -> LeaseHolder:
    """A lease as a report tells it."""
    held: dict[str, Any]
    match lease.holder:
        case ProcessHolder(pid=pid):
            held = {"kind": HolderKind.PROCESS, "pid": pid}
        case JobHolder(scheduler=scheduler, job=job):
            held = {"kind": HolderKind.JOB, "job": f"{scheduler}:{job}"[:HOLDER_MAX_CHARS]}
        case TimeHolder(until=until):
            held = {"kind": HolderKind.TIME, "until": until}
    return LeaseHolder(
        lease=lease.lease, user=lease.user[:HOLDER_MAX_CHARS], since=lease.since, **held
    )


def _waiting(one: Waiting) -> ImageReport:
    return ImageReport(
        identifier=one.image.identifier,
        version=one.image.version,
        infohash=one.image.infohash,
        state=State.ABSENT,
        reason=one.reason or NodeReason.INTERNAL,
        text=one.text,
        since=one.since,
    )
