"""The checks once more, on an image that waits in quarantine: after the site has changed them."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Mapping
from contextlib import AbstractContextManager, suppress
from dataclasses import dataclass

from distrib.catalogue.clock import Clock
from distrib.catalogue.examination import Examination, keep
from distrib.catalogue.store import ImageStore, named_faults
from distrib.catalogue.versions import locked
from distrib.db.models import Image, ImageState
from distrib.db.references import image_name
from distrib.db.session import Database
from distrib.errors import Conflict
from distrib.inspection.checks.subject import Finding
from distrib.swarm import IMAGE_FILE


@dataclass(frozen=True)
class Rechecking:
    """``alone`` keeps approvals of the same image version away: they move its file."""

    database: Database
    store: ImageStore
    clock: Clock
    examination: Examination
    alone: Callable[[str], AbstractContextManager[None]]

    async def check(self, identifier: str, version: str, *, actor: str) -> Image:
        """Run every check on the raw image, and keep what they say now.

        Raises NotFound, Conflict where the image is not in quarantine or is being approved,
        ConfigInvalid for the site's folder of checks, StorageFailed.
        """
        with self.alone(f"{identifier}@{version}"):
            row = await asyncio.to_thread(self._quarantined, identifier, version)
            raw = self.store.quarantine_dir(identifier, version) / IMAGE_FILE
            try:
                with named_faults(raw):
                    findings = await self.examination.examine(row, raw)
            finally:
                # It was opened to the tools' user; a denial may have removed it meanwhile.
                with suppress(FileNotFoundError):
                    raw.chmod(0o600)
            return await asyncio.to_thread(self._keep, row, findings, actor)

    def _quarantined(self, identifier: str, version: str) -> Image:
        with self.database.reading() as session:
            return _require_quarantined(locked(session, identifier, version))

    def _keep(self, row: Image, findings: Mapping[str, Finding], actor: str) -> Image:
        with self.database.transaction() as session:
            fresh = _require_quarantined(locked(session, row.identifier, row.version))
            keep(session, fresh, findings, at=self.clock(), actor=actor)
            return fresh


def _require_quarantined(row: Image) -> Image:
    if row.state != ImageState.QUARANTINED:
        raise Conflict(
            f"image {image_name(row)} is {row.state}, not quarantined",
            hint="checks are run on images that wait for their approval",
            image=image_name(row),
        )
    return row
