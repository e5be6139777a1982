"""The file of an expected image, uploaded into quarantine and checked on the way."""

from __future__ import annotations

import asyncio
import hashlib
import shutil
import threading
from collections.abc import AsyncIterator, Iterator
from contextlib import contextmanager
from pathlib import Path

import structlog
from sqlalchemy import select

from distrib.catalogue.preparation import (
    ENDORSED_FILE,
    NOTE_FILE,
    PART_FILE,
    Preparation,
    make_room,
    mismatch,
)
from distrib.catalogue.store import named_faults, sync
from distrib.db.models import Image, ImageState
from distrib.db.references import image_name
from distrib.errors import Conflict, ImageError, NotFound
from distrib.swarm import IMAGE_FILE

log = structlog.get_logger(__name__)

_BATCH_BYTES = 1 << 20


class Quarantine:
    """Takes files in, one at a time for each image version."""

    def __init__(self, preparation: Preparation) -> None:
        self._preparation = preparation
        self._database, self._store = preparation.database, preparation.store
        self._clock = preparation.clock
        self._busy: set[str] = set()
        self._turn = threading.Condition()

    async def receive(
        self,
        identifier: str,
        version: str,
        content: AsyncIterator[bytes],
        *,
        declared_bytes: int | None = None,
        actor: str,
    ) -> Image:
        """Stream ``content`` to the image that is expected; ``quarantined`` when it is the one,
        is raw or could be made raw, and all checks were run.

        Raises NotFound or Conflict where no file is expected, DigestMismatch for another size or
        SHA-512, ImageError for what cannot be converted, NoSpace, StorageFailed. Whatever is
        raised, nothing of the file stays.
        """
        row = await asyncio.to_thread(self._expected, identifier, version)
        name = image_name(row)
        with self.alone(name):
            folder = self._store.quarantine_dir(identifier, version)
            try:
                _check_size(row, declared_bytes)
                await self._stream(row, content, folder)
            except BaseException as error:
                # Also when the client goes away or the controller stops (CancelledError).
                shutil.rmtree(folder, ignore_errors=True)
                if isinstance(error, ImageError):
                    await asyncio.to_thread(self._preparation.note_refusal, name, error, actor)
                raise
            return await self._preparation.prepare(row, actor=actor)

    @contextmanager
    def alone(self, name: str, *, wait_s: float = 0.0) -> Iterator[None]:
        """One at a time has the file of an image version in hand. Off the event loop others may be
        waited for. Raises Conflict."""
        with self._turn:
            if not self._turn.wait_for(lambda: name not in self._busy, timeout=wait_s):
                raise Conflict(
                    f"image {name} is being received or looked into",
                    hint="wait for it",
                    image=name,
                )
            self._busy.add(name)
        try:
            yield
        finally:
            with self._turn:
                self._busy.discard(name)
                self._turn.notify_all()

    def in_hand(self, name: str) -> bool:
        """Whether somebody is ``alone`` with an image version at this moment."""
        with self._turn:
            return name in self._busy

    def recover(self) -> None:
        """After a start: drop half-received and half-converted files, expect again what is gone.

        What is kept of an expected image: its file as endorsed, and what there is of a download or
        of a user's upload.
        """
        with self._database.transaction() as session:
            known = (ImageState.QUARANTINED, ImageState.EXPECTED)
            rows = session.scalars(select(Image).where(Image.state.in_(known))).all()
            keep: dict[Path, set[str]] = {}
            for row in rows:
                folder = self._store.quarantine_dir(row.identifier, row.version)
                if row.state == ImageState.QUARANTINED:
                    moved = row.infohash and self._store.image_file(row.infohash).exists()
                    if not (folder / IMAGE_FILE).exists() and not moved:
                        row.state, row.since = ImageState.EXPECTED, self._clock()
                        log.warning("quarantined-file-gone", image=image_name(row))
                if row.state == ImageState.EXPECTED:
                    in_parts = bool(row.source) or row.proposed_by is not None
                    keep[folder] = _kept(folder, in_parts=in_parts)
        for folder in self._store.quarantine.iterdir():
            if folder in keep:
                for file in folder.iterdir():
                    if file.name not in keep[folder]:
                        file.unlink()
            if not any((folder / name).exists() for name in (IMAGE_FILE, *keep.get(folder, ()))):
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

    async def _stream(self, row: Image, content: AsyncIterator[bytes], folder: Path) -> None:
        await asyncio.to_thread(make_room, row, folder)
        received_bytes, digest = 0, hashlib.sha512()
        batch = bytearray()
        part = folder / PART_FILE
        with named_faults(folder), part.open("wb") as file:

            def flush(data: bytes) -> None:
                digest.update(data)
                file.write(data)

            async for chunk in content:
                received_bytes += len(chunk)
                if received_bytes > row.endorsed_size_bytes:
                    raise mismatch(row, f"more than the {row.endorsed_size_bytes} bytes endorsed")
                batch += chunk
                if len(batch) >= _BATCH_BYTES:
                    await asyncio.to_thread(flush, bytes(batch))
                    batch.clear()
            await asyncio.to_thread(flush, bytes(batch))
        _check_size(row, received_bytes)
        if digest.hexdigest() != row.endorsed_sha512:
            raise mismatch(row, f"SHA-512 is {digest.hexdigest()[:16]}…, not the endorsed one")
        await asyncio.to_thread(complete, folder)


def complete(folder: Path) -> None:
    """What has come in is all of the endorsed file. Raises NoSpace, StorageFailed."""
    with named_faults(folder):
        sync(folder / PART_FILE)
        (folder / PART_FILE).rename(folder / ENDORSED_FILE)
        (folder / NOTE_FILE).unlink(missing_ok=True)
        sync(folder)


def _kept(folder: Path, *, in_parts: bool) -> set[str]:
    endorsed, raw = folder / ENDORSED_FILE, folder / IMAGE_FILE
    if raw.exists() and not endorsed.exists():
        # A crash came after the last rename of a raw image and before its row was changed.
        raw.rename(endorsed)
    return {ENDORSED_FILE} | ({PART_FILE, NOTE_FILE} if in_parts else set())


def _check_size(row: Image, size_bytes: int | None) -> None:
    if size_bytes is not None and size_bytes != row.endorsed_size_bytes:
        raise mismatch(row, f"{size_bytes} bytes, {row.endorsed_size_bytes} are endorsed")
