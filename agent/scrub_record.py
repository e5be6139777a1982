"""What the scrub has done, over restarts (docs/formats/state.md, ``scrub.json``)."""

from __future__ import annotations

from collections.abc import Container
from dataclasses import dataclass, field
from datetime import datetime
from pathlib import Path
from typing import Annotated, Final, Literal

import structlog
from pydantic import Field, TypeAdapter

from agent.cache import durable
from distrib.bus.schema import Infohash, Time
from distrib.errors import StateCorrupt

log = structlog.get_logger(__name__)


@dataclass(frozen=True)
class Scrubbed:
    """One volume: when all of it was found good, and the piece where a pass goes on."""

    good_at: Time | None = None
    piece: Annotated[int, Field(ge=0)] = 0
    begun_at: Time | None = None


@dataclass(frozen=True)
class _Document:
    volumes: dict[Infohash, Scrubbed]
    v: Literal[1] = field(default=1, kw_only=True)


_ADAPTER: Final = TypeAdapter(_Document)


class ScrubRecord:
    """The file, and what is in it. A file that cannot be read is set aside: then volumes count as
    good since they became ready."""

    def __init__(self, path: Path) -> None:
        self._path = path
        self._volumes: dict[str, Scrubbed] = {}
        try:
            self._volumes = durable.load(path, _ADAPTER.validate_json).volumes
        except FileNotFoundError:
            pass
        except StateCorrupt as error:
            log.warning("state-corrupt", why=error.message, hint=error.hint)

    def of(self, infohash: str) -> Scrubbed:
        return self._volumes.get(infohash, Scrubbed())

    def put(self, infohash: str, scrubbed: Scrubbed) -> None:
        """On disk on return. Raises StorageFailed."""
        self._save({**self._volumes, infohash: scrubbed})

    def good(self, infohash: str, at: datetime) -> None:
        """All of a volume was found good."""
        self.put(infohash, Scrubbed(good_at=at))

    def forget(self, infohash: str) -> None:
        if infohash in self._volumes:
            self._save({key: one for key, one in self._volumes.items() if key != infohash})

    def keep(self, infohashes: Container[str]) -> None:
        """Forget the volumes that are not here any more."""
        kept = {key: one for key, one in self._volumes.items() if key in infohashes}
        if kept != self._volumes:
            self._save(kept)

    def _save(self, volumes: dict[str, Scrubbed]) -> None:
        durable.replace(self._path, _ADAPTER.dump_json(_Document(volumes)))
        self._volumes = volumes
