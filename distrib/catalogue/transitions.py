"""What lists do to an image version: one function for each change of its state.

All are called in the transaction that the list is accepted in (or the clock was looked at), and
each leaves its line in the audit log. ``CATALOGUE_CHANGES`` rises where the site list may change.
"""

from __future__ import annotations

from dataclasses import dataclass
from datetime import datetime

import structlog
from sqlalchemy.orm import Session

from distrib.catalogue.entries import entry_of
from distrib.db.audit import record
from distrib.db.counters import CATALOGUE_CHANGES, rise
from distrib.db.models import AcceptedList, Image, ImageState
from distrib.db.outbox import EventType, begin_expiry, emit
from distrib.db.references import USABLE, image_name
from distrib.trust.imagelist import Image as Endorsed

log = structlog.get_logger(__name__)

#: Nobody has approved these yet: their rows follow what the newest list says of them.
PENDING = frozenset({ImageState.ANNOUNCED, ImageState.EXPECTED, ImageState.QUARANTINED})


@dataclass(frozen=True)
class Change:
    """When, and by whom or in whose name."""

    at: datetime
    actor: str


def announced(session: Session, endorsed: Endorsed, signed: AcceptedList, change: Change) -> Image:
    """A new row: the list names the version, and nobody has asked for it."""
    row = Image(
        identifier=endorsed.identifier,
        version=endorsed.version,
        state=ImageState.ANNOUNCED,
        since=change.at,
    )
    _describe(row, endorsed, signed)
    session.add(row)
    session.flush()
    emit(session, change.at, EventType.IMAGE_NEW, image=row)
    log.info("image-announced", image=image_name(row), title=row.title, list=row.list_identifier)
    return row


def renewed(session: Session, row: Image, endorsed: Endorsed, signed: AcceptedList) -> None:
    """The newest list still names the version: what it says now counts.

    What was approved keeps the entry and the list that it was approved by, but for its expiry.
    """
    before = row.expires
    if row.state in PENDING or row.state == ImageState.REVOKED:
        _describe(row, endorsed, signed)
        if row.state == ImageState.EXPECTED and row.source:
            row.source = endorsed.uri
    else:
        kept = {key: value for key, value in row.entry.items() if key != "dc:date:expires"}
        fresh = entry_of(endorsed)
        expiry = {key: fresh[key] for key in ("dc:date:expires",) if key in fresh}
        row.entry = kept | expiry
        row.expires = endorsed.expires
        if row.expires != before:
            rise(session, CATALOGUE_CHANGES)
    endorsed_until(row, signed)


def endorsed_until(row: Image, signed: AcceptedList) -> None:
    """The list stands for the row until the list or the entry expires, whichever is first."""
    row.endorsed_until = min(signed.expires, row.expires or signed.expires)


def expected(session: Session, row: Image, *, source: str, change: Change) -> None:
    """The file is wanted: from ``source``, or uploaded by somebody where that is empty."""
    row.state, row.since, row.reason = ImageState.EXPECTED, change.at, ""
    row.source, row.fetched_bytes, row.fault = source, 0, {}
    session.flush()
    record(
        session,
        at=change.at,
        actor=change.actor,
        action="image-expected",
        subject=image_name(row),
        title=row.title,
        list_sha512=row.list_sha512,
        source=source,
    )


def revoked(session: Session, row: Image, signed: AcceptedList, change: Change) -> None:
    """The endorser's newest list no longer names it. The site's denial stays a denial."""
    if row.state == ImageState.DENIED:
        row.before_denial = ImageState.REVOKED
        return
    was_usable = row.state in USABLE
    row.state, row.since = ImageState.REVOKED, change.at
    row.reason = f"no longer on the list {signed.identifier} {signed.version}"
    rise(session, CATALOGUE_CHANGES)
    record(
        session,
        at=change.at,
        actor=change.actor,
        action="image-revoked",
        subject=image_name(row),
        list=signed.identifier,
        list_version=signed.version,
    )
    if was_usable:
        begin_expiry(session, change.at, row)
    log.warning("image-revoked", image=image_name(row), why=row.reason)


def endorsed_again(session: Session, row: Image, change: Change) -> None:
    """A version that was revoked is on the list again: the site decides anew."""
    if row.state == ImageState.DENIED:
        row.before_denial = ImageState.ANNOUNCED
        return
    row.state, row.since, row.reason = ImageState.ANNOUNCED, change.at, ""
    row.until = None
    record(
        session,
        at=change.at,
        actor=change.actor,
        action="image-endorsed-again",
        subject=image_name(row),
    )
    log.info("image-endorsed-again", image=image_name(row))


def forgotten(session: Session, row: Image, *, why: str) -> None:
    """It was only announced, nobody had asked for it, and nobody offers it any more."""
    log.info("image-forgotten", image=image_name(row), list=row.list_identifier, why=why)
    session.delete(row)


def lapsed(session: Session, row: Image, change: Change) -> None:
    """List or entry have expired: the image is off the site list until a newer list names it."""
    row.lapsed_at = change.at
    if row.state == ImageState.ANNOUNCED:
        return
    _note_standing(session, row, change, action="image-lapsed")
    if row.state in USABLE:
        begin_expiry(session, change.at, row)
    log.warning("image-lapsed", image=image_name(row), endorsed_until=str(row.endorsed_until))


def restored(session: Session, row: Image, change: Change) -> None:
    """A newer list stands for a version that had lapsed: it is what it was before."""
    row.lapsed_at = None
    if row.state == ImageState.ANNOUNCED:
        return
    _note_standing(session, row, change, action="image-restored")
    if row.state in USABLE:
        emit(session, change.at, EventType.AVAILABLE_PREFIX, image=row)
    log.info("image-restored", image=image_name(row), state=row.state)


def _note_standing(session: Session, row: Image, change: Change, *, action: str) -> None:
    """Whether a list stands for the image has changed, and so may the site list."""
    rise(session, CATALOGUE_CHANGES)
    record(
        session,
        at=change.at,
        actor=change.actor,
        action=action,
        subject=image_name(row),
        state=row.state,
        endorsed_until=row.endorsed_until.isoformat() if row.endorsed_until else None,
    )


def _describe(row: Image, endorsed: Endorsed, signed: AcceptedList) -> None:
    row.title = endorsed.title
    row.list_sha512 = signed.sha512
    row.list_identifier, row.list_version = signed.identifier, signed.version
    row.endorser_dn, row.endorser_ca = signed.endorser_dn, signed.endorser_ca
    row.entry = entry_of(endorsed)
    row.endorsed_sha512, row.endorsed_size_bytes = endorsed.sha512, endorsed.size_bytes
    row.expires = endorsed.expires
    endorsed_until(row, signed)
