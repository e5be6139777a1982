"""The rollout service: what the API asks for, over the one task that changes rollouts.

Implements ``distrib.api.services.RolloutService``; it lives by ``run`` beside ``bus.running()``.
"""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncIterator, Callable, Mapping
from datetime import UTC, datetime, timedelta
from typing import TypeVar

from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from sqlalchemy.orm import Session

from distrib.bus.messages import ImageWanted
from distrib.bus.mqtt import Bus, BusSettings
from distrib.db.references import USABLE, aliases_of, require_unexpired, resolve
from distrib.db.session import Database
from distrib.errors import Conflict, NetworkError, NotFound
from distrib.rollout import machine, records
from distrib.rollout.capping import set_caps
from distrib.rollout.desired import Assigned, with_assigned, without_rollout
from distrib.rollout.granting import DEFAULT_SEEDER_BPS
from distrib.rollout.loop import Loop
from distrib.rollout.plan import Targets, parse_selector, targets
from distrib.rollout.prestage_settings import PrestageSettings
from distrib.rollout.records import CONTROLLER, RolloutRecord
from distrib.rollout.state import State
from distrib.rollout.swarm_view import swarm_view
from distrib.rollout.uses import Uses
from distrib.rollout.views import Document, node_view, rollout_view

WATCH_GAP_S = 0.2
LISTED = 100
SYNC_WAIT_S = 2.0
SESSION_EXPIRY_S = 7 * 86400
"""Events of nodes are for the audit: the broker keeps them while the controller is away."""

T = TypeVar("T")
Held = dict[str, tuple[Assigned, ...]]
Documents = list[Document]


def utc_now() -> datetime:
    """The host's clock."""
    return datetime.now(UTC)


class Rollouts:
    """Rollouts of one site; ``bus`` is the controller's connection."""

    def __init__(
        self,
        *,
        database: Database,
        bus: BusSettings,
        orders_key: Ed25519PrivateKey,
        clock: Callable[[], datetime] = utc_now,
        silent_s: float = machine.DEFAULT_SILENT_S,
        token_bps: int = DEFAULT_SEEDER_BPS,
        prestage: PrestageSettings | None = None,
        on_connect: Callable[[], None] = lambda: None,
    ) -> None:
        self.bus = Bus(
            bus,
            client_id=CONTROLLER,
            on_connect=self._on_connect,
            session_expiry_s=SESSION_EXPIRY_S,
        )
        self._also_on_connect = on_connect
        self._database = database
        self._clock = clock
        self._silent_s = silent_s
        self._state = State(self.bus.topics, database=database, key=orders_key, clock=clock)
        self._state.granting.limit(token_bps)
        self._loop = Loop(
            self._state,
            self.bus,
            key=orders_key,
            clock=clock,
            on_changed=self._wake_watchers,
            on_wanted=self._on_wanted,
        )
        self.uses = Uses(
            self._state,
            self._loop,
            database=database,
            prestage=prestage or PrestageSettings(),
            clock=clock,
            silent_s=silent_s,
        )
        self._thread_loop: asyncio.AbstractEventLoop | None = None
        self._watchers: dict[str, set[asyncio.Event]] = {}
        self._ending = False

    async def run(self) -> None:
        """Serve until cancelled."""
        self._thread_loop = asyncio.get_running_loop()
        await asyncio.to_thread(self._state.load, self._silent_s)
        async with asyncio.TaskGroup() as group:
            group.create_task(self._loop.run(), name="rollouts loop")
            group.create_task(self.uses.run(), name="wants")

    async def synced(self) -> None:
        """Until all that nodes have said of themselves was heard."""
        await self._loop.wait_synced()

    @property
    def refused(self) -> Mapping[str, int]:
        """Messages of nodes that were refused, by code."""
        return self._state.fleet.refused

    # -- what the API asks ----------------------------------------------------------------------

    async def start(self, request: Document, actor: str) -> Document:
        """Accept ``{"image", "nodes", "download_bps"?, "upload_bps"?, "traffic"?, "transport"?,
        "deadline_s"?}``.

        Raises NotFound for an unknown image, a name that no node has, a selector that matches no
        online node; TrustRefused where the image has lapsed; OperatorError for a selector that
        cannot be read; NetworkError before the broker was reached.
        """
        return await self._loop.call(lambda: self._start(request, actor))

    async def abort(self, rollout: str, actor: str) -> Document:
        """Nodes stop pulling, nothing is evicted. Raises NotFound, Conflict where it has ended."""
        return await self._loop.call(lambda: self._abort(rollout, actor))

    async def set_caps(self, rollout: str, caps: Mapping[str, int], actor: str) -> Document:
        """Cap a rollout's nodes by ``download_bps``, ``upload_bps``. Raises NotFound."""

        async def change() -> Document:
            now = self._clock()
            kept = await set_caps(self._state, self._database, rollout, caps, actor=actor, now=now)
            return rollout_view(kept)

        return await self._loop.call(change)

    async def forget(self, name: str, actor: str) -> None:
        """Take a node off the inventory and clear its retained topics. Raises NotFound.

        What a connected node says of itself stays on the bus: it would not say it again.
        """
        await self._loop.call(lambda: self._forget(name, actor))

    async def show(self, rollout: str) -> Document:
        """One rollout with its nodes. Raises NotFound."""
        live = self._state.rollouts.get(rollout)
        if live is None:
            live = await self._read(lambda session: records.load_rollout(session, rollout))
        return rollout_view(live)

    async def list(self) -> Documents:
        """The newest rollouts, newest first, without the rows of nodes."""
        kept = await self._read(lambda session: records.load_newest(session, limit=LISTED))
        live = self._state.rollouts
        return [rollout_view(live.get(one.rollout.id, one), nodes=False) for one in kept]

    async def watch(self, rollout: str) -> AsyncIterator[Document]:
        """The rollout now, and at each change (at most every 0.2 s), until it has ended."""
        news = asyncio.Event()
        watchers = self._watchers.setdefault(rollout, set())
        watchers.add(news)
        try:
            while True:
                news.clear()
                document = await self.show(rollout)
                yield document
                if document["state"] != machine.Phase.RUNNING or self._ending:
                    return
                await asyncio.sleep(WATCH_GAP_S)
                await news.wait()
        finally:
            watchers.discard(news)
            if not watchers and self._watchers.get(rollout) is watchers:
                del self._watchers[rollout]

    def end_watches(self) -> None:
        """Let every ``watch`` end: whoever watches comes back to the next controller."""
        self._ending = True
        for watchers in self._watchers.values():
            for news in watchers:
                news.set()

    async def node_view(self, name: str) -> Document:
        """Presence and newest report of a node, as far as there are any.

        Raises NetworkError while it is not known who is online.
        """
        await self._heard()
        return node_view(self._state.fleet, name)

    async def swarm_view(self, infohash: str) -> Document:
        """The relay tree of a torrent, what its nodes say, who stalls and why.

        Raises NetworkError while it is not known who is online.
        """
        await self._heard()
        planned = self._state.planner.planned(infohash)
        return swarm_view(self._state.fleet, planned, infohash, self._clock())

    def node_changed(self, name: str) -> None:
        """The inventory has another entry for the node. From the loop's thread."""
        self._loop.put(lambda: self._reload_node(name))

    def catalogue_changed(self) -> None:
        """Images may have been approved, denied or revoked. From any thread."""
        if self._thread_loop is not None and not self._thread_loop.is_closed():
            self._thread_loop.call_soon_threadsafe(self._loop.put, self._reload_catalogue)

    # -- in the task ----------------------------------------------------------------------------

    async def _start(self, request: Document, actor: str) -> Document:
        self._require_synced()
        selector, found = self._targets(str(request["nodes"]))
        wanted: Held = {}

        def accept() -> RolloutRecord:
            with self._database.transaction() as session:
                kept = self._record(session, request, actor, selector=selector, found=found)
                records.add_rollout(session, kept)
                for node in kept.rollout.targets:
                    held = self._state.assigned.get(node, ())
                    wanted[node] = with_assigned(held, _assignment(kept, node))
                records.save_assignments(session, wanted, now=kept.rollout.accepted_at)
                return kept

        kept = await asyncio.to_thread(accept)
        self._state.add_rollout(kept, wanted)
        return rollout_view(kept)

    def _targets(self, text: str) -> tuple[str, Targets]:
        selector = parse_selector(text)
        nodes = self._state.fleet.inventory.values()
        unknown = selector.unknown_names(nodes)
        if unknown:
            raise NotFound(
                f"no node {', '.join(unknown[:8])}", hint="distrib node list", node=unknown[0]
            )
        found = targets(selector, nodes, self._state.fleet.online())
        if not found.online:
            raise NotFound(
                f"no node that is online matches {selector.text!r}",
                hint=f"{len(found.offline)} that match are offline: distrib node list",
                selector=selector.text,
            )
        return selector.text, found

    def _record(
        self, session: Session, request: Document, actor: str, *, selector: str, found: Targets
    ) -> RolloutRecord:
        # Whole milliseconds: what is told of it must read back equal.
        now = self._clock()
        now = now.replace(microsecond=now.microsecond // 1000 * 1000)
        deadline_s = request.get("deadline_s")
        image = resolve(session, str(request["image"]), states=USABLE)
        require_unexpired(image, now)
        rollout = machine.begin(
            rollout=records.new_rollout_id(session, now),
            image=machine.ImageKey(image.identifier, image.version, image.infohash or ""),
            size_bytes=image.size_bytes or 0,
            online=found.online,
            offline=found.offline,
            now=now,
            deadline=None if deadline_s is None else now + timedelta(seconds=float(deadline_s)),
            silent_s=self._silent_s,
        )
        return RolloutRecord(
            rollout,
            alias=next(iter(aliases_of(session, image.identifier)), None),
            selector=selector,
            accepted_by=actor,
            download_bps=int(request.get("download_bps", 0)),
            upload_bps=int(request.get("upload_bps", 0)),
            traffic=str(request.get("traffic", "foreground")),
            transport=str(request.get("transport", "swarm")),
        )

    async def _abort(self, rollout: str, actor: str) -> Document:
        live = self._state.rollouts.get(rollout)
        if live is None:
            live = await self._read(lambda session: records.load_rollout(session, rollout))
        if not live.rollout.is_running:
            raise Conflict(
                f"rollout {rollout} has ended: it is {live.rollout.phase}",
                hint="start another one",
                rollout=rollout,
            )
        now = self._clock()
        ended = live.moved(machine.aborted(live.rollout, now))
        wanted: Held = {
            node: without_rollout(self._state.assigned.get(node, ()), rollout)
            for node, target in live.rollout.targets.items()
            if target.ready_at is None and node in self._state.fleet.inventory
        }

        def save() -> None:
            with self._database.transaction() as session:
                records.save_targets(session, ended.rollout, ended.rollout.targets)
                records.end_rollout(session, ended, actor=actor)
                records.save_assignments(session, wanted, now=now)

        await asyncio.to_thread(save)
        self._state.abort(ended, wanted)
        return rollout_view(ended)

    async def _forget(self, name: str, actor: str) -> None:
        now = self._clock()

        def save() -> None:
            with self._database.transaction() as session:
                records.remove_node(session, name, actor=actor, now=now)

        await asyncio.to_thread(save)
        connected = self._state.fleet.is_online(name)
        self._state.forget(name)
        topics = self.bus.topics
        self.bus.retain(topics.node(name, "desired"), b"")
        if not connected:
            self.bus.retain(topics.node(name, "presence"), b"")
            self.bus.retain(topics.node(name, "report"), b"")

    async def _reload_node(self, name: str) -> None:
        inventory = await self._read(records.load_inventory)
        joined = self._state.set_inventory(name, inventory)
        if not joined:
            return
        held = self._state.assigned.get(name, ())
        for kept in joined:
            held = with_assigned(held, _assignment(kept, name))
        now = self._clock()

        def save() -> None:
            with self._database.transaction() as session:
                records.save_assignments(session, {name: held}, now=now)

        await asyncio.to_thread(save)
        self._state.assign(name, held)

    async def _reload_catalogue(self) -> None:
        await self.uses.reload()
        self._state.replace_assignments(await self._read(records.load_assignments))

    # -- inside ---------------------------------------------------------------------------------

    async def _heard(self) -> None:
        if not self._loop.synced:
            with contextlib.suppress(TimeoutError):
                await asyncio.wait_for(self._loop.wait_synced(), SYNC_WAIT_S)
            self._require_synced()

    def _require_synced(self) -> None:
        if not self._loop.synced:
            raise NetworkError(
                "not synced yet: the controller has not heard from the broker who is online",
                hint="try again; the controller's log says why",
            )

    def _on_connect(self) -> None:
        self._also_on_connect()
        self._loop.connected()

    def _on_wanted(self, node: str, wanted: ImageWanted) -> None:
        self.uses.node_wants(node, wanted)

    def _wake_watchers(self, changed: frozenset[str]) -> None:
        for rollout in changed & self._watchers.keys():
            for news in self._watchers[rollout]:
                news.set()

    async def _read(self, load: Callable[[Session], T]) -> T:
        def read() -> T:
            with self._database.reading() as session:
                return load(session)

        return await asyncio.to_thread(read)


def _assignment(kept: RolloutRecord, node: str) -> Assigned:
    image = kept.rollout.image
    return Assigned(
        node=node,
        identifier=image.identifier,
        version=image.version,
        infohash=image.infohash,
        rollout=kept.rollout.id,
        download_bps=kept.download_bps,
        upload_bps=kept.upload_bps,
        traffic=kept.traffic,
        transport=kept.transport,
        deadline=kept.rollout.deadline,
        size_bytes=kept.rollout.size_bytes,
    )
