"""From the endorsed file in quarantine to a raw disk that waits for the site's word.

The file is converted and hashed once more after its last read: what was read is what was checked.
Then come the checks. Until all of that is done the row stays ``expected`` and the file stays where
it is, so that a crash costs time and nothing else.
"""

from __future__ import annotations

import asyncio
import shutil
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path

from distrib.catalogue.clock import Clock
from distrib.catalogue.conversion import Conversion, flush
from distrib.catalogue.digest import sha512_of
from distrib.catalogue.entries import image_of
from distrib.catalogue.examination import Examination, keep
from distrib.catalogue.formats import stated_format
from distrib.catalogue.store import ImageStore, named_faults, sync
from distrib.db.audit import record
from distrib.db.models import Image, ImageState
from distrib.db.references import image_name
from distrib.db.session import Database
from distrib.errors import Conflict, DigestMismatch, DistribError, ImageError, NoSpace
from distrib.inspection.checks.subject import Finding
from distrib.swarm import IMAGE_FILE

#: The file as endorsed, all of it; and what there is of it while it comes in.
ENDORSED_FILE = "image.endorsed"
PART_FILE = "image.part"
NOTE_FILE = "image.part.json"


@dataclass(frozen=True)
class Preparation:
    """Conversion and checks, in this order. ``proposed_max_bytes`` bounds the raw disk of an image
    that a user proposed."""

    database: Database
    store: ImageStore
    clock: Clock
    conversion: Conversion
    examination: Examination
    proposed_max_bytes: int | None = None

    def folder(self, row: Image) -> Path:
        """The image's folder in quarantine."""
        return self.store.quarantine_dir(row.identifier, row.version)

    async def prepare(self, row: Image, *, actor: str) -> Image:
        """Make ``quarantined`` what has come in as ENDORSED_FILE.

        Raises ImageError, DigestMismatch, Conflict (denied meanwhile), NoSpace, StorageFailed; then
        nothing stays of an image that is refused, or that there is no room for.
        """
        name, folder = image_name(row), self.folder(row)
        endorsed = folder / ENDORSED_FILE
        try:
            raw = await self._to_raw(row, endorsed, name)
            with named_faults(raw):
                digest = await sha512_of(raw)
            if raw == endorsed and digest != row.endorsed_sha512:
                raise changed(name)
            with named_faults(raw):
                findings = await self.examination.examine(row, raw)
            await flush(raw)
            return await asyncio.to_thread(self._done, row, raw, digest, findings, actor)
        except DistribError as error:
            if isinstance(error, ImageError | NoSpace | Conflict):
                shutil.rmtree(folder, ignore_errors=True)
            if isinstance(error, ImageError):
                await asyncio.to_thread(self.note_refusal, name, error, actor)
            raise

    async def _to_raw(self, row: Image, endorsed: Path, name: str) -> Path:
        async def unchanged() -> None:
            with named_faults(endorsed):
                if await sha512_of(endorsed) != row.endorsed_sha512:
                    raise changed(name)

        stated = stated_format(image_of(row.entry).format, image=name)
        conversion = self.conversion
        if row.proposed_by is not None and self.proposed_max_bytes is not None:
            most = min(conversion.max_raw_bytes, self.proposed_max_bytes)
            conversion = replace(conversion, max_raw_bytes=most)
        return await conversion.to_raw(endorsed, stated=stated, image=name, unchanged=unchanged)

    def _done(
        self, row: Image, raw: Path, digest: str, findings: Mapping[str, Finding], actor: str
    ) -> Image:
        folder, name = raw.parent, image_name(row)
        with named_faults(raw):
            raw.chmod(0o600)
            size_bytes = raw.stat().st_size
            raw.rename(folder / IMAGE_FILE)
            sync(folder)
            sync(folder.parent)
        with self.database.transaction() as session:
            fresh = session.get_one(Image, (row.identifier, row.version), with_for_update=True)
            # Meanwhile it may have been denied, or revoked by a newer list.
            if fresh.state != ImageState.EXPECTED:
                raise Conflict(
                    f"image {name} is {fresh.state} meanwhile",
                    hint="distrib image show says why",
                    image=name,
                )
            now = self.clock()
            fresh.state, fresh.since = ImageState.QUARANTINED, now
            fresh.sha512, fresh.size_bytes = digest, size_bytes
            fresh.fetched_bytes, fresh.fault = fresh.endorsed_size_bytes, {}
            record(
                session,
                at=now,
                actor=actor,
                action="image-received",
                subject=name,
                size_bytes=fresh.endorsed_size_bytes,
                sha512=fresh.endorsed_sha512,
                raw_size_bytes=size_bytes,
                raw_sha512=digest,
                source=fresh.source,
            )
            keep(session, fresh, findings, at=now, actor=actor)
        (folder / ENDORSED_FILE).unlink(missing_ok=True)
        return fresh

    def note_refusal(self, name: str, error: ImageError, actor: str) -> None:
        """A line in the audit log: the file was not taken."""
        with self.database.transaction() as session:
            record(
                session,
                at=self.clock(),
                actor=actor,
                action="file-refused",
                subject=name,
                code=error.code,
                message=error.message,
            )


def changed(name: str) -> DigestMismatch:
    """The file is not what it was when it was checked."""
    return DigestMismatch(
        f"image {name}: its file has changed in quarantine",
        hint="check the head's disk; then take it in again",
        image=name,
    )


def mismatch(row: Image, what: str) -> DigestMismatch:
    """The file that comes in is not the endorsed one."""
    return DigestMismatch(
        f"image {image_name(row)}: the file is not the endorsed one: {what}",
        hint="nothing of it was kept; check the file, then add it again",
        image=image_name(row),
    )


def make_room(row: Image, folder: Path, *, have_bytes: int = 0, reserve_bytes: int = 0) -> None:
    """The folder, ours alone, and room for the rest of the file. Raises NoSpace, StorageFailed."""
    with named_faults(folder):
        folder.mkdir(parents=True, exist_ok=True)
        folder.chmod(0o700)
        free_bytes = shutil.disk_usage(folder).free
    needed = row.endorsed_size_bytes - have_bytes + reserve_bytes
    if free_bytes < needed:
        raise NoSpace(
            f"{folder.parent}: {free_bytes} bytes free, the image needs {needed}",
            hint="make room on the head's disk",
            image=image_name(row),
        )
