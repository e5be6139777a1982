"""Pre-staging on demand: what queued jobs want is brought to a few nodes, for as long as they want.

Each pre-staging is a rollout of its own (``p-…``) to nodes that are named one by one. A want of an
image that is there, or on its way, joins what there is. When no want counts on a pre-staging any
more its nodes are not told to hold the image any longer: nothing is evicted for that.

All of it runs in the rollout service's task.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from dataclasses import replace
from datetime import datetime, timedelta

import structlog
from sqlalchemy.orm import Session

from distrib.db.audit import record
from distrib.db.models import Image
from distrib.db.references import aliases_of, identifier_of, image_name
from distrib.db.session import Database
from distrib.db.use_models import Want
from distrib.errors import Conflict, Forbidden, NotFound
from distrib.rollout import machine, records
from distrib.rollout.desired import Assigned, with_assigned, without_rollout
from distrib.rollout.plan import parse_selector
from distrib.rollout.prestage_settings import PrestageSettings
from distrib.rollout.records import RolloutRecord
from distrib.rollout.state import State
from distrib.rollout.views import Document
from distrib.rollout.want_records import (
    drop_lapsed,
    drop_want,
    keep_want,
    wanted_image,
    wants,
)
from distrib.rollout.wanting import Rate, Wish, choose
from distrib.rollout.whereabouts import candidate_of, standing_of
from distrib.trust.sitelist import parse_image_ref

log = structlog.get_logger(__name__)

ACTOR = "prestage"
KIND = "p"
JOB_MAX_CHARS = 128
RETRY = timedelta(seconds=60)
Held = dict[str, tuple[Assigned, ...]]


class TooManyWants(Forbidden):
    """This node or token has asked too often within a minute."""

    code = "too-many-wants"


class Prestaging:
    """``state`` is changed by the service's task alone, in which all of this is called."""

    def __init__(
        self,
        state: State,
        *,
        database: Database,
        settings: PrestageSettings,
        clock: Callable[[], datetime],
        silent_s: float,
    ) -> None:
        self._state = state
        self._database = database
        self._settings = settings
        self._clock = clock
        self._silent_s = silent_s
        self._rate = Rate(settings.per_minute)

    async def want(self, wish: Wish) -> Document:
        """Take a want in, and see to it that the image comes.

        Raises Forbidden (the site pre-stages nothing; the audience does not admit the user),
        TooManyWants, NotFound (no such image on the site list; no node that is online), Conflict
        (as many pre-stagings are under way as may be), OperatorError (the selector).
        """
        now = self._clock().replace(microsecond=0)
        self._check(wish, now)
        wish = replace(wish, job=wish.job[:JOB_MAX_CHARS])
        pool = self._pool(wish.nodes)
        tried = await self._give_up_failed(wish, pool, now)
        made: list[tuple[RolloutRecord, Held]] = []
        until = now + timedelta(seconds=self._settings.keep_s)

        def accept() -> tuple[str | None, Image]:
            with self._database.transaction() as session:
                image = wanted_image(session, wish, self._state.assigned, now)
                mine = self._running(image)
                rollout = mine[-1].rollout.id if mine else None
                chosen = self._chosen(wish, image, pool, mine, tried)
                if chosen:
                    self._check_running()
                    made.append(self._begin(session, image, chosen, now))
                    rollout = made[0][0].rollout.id
                keep_want(session, wish, image, rollout=rollout, now=now, until=until)
                return rollout, image

        rollout, image = await asyncio.to_thread(accept)
        for kept, wanted in made:
            self._state.add_rollout(kept, wanted)
            log.info("prestaging", rollout=rollout, image=image_name(image), nodes=sorted(wanted))
        return self._view(wish, image, rollout, until, bare=is_bare(wish.image))

    async def done(self, image: str, job: str) -> int:
        """The job wants the image no more. How many wants that were; raises NotFound."""

        def drop() -> int:
            with self._database.transaction() as session:
                identifier = identifier_of(session, parse_image_ref(image).name)
                return drop_want(session, identifier, job[:JOB_MAX_CHARS])

        dropped = await asyncio.to_thread(drop)
        await self.expire()
        return dropped

    async def current(self) -> list[Document]:
        """The wants that count, newest first."""

        def read() -> list[tuple[Want, Image]]:
            with self._database.reading() as session:
                return wants(session, self._clock())

        return [
            self._view(_wish_of(want, image), image, want.rollout, want.until)
            for want, image in await asyncio.to_thread(read)
        ]

    async def expire(self) -> None:
        """End the pre-stagings that nobody counts on any more."""

        def drop() -> set[str]:
            with self._database.transaction() as session:
                return drop_lapsed(session, self._clock())

        counted_on = await asyncio.to_thread(drop)
        for name in [one for one in self._state.rollouts if is_prestaging(one)]:
            if name not in counted_on:
                await self._release(name, why="nobody wants it any more")

    # -- inside ---------------------------------------------------------------------------------

    def _check(self, wish: Wish, now: datetime) -> None:
        if not self._settings.nodes:
            raise Forbidden("this site pre-stages nothing", hint="setting prestage.nodes")
        if not self._rate.allows(wish.asked_by, now):
            raise TooManyWants(
                f"{wish.asked_by} wants more than {self._settings.per_minute} images a minute",
                hint="one want for an image is enough (prestage.per_minute)",
            )

    def _pool(self, nodes: str) -> tuple[str, ...]:
        """The nodes that are online, and that site and want name both."""
        allowed = parse_selector(self._settings.nodes)
        asked = parse_selector(nodes or "all")
        inventory = self._state.fleet.inventory.values()
        unknown = asked.unknown_names(inventory)
        if unknown:
            raise NotFound(f"no node {', '.join(unknown[:8])}", hint="distrib node list")
        found = tuple(
            node.name
            for node in inventory
            if allowed.matches(node)
            and asked.matches(node)
            and self._state.fleet.is_online(node.name)
        )
        if not found:
            raise NotFound(
                f"no node that is online matches {nodes or self._settings.nodes!r}",
                hint=f"the site pre-stages to {self._settings.nodes!r} (prestage.nodes)",
            )
        return found

    def _running(self, image: Image) -> list[RolloutRecord]:
        """The pre-stagings of the image, oldest first."""
        return [
            kept
            for name, kept in self._state.rollouts.items()
            if is_prestaging(name)
            and kept.rollout.image.identifier == image.identifier
            and kept.rollout.image.version == image.version
            and (kept.rollout.is_running or self._nodes_of(name))
        ]

    async def _give_up_failed(
        self, wish: Wish, pool: tuple[str, ...], now: datetime
    ) -> tuple[str, ...]:
        """Where it has failed on all nodes, and long enough ago: it is tried anew, on others first.
        The nodes that it was tried on."""

        def read() -> Image:
            with self._database.reading() as session:
                return wanted_image(session, wish, self._state.assigned, now)

        image = await asyncio.to_thread(read)
        mine = self._running(image)
        ended = mine[-1].rollout.ended_at if mine else None
        failed = bool(mine) and mine[-1].rollout.phase is machine.Phase.FAILED
        standing = standing_of(self._state, image, pool, bare=is_bare(wish.image))
        if standing.held or not failed or ended is None or now - ended < RETRY:
            return ()
        for kept in mine:
            await self._release(kept.rollout.id, why="nobody got it")
        return tuple(node for kept in mine for node in kept.rollout.targets)

    def _chosen(
        self,
        wish: Wish,
        image: Image,
        pool: tuple[str, ...],
        mine: list[RolloutRecord],
        tried: tuple[str, ...],
    ) -> tuple[str, ...]:
        standing = standing_of(self._state, image, pool, bare=is_bare(wish.image))
        brought = {node for kept in mine for node in kept.rollout.targets}
        missing = self._settings.count - max(standing.held, len(brought))
        candidates = [
            candidate_of(self._state.fleet, node, failed=node in tried) for node in standing.others
        ]
        return choose(candidates, missing=missing, size_bytes=image.size_bytes or 0, near=wish.near)

    def _nodes_of(self, name: str) -> list[str]:
        """The nodes that are to hold an image because of this rollout."""
        assigned = self._state.assigned.items()
        return [node for node, held in assigned if any(one.rollout == name for one in held)]

    def _check_running(self) -> None:
        under_way = sum(
            is_prestaging(name) and kept.rollout.is_running
            for name, kept in self._state.rollouts.items()
        )
        if under_way >= self._settings.at_once:
            raise Conflict(
                f"{under_way} pre-stagings are under way already",
                hint="ask again in a while (prestage.at_once)",
            )

    def _begin(
        self, session: Session, image: Image, chosen: tuple[str, ...], now: datetime
    ) -> tuple[RolloutRecord, Held]:
        rollout = machine.begin(
            rollout=records.new_rollout_id(session, now, kind=KIND),
            image=machine.ImageKey(image.identifier, image.version, image.infohash or ""),
            size_bytes=image.size_bytes or 0,
            online=chosen,
            offline=(),
            now=now,
            silent_s=self._silent_s,
        )
        kept = RolloutRecord(
            rollout,
            alias=next(iter(aliases_of(session, image.identifier)), None),
            # By name: nodes that are added later do not join.
            selector=",".join(chosen),
            accepted_by=ACTOR,
        )
        records.add_rollout(session, kept)
        wanted: Held = {}
        for node in chosen:
            held = self._state.assigned.get(node, ())
            new = Assigned(
                node=node,
                identifier=image.identifier,
                version=image.version,
                infohash=image.infohash or "",
                rollout=rollout.id,
                size_bytes=image.size_bytes or 0,
            )
            # What jobs get by the bare name stays as it is where another version is active.
            other = any(one.identifier == image.identifier and one.active for one in held)
            wanted[node] = (
                (*held, replace(new, active=False)) if other else with_assigned(held, new)
            )
        records.save_assignments(session, wanted, now=now)
        return kept, wanted

    async def _release(self, name: str, *, why: str) -> None:
        """The nodes need not hold it any longer; what is still under way there is ended."""
        kept = self._state.rollouts.get(name)
        if kept is None or not (kept.rollout.is_running or self._nodes_of(name)):
            return
        now = self._clock()
        wanted: Held = {
            node: without_rollout(self._state.assigned.get(node, ()), name)
            for node in kept.rollout.targets
            if node in self._state.fleet.inventory
        }
        ended = kept.moved(machine.aborted(kept.rollout, now))

        def save() -> None:
            with self._database.transaction() as session:
                if ended is not kept:
                    records.save_targets(session, ended.rollout, ended.rollout.targets)
                    records.end_rollout(session, ended, actor=ACTOR)
                records.save_assignments(session, wanted, now=now)
                record(
                    session,
                    at=now,
                    actor=ACTOR,
                    action="prestage-ended",
                    subject=name,
                    image=str(kept.rollout.image),
                    reason=why,
                )

        await asyncio.to_thread(save)
        if ended is not kept:
            self._state.abort(ended, wanted)
        else:
            for node, held in wanted.items():
                self._state.assign(node, held)

    def _view(
        self,
        wish: Wish,
        image: Image,
        rollout: str | None,
        until: datetime,
        *,
        bare: bool = False,
    ) -> Document:
        try:
            pool = self._pool(wish.nodes)
        except NotFound:
            pool = ()
        standing = standing_of(self._state, image, pool, bare=bare)
        state = "ready" if standing.ready else "coming" if standing.coming else "waits"
        return {
            "image": image_name(image),
            "job": wish.job,
            "user": wish.user,
            "nodes": wish.nodes,
            "state": state,
            "ready": list(standing.ready),
            "coming": list(standing.coming),
            "rollout": rollout,
            "until": until.isoformat(timespec="milliseconds").replace("+00:00", "Z"),
        }


def _wish_of(want: Want, image: Image) -> Wish:
    return Wish(
        image=image_name(image),
        job=want.job,
        asked_by=want.asked_by,
        user=want.user,
        nodes=want.selector,
    )


def is_bare(image: str) -> bool:
    """Whether the job takes whatever version is active where it runs."""
    return parse_image_ref(image).version is None


def is_prestaging(rollout: str) -> bool:
    """Whether a rollout was begun by wants."""
    return rollout.startswith(f"{KIND}-")
