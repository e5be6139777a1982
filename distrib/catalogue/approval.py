"""The site's yes to a quarantined image, and its own names for images.

An approval hashes the file once more (what was checked on its way in has been on a disk since),
makes its torrent, and moves both to where seeders look. Every step can be repeated after a crash:
the row learns the info-hash before the files move, and is ``approved`` after.
"""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from datetime import timedelta
from pathlib import Path
from typing import Any, Literal

import structlog
from sqlalchemy.orm import Session

from distrib.catalogue.clock import Clock
from distrib.catalogue.conversion import require_raw
from distrib.catalogue.examination import Examination
from distrib.catalogue.store import TORRENT_FILE, ImageStore, named_faults
from distrib.catalogue.versions import (
    SUPERSEDE_GRACE,
    check_bytes_free,
    lock_versions,
    locked,
    newer_approved,
    supersede_others,
)
from distrib.db.audit import record
from distrib.db.counters import CATALOGUE_CHANGES, rise
from distrib.db.models import Alias, Image, ImageState
from distrib.db.outbox import EventType, emit
from distrib.db.references import aliases_of, identifier_of, image_name, require_unexpired
from distrib.db.session import Database
from distrib.errors import Conflict, DigestMismatch, Revoked
from distrib.swarm import IMAGE_FILE
from distrib.swarm.torrent import make_torrent_and_digest, piece_bytes_for
from distrib.trust.siteimage import check_alias

log = structlog.get_logger(__name__)

Audience = Literal["all"] | Sequence[str]


class Approval:
    """Approve, name. ``grace`` is how long a replaced version stays leasable."""

    def __init__(
        self,
        *,
        database: Database,
        store: ImageStore,
        clock: Clock,
        grace: timedelta = SUPERSEDE_GRACE,
        piece_bytes: Callable[[int], int] = piece_bytes_for,
        examination: Examination,
    ) -> None:
        self._database = database
        self._store = store
        self._clock = clock
        self._grace = grace
        self._piece_bytes = piece_bytes
        self._examination = examination
        self._approving: set[str] = set()
        self._turn = threading.Condition()

    async def approve(
        self,
        identifier: str,
        version: str,
        *,
        aliases: Sequence[str] = (),
        audience: Audience | None = None,
        reason: str = "",
        force: str = "",
        actor: str,
    ) -> Image:
        """Make the torrent and let the image run here. ``audience`` None: as it was, or all.

        ``force`` says why although required checks were not passed. Approving again changes
        aliases and audience only. Raises NotFound, Conflict (no file yet, a newer version is
        approved, or another one has the same bytes), ImageError (not raw), ChecksNotPassed,
        DigestMismatch, Revoked, TrustRefused (its list or entry has expired).
        """
        for alias in aliases:
            check_alias(alias)
        with self.alone(f"{identifier}@{version}"):
            row = await asyncio.to_thread(self._approvable, identifier, version, aliases, force)
            if row.state == ImageState.QUARANTINED:
                row = await asyncio.to_thread(self._publishable, row)
            return await asyncio.to_thread(
                self._approved, row, aliases, audience, reason=reason, force=force, actor=actor
            )

    def set_alias(self, alias: str, name: str, *, actor: str) -> str:
        """Let ``alias`` mean the image that ``name`` (UUID or alias) names; gives its UUID."""
        check_alias(alias)
        with self._database.transaction() as session:
            identifier = identifier_of(session, name)
            found = session.get(Alias, alias)
            before = found.identifier if found is not None else None
            if before == identifier:
                return identifier
            if found is None:
                session.add(Alias(alias=alias, identifier=identifier))
            else:
                found.identifier = identifier
            rise(session, CATALOGUE_CHANGES)
            record(
                session,
                at=self._clock(),
                actor=actor,
                action="alias-set",
                subject=alias,
                identifier=identifier,
                before=before,
            )
            return identifier

    @contextmanager
    def alone(self, name: str, *, wait_s: float = 0.0) -> Iterator[None]:
        """One at a time handles the raw file of an image version. Off the event loop others may be
        waited for. Raises Conflict."""
        with self._turn:
            if not self._turn.wait_for(lambda: name not in self._approving, timeout=wait_s):
                raise Conflict(
                    f"image {name} is being approved or checked already",
                    hint="wait for it",
                    image=name,
                )
            self._approving.add(name)
        try:
            yield
        finally:
            with self._turn:
                self._approving.discard(name)
                self._turn.notify_all()

    def _approvable(
        self, identifier: str, version: str, aliases: Sequence[str], force: str
    ) -> Image:
        now = self._clock()
        with self._database.reading() as session:
            row = locked(session, identifier, version)
            _check_state(row)
            for alias in aliases:
                _check_alias_free(session, alias, identifier)
            if row.state == ImageState.APPROVED:
                return row
            _check_newest(session, row)
            require_unexpired(row, now)
            self._examination.require(session, row, force=force)
            return row

    def _publishable(self, row: Image) -> Image:
        """Digest, torrent, and the move; the row comes back with what is known of the raw bytes."""
        folder = self._store.quarantine_dir(row.identifier, row.version)
        image = folder / IMAGE_FILE
        if not image.exists() and row.infohash and self._store.image_file(row.infohash).exists():
            return row  # A crash came between the move and the approval.
        name = image_name(row)
        with named_faults(image):
            require_raw(image, image=name)
            before = _written(image)
            torrent, digest = make_torrent_and_digest(
                image,
                piece_bytes=self._piece_bytes(row.size_bytes or row.endorsed_size_bytes),
                out=folder / TORRENT_FILE,
            )
            at_rest = _written(image) == before
        if not at_rest or digest != (row.sha512 or row.endorsed_sha512):
            raise DigestMismatch(
                f"image {name}: its file has changed in quarantine",
                hint="check the head's disk; deny the image, or add it again",
                image=name,
            )
        with self._database.transaction() as session:
            check_bytes_free(session, row, torrent.infohash, self._clock())
            fresh = locked(session, row.identifier, row.version)
            fresh.infohash, fresh.piece_bytes = torrent.infohash, torrent.piece_bytes
            fresh.sha512, fresh.size_bytes = digest, torrent.size_bytes
        self._store.move_in(folder, torrent.infohash)
        return fresh

    def _approved(
        self,
        row: Image,
        aliases: Sequence[str],
        audience: Audience | None,
        *,
        reason: str,
        force: str,
        actor: str,
    ) -> Image:
        now = self._clock()
        with self._database.transaction() as session:
            lock_versions(session, row.identifier)
            fresh = locked(session, row.identifier, row.version)
            # While its torrent was made it may have been denied, or overtaken.
            _check_state(fresh)
            missed: dict[str, str] = {}
            was_told = fresh.state == ImageState.APPROVED
            before = fresh.audience
            if audience is not None:
                fresh.audience = _audience_column(audience)
            told_anew = was_told and fresh.lapsed_at is None and fresh.audience != before
            if not was_told:
                _check_newest(session, fresh)
                missed = self._examination.require(session, fresh, force=force)
                check_bytes_free(session, fresh, fresh.infohash, now)
                supersede_others(session, fresh, now=now, grace=self._grace, actor=actor)
                fresh.state, fresh.since, fresh.reason = ImageState.APPROVED, now, reason
                fresh.approved_at, fresh.until = now, None
                emit(session, now, EventType.AVAILABLE_PREFIX, image=fresh)
            if told_anew:
                # It is on the list already, and for others from now on.
                emit(session, now, EventType.AVAILABLE_PREFIX, image=fresh)
                emit(session, now, EventType.AVAILABLE_POSTFIX, image=fresh)
            for alias in aliases:
                _check_alias_free(session, alias, fresh.identifier)
                if session.get(Alias, alias) is None:
                    session.add(Alias(alias=alias, identifier=fresh.identifier))
            session.flush()
            rise(session, CATALOGUE_CHANGES)
            record(
                session,
                at=now,
                actor=actor,
                action="image-approved",
                subject=image_name(fresh),
                infohash=fresh.infohash,
                sha512=fresh.sha512,
                endorser_dn=fresh.endorser_dn,
                aliases=aliases_of(session, fresh.identifier),
                audience=fresh.audience,
                reason=reason,
                checks_not_passed=missed,
                force=force,
            )
            return fresh


def _check_state(row: Image) -> None:
    name = image_name(row)
    if row.state in {ImageState.ANNOUNCED, ImageState.EXPECTED}:
        raise Conflict(
            f"image {name}: its file has not come in yet",
            hint="distrib image add FILE --list LIST",
            image=name,
        )
    if row.state in {ImageState.DENIED, ImageState.REVOKED}:
        raise Revoked(
            f"image {name} is {row.state}: {row.reason}",
            hint="take in another version",
            image=name,
        )


def _check_newest(session: Session, row: Image) -> None:
    """An approval only moves forward; back goes a rollout of the superseded version."""
    other = newer_approved(session, row)
    if other is not None:
        raise Conflict(
            f"image {image_name(row)} is older than {other.version}, which is approved",
            hint="roll out the older version to go back, or deny the newer one first",
            image=image_name(row),
        )


def _check_alias_free(session: Session, alias: str, identifier: str) -> None:
    found = session.get(Alias, alias)
    if found is not None and found.identifier != identifier:
        raise Conflict(
            f"alias {alias!r} means image {found.identifier} already",
            hint="distrib image alias moves it",
            alias=alias,
        )


def _audience_column(audience: Audience) -> dict[str, Any]:
    return {"all": True} if audience == "all" else {"users": sorted(set(audience))}


def _written(image: Path) -> tuple[int, ...]:
    """Which file it is, and when it was last changed: nodes would find every byte of another in
    the swarm, but the image would have to be approved again."""
    found = image.stat()
    return found.st_ino, found.st_size, found.st_mtime_ns, found.st_ctime_ns
