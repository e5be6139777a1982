"""The file of an expected image, streamed into quarantine and checked on the way."""

from __future__ import annotations

import asyncio
import hashlib
import shutil
from collections.abc import AsyncIterator, Iterator
from contextlib import contextmanager
from pathlib import Path

import structlog
from sqlalchemy import select

from distrib.catalogue.clock import Clock
from distrib.catalogue.store import ImageStore, named_faults, sync
from distrib.db.audit import record
from distrib.db.models import Image, ImageState
from distrib.db.references import image_name
from distrib.db.session import Database
from distrib.errors import Conflict, DigestMismatch, ImageError, NoSpace, NotFound
from distrib.swarm import IMAGE_FILE

log = structlog.get_logger(__name__)

_PART_FILE = "image.part"
_BATCH_BYTES = 1 << 20


class Quarantine:
    """Takes files in, one at a time for each image version."""

    def __init__(self, *, database: Database, store: ImageStore, clock: Clock) -> None:
        self._database = database
        self._store = store
        self._clock = clock
        self._receiving: set[str] = set()

    async def receive(
        self,
        identifier: str,
        version: str,
        content: AsyncIterator[bytes],
        *,
        declared_bytes: int | None = None,
        actor: str,
    ) -> Image:
        """Stream ``content`` to the image that is expected; ``quarantined`` when it is the one.

        Raises NotFound or Conflict where no file is expected, DigestMismatch for another size or
        SHA-512, NoSpace, StorageFailed. Whatever is raised, nothing of the file stays.
        """
        row = await asyncio.to_thread(self._expected, identifier, version)
        name = image_name(row)
        with self._alone(name):
            folder = self._store.quarantine_dir(identifier, version)
            try:
                _check_size(row, declared_bytes)
                await self._stream(row, content, folder)
                return await asyncio.to_thread(self._received, row, folder, actor)
            except BaseException as error:
                # Also when the client goes away or the controller stops (CancelledError).
                shutil.rmtree(folder, ignore_errors=True)
                if isinstance(error, ImageError):
                    await asyncio.to_thread(self._refused, name, error, actor)
                raise

    def recover(self) -> None:
        """After a start: drop half-received files, expect again what is not there."""
        with self._database.transaction() as session:
            rows = session.scalars(select(Image).where(Image.state == ImageState.QUARANTINED))
            for row in rows:
                kept = self._store.quarantine_dir(row.identifier, row.version) / IMAGE_FILE
                moved = row.infohash and self._store.image_file(row.infohash).exists()
                if not kept.exists() and not moved:
                    row.state, row.since = ImageState.EXPECTED, self._clock()
                    log.warning("quarantined-file-gone", image=image_name(row))
        for folder in self._store.quarantine.iterdir():
            if not (folder / IMAGE_FILE).exists():
                log.info("half-received-file-dropped", folder=folder.name)
                shutil.rmtree(folder, ignore_errors=True)

    def _expected(self, identifier: str, version: str) -> Image:
        with self._database.reading() as session:
            row = session.get(Image, (identifier, version))
        name = f"{identifier}@{version}"
        if row is None:
            raise NotFound(
                f"no image {name} is expected", hint="announce it by its list first", image=name
            )
        if row.state != ImageState.EXPECTED:
            raise Conflict(
                f"image {name} is {row.state}: no file is expected",
                hint="distrib image show says what comes next",
                image=name,
            )
        return row

    @contextmanager
    def _alone(self, name: str) -> Iterator[None]:
        if name in self._receiving:
            raise Conflict(
                f"image {name} is being received already", hint="wait for it", image=name
            )
        self._receiving.add(name)
        try:
            yield
        finally:
            self._receiving.discard(name)

    async def _stream(self, row: Image, content: AsyncIterator[bytes], folder: Path) -> None:
        await asyncio.to_thread(_make_room, row, folder)
        received_bytes, digest = 0, hashlib.sha512()
        batch = bytearray()
        with named_faults(folder), (folder / _PART_FILE).open("wb") as file:

            def flush(data: bytes) -> None:
                digest.update(data)
                file.write(data)

            async for chunk in content:
                received_bytes += len(chunk)
                if received_bytes > row.endorsed_size_bytes:
                    raise _mismatch(row, f"more than the {row.endorsed_size_bytes} bytes endorsed")
                batch += chunk
                if len(batch) >= _BATCH_BYTES:
                    await asyncio.to_thread(flush, bytes(batch))
                    batch.clear()
            await asyncio.to_thread(flush, bytes(batch))
        _check_size(row, received_bytes)
        if digest.hexdigest() != row.endorsed_sha512:
            raise _mismatch(row, f"SHA-512 is {digest.hexdigest()[:16]}…, not the endorsed one")

    def _received(self, row: Image, folder: Path, actor: str) -> Image:
        with named_faults(folder):
            sync(folder / _PART_FILE)
            (folder / _PART_FILE).rename(folder / IMAGE_FILE)
            sync(folder)
            sync(folder.parent)
        with self._database.transaction() as session:
            fresh = session.get_one(Image, (row.identifier, row.version), with_for_update=True)
            # Meanwhile it may have been denied, or revoked by a newer list.
            if fresh.state != ImageState.EXPECTED:
                raise Conflict(
                    f"image {image_name(row)} is {fresh.state} meanwhile",
                    hint="distrib image show says why",
                    image=image_name(row),
                )
            fresh.state, fresh.since = ImageState.QUARANTINED, self._clock()
            record(
                session,
                at=fresh.since,
                actor=actor,
                action="image-received",
                subject=image_name(fresh),
                size_bytes=fresh.endorsed_size_bytes,
                sha512=fresh.endorsed_sha512,
            )
        return fresh

    def _refused(self, name: str, error: ImageError, actor: str) -> None:
        with self._database.transaction() as session:
            record(
                session,
                at=self._clock(),
                actor=actor,
                action="file-refused",
                subject=name,
                code=error.code,
                message=error.message,
            )


def _make_room(row: Image, folder: Path) -> None:
    with named_faults(folder):
        folder.mkdir(parents=True, exist_ok=True)
        free_bytes = shutil.disk_usage(folder).free
    if free_bytes < row.endorsed_size_bytes:
        raise NoSpace(
            f"{folder.parent}: {free_bytes} bytes free, the image needs {row.endorsed_size_bytes}",
            hint="make room on the head's disk",
            image=image_name(row),
        )


def _check_size(row: Image, size_bytes: int | None) -> None:
    if size_bytes is not None and size_bytes != row.endorsed_size_bytes:
        raise _mismatch(row, f"{size_bytes} bytes, {row.endorsed_size_bytes} are endorsed")


def _mismatch(row: Image, what: str) -> DigestMismatch:
    return DigestMismatch(
        f"image {image_name(row)}: the file is not the endorsed one: {what}",
        hint="nothing of it was kept; check the file, then add it again",
        image=image_name(row),
    )
