"""The site's names for images, also of images that are on the site list no more.

A denied image takes its names off the list with it. Who asks for one by name is to hear that it was
withdrawn, and not that there never was such an image.
"""

from __future__ import annotations

import itertools
import json
from collections.abc import Collection, Iterable
from pathlib import Path

import structlog

from agent.cache import durable
from distrib.trust.sitelist import SiteImage

log = structlog.get_logger(__name__)

KNOWN_MAX = 10_000
_FILE = "aliases.json"


class KnownAliases:
    """Which UUID each alias last meant; ``state_dir/aliases.json``. The oldest give way."""

    def __init__(self, state_dir: Path) -> None:
        self._path = state_dir / _FILE
        self._meant: dict[str, str] = {}

    def load(self) -> None:
        """Take up what was known before; a file that cannot be read is known as nothing."""
        try:
            found = json.loads(self._path.read_bytes())["aliases"]
            self._meant = {str(alias): str(meant) for alias, meant in found.items()}
        except FileNotFoundError:
            return
        except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
            log.warning("state-corrupt", path=str(self._path), why=str(error))

    def learn(self, images: Iterable[SiteImage]) -> None:
        """Note what the aliases of a site list mean. Raises StorageFailed."""
        told = {alias: image.identifier for image in images for alias in image.aliases}
        if told.items() <= self._meant.items():
            return
        kept = {alias: meant for alias, meant in self._meant.items() if alias not in told}
        newest = [*kept.items(), *told.items()][-KNOWN_MAX:]
        self._meant = dict(newest)
        durable.replace(self._path, json.dumps({"v": 1, "aliases": self._meant}).encode())

    def meant(self, alias: str) -> str | None:
        """The UUID that the alias last meant, or None for one that was never heard of."""
        return self._meant.get(alias)

    def withdrawn(self, listed: Collection[str], *, most: int) -> list[str]:
        """The UUIDs that had an alias and are not ``listed`` any more, the latest first."""
        known = dict.fromkeys(reversed(self._meant.values()))
        return list(itertools.islice((one for one in known if one not in listed), most))
