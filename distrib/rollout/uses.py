"""What jobs want of images, and the ending of what they do with them: asked by API and nodes."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from datetime import datetime

import structlog

from distrib.bus.messages import ImageWanted
from distrib.db import models
from distrib.db.session import Database
from distrib.errors import DistribError, NetworkError
from distrib.rollout.ending import Ending
from distrib.rollout.ending_records import add_ending, load_endings, uses_of
from distrib.rollout.loop import Loop
from distrib.rollout.prestage_settings import PrestageSettings
from distrib.rollout.prestaging import Prestaging
from distrib.rollout.state import State
from distrib.rollout.views import Document
from distrib.rollout.wanting import Wish

log = structlog.get_logger(__name__)

EXPIRE_S = 10.0


class Uses:
    """Implements ``distrib.api.services.UsesService``; all is done in the task of ``loop``."""

    def __init__(
        self,
        state: State,
        loop: Loop,
        *,
        database: Database,
        prestage: PrestageSettings,
        clock: Callable[[], datetime],
        silent_s: float,
    ) -> None:
        self._state = state
        self._loop = loop
        self._database = database
        self._clock = clock
        self._prestaging = Prestaging(
            state, database=database, settings=prestage, clock=clock, silent_s=silent_s
        )

    async def run(self) -> None:
        """Let wants lapse, until cancelled."""
        while True:
            await asyncio.sleep(EXPIRE_S)
            try:
                await self._loop.call(self._prestaging.expire)
            except DistribError as error:
                log.warning("wants-not-read", code=error.code, why=error.message)

    async def want(self, wish: Wish) -> Document:
        """A queued job wants an image: it is brought to a few nodes (``prestaging``)."""
        return await self._loop.call(lambda: self._want(wish))

    async def wants(self) -> list[Document]:
        """The wants that count, newest first."""
        return await self._loop.call(self._prestaging.current)

    async def done_wanting(self, image: str, job: str) -> int:
        """The job wants the image no more; how many wants that were. Raises NotFound."""
        return await self._loop.call(lambda: self._prestaging.done(image, job))

    def node_wants(self, node: str, wanted: ImageWanted) -> None:
        """A node asks; what is refused is counted and in the log. From the loop's thread."""
        self._loop.put(lambda: self._node_wants(node, wanted))

    async def end_uses(
        self, identifier: str, version: str, *, reason: str, actor: str
    ) -> list[Document]:
        """End what runs from a denied image, now and wherever a node comes back with it.

        Who has it in use, as nodes last said: ``{"node", "online", "leases", "holders"}``."""
        return await self._loop.call(lambda: self._end_uses(identifier, version, reason, actor))

    async def reload(self) -> None:
        """A denial may have been taken back. In the task."""

        def read() -> list[Ending]:
            with self._database.reading() as session:
                return load_endings(session, self._clock())

        self._state.set_endings(await asyncio.to_thread(read))

    async def _want(self, wish: Wish) -> Document:
        if not self._loop.synced:
            raise NetworkError(
                "not synced yet: the controller has not heard from the broker who is online",
                hint="try again; the controller's log says why",
            )
        return await self._prestaging.want(wish)

    async def _node_wants(self, node: str, wanted: ImageWanted) -> None:
        wish = Wish(
            image=wanted.image,
            job=wanted.job or f"node:{node}",
            asked_by=f"node {node}",
            user=wanted.user,
            near=node,
        )
        try:
            if node in self._state.fleet.inventory:
                await self._want(wish)
        except DistribError as error:
            self._state.fleet.refused[error.code] += 1
            log.warning("image-wanted-refused", node=node, code=error.code, why=error.message)

    async def _end_uses(
        self, identifier: str, version: str, reason: str, actor: str
    ) -> list[Document]:
        def save() -> tuple[list[Document], list[Ending]]:
            now = self._clock()
            with self._database.transaction() as session:
                image = session.get_one(models.Image, (identifier, version))
                if image.infohash is None:
                    return [], load_endings(session, now)
                uses = uses_of(self._state.fleet, image.infohash, identifier, version)
                add_ending(session, image, reason=reason, uses=uses, actor=actor, now=now)
                session.flush()
                return list[Document](uses), load_endings(session, now)

        uses, endings = await asyncio.to_thread(save)
        self._state.set_endings(endings)
        return uses
