"""What the routes stand on, and what they ask of the rollout service."""

from __future__ import annotations

from collections.abc import AsyncIterator, Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

from distrib.bus.messages import Caps
from distrib.catalogue.catalogue import Catalogue
from distrib.catalogue.clock import Clock, utc_now
from distrib.db.session import Database
from distrib.events.settings import HandlerSettings
from distrib.rollout.wanting import Wish

Document = Mapping[str, Any]
"""A JSON object as docs/formats/api.md describes it."""

Documents = list[Document]


class UsesService(Protocol):
    """What queued jobs want on the nodes, and the ending of uses. Called in the event loop."""

    async def want(self, wish: Wish) -> Document:
        """A queued job wants an image: it is brought to a few nodes.

        Raises NotFound, Forbidden, Conflict, OperatorError.
        """
        ...

    async def wants(self) -> Documents:
        """The wants that count, newest first."""
        ...

    async def done_wanting(self, image: str, job: str) -> int:
        """The job wants the image no more; how many wants that were. Raises NotFound."""
        ...

    async def end_uses(
        self, identifier: str, version: str, *, reason: str, actor: str
    ) -> Documents:
        """End what runs from a denied image; who has it in use, as nodes last said."""
        ...


class RolloutService(Protocol):
    """Rollouts, and what is known of nodes beside the inventory. Called in the event loop."""

    @property
    def uses(self) -> UsesService:
        """What jobs want, and what is ended."""
        ...

    async def start(self, request: Document, actor: str) -> Document:
        """Accept ``{"image", "nodes", "download_bps"?, "deadline_s"?}``; the Rollout.

        Raises NotFound for an unknown image or a selector that matches no online node,
        OperatorError for a selector that cannot be read.
        """
        ...

    async def list(self) -> list[Document]:
        """Every rollout, newest first; the rows of nodes may be left out."""
        ...

    async def show(self, rollout: str) -> Document:
        """One Rollout with its nodes. Raises NotFound."""
        ...

    def watch(self, rollout: str) -> AsyncIterator[Document]:
        """The Rollout now and at each change, until it has ended. Raises NotFound at once."""
        ...

    async def abort(self, rollout: str, actor: str) -> Document:
        """Nodes stop pulling. Raises NotFound, Conflict where it has ended."""
        ...

    async def node_view(self, name: str) -> Document:
        """``{"online", "presence"?, "report"?}`` of a node, empty where it never spoke."""
        ...

    async def swarm_view(self, infohash: str) -> Document:
        """The Swarm of a torrent without what the catalogue knows of the image."""
        ...

    async def set_caps(self, rollout: str, caps: Mapping[str, int], actor: str) -> Document:
        """Cap it by ``download_bps``, ``upload_bps`` or both, 0: none. Raises NotFound."""
        ...

    async def forget(self, name: str, actor: str) -> None:
        """Take the node off the inventory and clear its retained topics. Raises NotFound."""
        ...


class FarmService(Protocol):
    """The caps that all nodes are told."""

    def view(self) -> Document:
        """``{"caps", "set_at_run_time", "foreign"}``."""
        ...

    async def set_caps(self, wanted: Mapping[str, Caps | None], actor: str) -> None:
        """By tier; None: as the settings say."""
        ...


@dataclass(frozen=True)
class Services:
    """What ``create_app`` needs. ``node_changed`` is told whose inventory has changed;
    ``handlers``: of events."""

    database: Database
    catalogue: Catalogue
    rollouts: RolloutService
    farm: FarmService
    clock: Clock = utc_now
    node_changed: Callable[[str], None] = lambda _name: None
    handlers: Sequence[HandlerSettings] = ()
