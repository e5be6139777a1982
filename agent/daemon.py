"""The agent: its parts put together, started in order and ended in reverse."""

from __future__ import annotations

import asyncio
import contextlib
import time
from collections.abc import AsyncIterator, Mapping
from datetime import UTC, datetime

import structlog

from agent.authority import Authority
from agent.cache.cache import Cache
from agent.cache.holders import current_boot_id
from agent.cache.leases import Lease
from agent.collecting import Collector
from agent.configured import makers_of, sessions_of, stores_of, stripe_ports_of
from agent.damage import Damage
from agent.giving import Giving
from agent.inbox import Inbox
from agent.launches import Launches
from agent.launching import Launcher
from agent.lending import Lending
from agent.news import CacheNews
from agent.operations import Operations
from agent.pull.copying import DiskRate
from agent.pull.parts import PullParts
from agent.pull.previous import PreviousVersions
from agent.pull.pulling import ParentLost as ParentGone
from agent.pull.resume import ResumeFiles
from agent.pull.torrents import TorrentFiles
from agent.puller import Puller
from agent.reporter import Reporter
from agent.scrubber import Scrubber
from agent.settings import AgentSettings
from agent.socket.server import SocketServer
from agent.systemd import notify, watchdog_interval_s
from agent.traffic import HostTraffic, link_of
from agent.upkeep import Upkeep
from agent.watching import Watching
from distrib.bus.messages import Caps, ParentLost, Presence
from distrib.bus.mqtt import Bus, Publication
from distrib.bus.schema import encode
from distrib.bus.topics import Topics
from distrib.command import product_version
from distrib.errors import DistribError
from distrib.lock import hold
from distrib.trust.directory import load_trust_directory

log = structlog.get_logger(__name__)

REAP_INTERVAL_S = 60.0


def utc_now() -> datetime:
    return datetime.now(UTC)


class Agent:
    """One node's agent. ``run`` until ``stop`` is set."""

    def __init__(self, settings: AgentSettings) -> None:
        self._settings = settings
        # Before the stores: they clean up what is left of earlier agents.
        self._locks = [
            hold(directory / ".agent.lock", who="agent", hint="one agent per directory and node")
            for directory in (settings.state_dir, settings.cache.directory)
        ]
        self._boot_id = current_boot_id()
        self._topics = Topics(settings.bus.prefix)
        self._news = CacheNews()
        self._overran: set[str] = set()
        self._sessions = sessions_of(settings)
        self._authority = Authority(
            settings.state_dir,
            node=settings.node,
            trust=load_trust_directory(settings.trust.ca_directory),
            max_age_s=settings.trust.max_age_s,
            clock_skew_s=settings.trust.clock_skew_s,
            clock=utc_now,
        )
        stores = stores_of(settings)
        self._cache = Cache(
            state_dir=settings.state_dir,
            stores=stores,
            clock=utc_now,
            low_watermark=settings.cache.low_watermark,
            high_watermark=settings.cache.high_watermark,
            on_change=self._news.on_change,
            before_evict=self._before_evict,
            on_evict=self._news.on_evict,
        )
        self._watching = Watching(
            stores, self._cache, settings.cache.lvm, tell=self._news.on_trouble
        )
        self._torrents = TorrentFiles(settings.state_dir / "torrents")
        self._resume = ResumeFiles(settings.state_dir / "resume", boot_id=self._boot_id)
        self._bus = Bus(
            settings.bus,
            client_id=settings.node,
            will=Publication(
                self._topics.node(settings.node, "presence"),
                encode(Presence(node=settings.node, online=False)),
                qos=1,
                retain=True,
            ),
            on_connect=self._on_connect,
        )
        self._reporter = Reporter(
            settings.node,
            self._boot_id,
            bus=self._bus,
            cache=self._cache,
            authority=self._authority,
            puller=lambda: self._puller,
            stripe_ports=stripe_ports_of(settings),
            ssh_port=settings.tsunami.ssh_port,
            clock=utc_now,
        )
        self._traffic = HostTraffic(
            self._sessions.values(),
            self._authority,
            address=settings.swarm.address,
            link=link_of(
                settings.swarm.address,
                named=settings.swarm.interface,
                link_bps=settings.swarm.link_bps,
                stated="link_bps" in settings.swarm.model_fields_set,
            ),
            own_caps=Caps(
                download_bps=settings.swarm.download_bps, upload_bps=settings.swarm.upload_bps
            ),
            now_s=time.monotonic,
        )
        self._inbox = Inbox(
            self._bus,
            self._topics,
            settings.node,
            authority=self._authority,
            puller=lambda: self._puller,
            refused=self._reporter.changed,
            told=self._traffic.look,
        )
        self._makers = makers_of(settings)
        self._damage = Damage(self._cache, self._news, puller=lambda: self._puller)
        self._puller = Puller(
            PullParts(
                cache=self._cache,
                sessions=self._sessions,
                torrents=self._torrents,
                resume=self._resume,
                previous=PreviousVersions(
                    self._cache,
                    self._torrents,
                    address=settings.swarm.address,
                    link_bps=settings.swarm.link_bps,
                    disk=DiskRate(settings.cache.disk_bps),
                ),
                on_parent_lost=self._on_parent_lost,
                on_damaged=self._damage.found_in,
                changed=self._reporter.changed,
                makers=self._makers,
                stalled_s=settings.sources.stalled_s,
                on_tokens_wanted=self._reporter.request,
            ),
            self._authority,
            own_caps=Caps(
                download_bps=settings.swarm.download_bps, upload_bps=settings.swarm.upload_bps
            ),
            want_torrent=self._inbox.want_torrent,
            changed=self._reporter.changed,
            clock=utc_now,
        )
        self._scrubber = Scrubber(
            self._cache,
            self._torrents,
            settings.state_dir,
            settings=settings.scrub,
            node=settings.node,
            busy=lambda: bool(self._puller.pulls),
            on_bad=self._damage.found,
            clock=utc_now,
        )
        self._collector = Collector(
            self._cache,
            self._torrents,
            self._resume,
            wanted=self._wanted,
            forget_torrent=self._inbox.forget_torrent,
        )
        self._launcher = Launcher(settings, clock=utc_now)

    async def run(self, stop: asyncio.Event) -> None:
        """Serve until ``stop``; then end pulls and seeding, and say goodbye on the bus."""
        self._news.begin(
            self._reporter,
            changed=self._collector.look,
            repair=self._puller.wake,
            served=self._puller.seeding,
            let_go=self._puller.let_go,
        )
        await asyncio.to_thread(self._authority.load)
        self._traffic.look()
        found = await asyncio.to_thread(self._cache.recover)
        for fault in found.corrupt:
            log.warning("state-corrupt", why=fault.message, hint=fault.hint)
        for lease in found.dropped_leases:
            log.info("lease-dropped", lease=lease.lease, image=lease.image)
        operations = Operations(
            self._settings,
            authority=self._authority,
            cache=self._cache,
            upkeep=lambda resolve: Upkeep(
                cache=self._cache,
                torrents=self._torrents,
                collector=self._collector,
                scrubber=self._scrubber,
                damage=self._damage,
                resolve=resolve,
            ),
            launches=self._launches,
            reporter=self._reporter,
            scrubbed=self._scrubber.status,
            traffic=self._traffic.status,
            clock=utc_now,
        )
        lending = Lending(
            self._cache,
            self._authority,
            torrents=self._torrents,
            pulls=self._puller.pulls,
            user=self._settings.tsunami.user,
        )
        server = SocketServer(
            self._settings.socket,
            operations.table | lending.table,
            admin_groups=frozenset(self._settings.admin_groups),
        )
        self._inbox.open()
        held = {lease.lease: lease for lease in await asyncio.to_thread(self._cache.leases)}
        self._launcher.adopt(held)
        async with contextlib.AsyncExitStack() as stack:
            for session in self._sessions.values():
                await stack.enter_async_context(session.running())
            await stack.enter_async_context(server.running())
            await stack.enter_async_context(self._bus.running())
            for maker in self._makers:
                stack.push_async_callback(maker.close)
            await stack.enter_async_context(self._tasks())
            self._puller.wake()
            notify("READY=1")
            log.info("agent-ready", node=self._settings.node, version=product_version())
            await stop.wait()
            notify("STOPPING=1")
            self._launcher.leave()
            log.info("agent-stopping", node=self._settings.node)
        await self._launcher.close()

    @contextlib.asynccontextmanager
    async def _tasks(self) -> AsyncIterator[None]:
        async with asyncio.TaskGroup() as group:
            tasks = [
                group.create_task(self._puller.run(), name="puller"),
                group.create_task(self._reporter.run(), name="reporter"),
                group.create_task(self._reap(), name="reap leases"),
                group.create_task(self._watching.run(), name="watch instances"),
                group.create_task(self._collector.run(), name="collector"),
                group.create_task(self._scrubber.run(), name="scrub"),
                group.create_task(self._watchdog(), name="watchdog"),
                group.create_task(self._traffic.run(), name="traffic"),
            ]
            try:
                yield
            finally:
                for task in tasks:
                    task.cancel()
                self._reporter.goodbye()

    # -- parts ----------------------------------------------------------------------------------

    def _launches(self, giving: Giving) -> Launches:
        launches = Launches(
            self._settings,
            giving=giving,
            cache=self._cache,
            launcher=self._launcher,
            reporter=self._reporter,
        )
        self._inbox.end_uses = launches.end_uses
        return launches

    def _on_connect(self) -> None:
        self._reporter.hello()

    def _wanted(self) -> set[str] | None:
        desired = self._authority.desired
        return None if desired is None else {image.infohash for image in desired.images}

    def _before_evict(self, infohash: str) -> None:
        """Under the cache's lock: whoever reads a volume lets go of it before it goes."""
        self._scrubber.before_evict(infohash)
        self._news.before_evict(infohash)

    def _on_parent_lost(self, infohash: str, lost: ParentGone) -> None:
        now_from = lost.now_from.node if lost.now_from else ""
        log.info(
            "parent-lost",
            infohash=infohash,
            parent=lost.parent.node,
            why=lost.reason,
            now_from=now_from,
        )
        self._reporter.request(
            ParentLost(
                infohash=infohash,
                parent=lost.parent.node,
                now_from=now_from or None,
                reason=lost.reason,
            )
        )

    # -- the agent's own ------------------------------------------------------------------------

    async def _reap(self) -> None:
        """End leases with their holders, and what a crash left of launches."""
        while True:
            for lease in await asyncio.to_thread(self._cache.reap_dead_leases):
                log.info("lease-reaped", lease=lease.lease, image=lease.image, user=lease.user)
                self._reporter.changed()
            held = {lease.lease: lease for lease in await asyncio.to_thread(self._cache.leases)}
            keep = held.keys() - await self._overrun(held)
            try:
                await self._launcher.end_orphans(set(keep))
            except DistribError as error:
                log.warning("orphans-not-checked", code=error.code, why=error.message)
            await asyncio.sleep(REAP_INTERVAL_S)

    async def _overrun(self, held: Mapping[str, Lease]) -> set[str]:
        """Tell once of each instance that has outgrown its room; the leases whose instances have
        outgrown what the site allows at all: their guests are ended."""
        limit = self._settings.cache.max_cow_bytes
        found = await asyncio.to_thread(self._cache.overruns)
        over = {one.lease: one for one in found if one.lease in held}
        for lease in over.keys() - self._overran:
            self._news.tell_overrun(held[lease], over[lease])
        self._overran = set(over)
        return {key for key, one in over.items() if one.used_bytes > max(limit, one.cow_bytes)}

    async def _watchdog(self) -> None:
        interval_s = watchdog_interval_s()
        while interval_s is not None:
            notify("WATCHDOG=1")
            await asyncio.sleep(interval_s)
