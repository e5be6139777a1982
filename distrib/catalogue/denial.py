"""The site's own no to an image version: at once, without the endorser, and taken back."""

from __future__ import annotations

from datetime import datetime, timedelta

import structlog
from sqlalchemy import select
from sqlalchemy.orm import Session

from distrib.catalogue.clock import Clock
from distrib.catalogue.store import ImageStore, named_faults
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
from distrib.db.models import AcceptedList, Image, ImageState
from distrib.db.outbox import EventType, begin_expiry, emit
from distrib.db.references import USABLE, image_name
from distrib.db.session import Database
from distrib.errors import Conflict, Revoked
from distrib.swarm import IMAGE_FILE
from distrib.trust.imagelist import parse_image_list, version_key
from distrib.trust.signature import open_smime

log = structlog.get_logger(__name__)


class Denial:
    """Deny and undeny. ``grace`` is how long a version that was overtaken stays leasable."""

    def __init__(
        self,
        *,
        database: Database,
        store: ImageStore,
        clock: Clock,
        grace: timedelta = SUPERSEDE_GRACE,
    ) -> None:
        self._database = database
        self._store = store
        self._clock = clock
        self._grace = grace

    def deny(self, identifier: str, version: str, *, reason: str, actor: str) -> Image:
        """Take the version off the site list, whatever its state. The file stays for the audit."""
        with self._database.transaction() as session:
            row = locked(session, identifier, version)
            if row.state == ImageState.DENIED:
                return row
            row.before_denial = row.state
            row.state, row.since, row.reason = ImageState.DENIED, self._clock(), reason
            if row.before_denial in USABLE:
                begin_expiry(session, row.since, row)
            rise(session, CATALOGUE_CHANGES)
            record(
                session,
                at=row.since,
                actor=actor,
                action="image-denied",
                subject=image_name(row),
                reason=reason,
                before=row.before_denial,
            )
        log.warning("image-denied", image=image_name(row), actor=actor, why=reason)
        return row

    def undeny(self, identifier: str, version: str, *, reason: str, actor: str) -> Image:
        """Back to the state before the denial; ``superseded`` where a newer one was approved since.

        Raises NotFound, Conflict (not denied; another image with the same bytes is listed), Revoked
        (the endorser's newest list no longer names the image: the denial stays).
        """
        now = self._clock()
        with self._database.transaction() as session:
            lock_versions(session, identifier)
            row = locked(session, identifier, version)
            name = image_name(row)
            if row.state != ImageState.DENIED:
                raise Conflict(
                    f"image {name} is {row.state}, not denied",
                    hint="distrib image show says what it is",
                    image=name,
                )
            if not self._is_endorsed(session, row):
                raise Revoked(
                    f"image {name}: the endorser's newest list no longer names it",
                    hint="the denial stays; take in an image that is endorsed",
                    image=name,
                )
            row.state = self._state_after(session, row, now)
            row.since, row.reason, row.before_denial = now, reason, None
            if row.state == ImageState.APPROVED:
                supersede_others(session, row, now=now, grace=self._grace, actor=actor)
            if row.state in USABLE:
                emit(session, now, EventType.AVAILABLE_PREFIX, image=row)
            rise(session, CATALOGUE_CHANGES)
            record(
                session,
                at=now,
                actor=actor,
                action="image-undenied",
                subject=name,
                reason=reason,
                state=row.state,
            )
        log.warning("image-undenied", image=name, state=row.state, actor=actor, why=reason)
        return row

    def _is_endorsed(self, session: Session, row: Image) -> bool:
        if row.proposed_by is not None:
            # What its user withdrew is not denied, but revoked.
            return True
        lists = session.scalars(
            select(AcceptedList).where(AcceptedList.identifier == row.list_identifier)
        )
        newest = max(lists, key=lambda found: version_key(found.version))
        file = self._store.list_file(newest.sha512)
        with named_faults(file):
            message = file.read_bytes()
        listed = parse_image_list(open_smime(message).document)
        return row.identifier in {image.identifier for image in listed.images}

    def _state_after(self, session: Session, row: Image, now: datetime) -> ImageState:
        before = ImageState(row.before_denial or ImageState.EXPECTED)
        if before == ImageState.QUARANTINED:
            folder = self._store.quarantine_dir(row.identifier, row.version)
            return before if (folder / IMAGE_FILE).exists() else ImageState.EXPECTED
        if before not in USABLE:
            return before
        if row.infohash is None or not self._store.image_file(row.infohash).exists():
            return ImageState.EXPECTED
        check_bytes_free(session, row, row.infohash, now)
        if before == ImageState.APPROVED and newer_approved(session, row) is not None:
            row.until = now + self._grace
            return ImageState.SUPERSEDED
        return before
