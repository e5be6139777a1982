"""What an accepted list means for the images of the site: announced, renewed, revoked, taken.

``follow`` may be repeated with the same list: nothing is done twice. The rules:

- A version that the site does not know becomes ``announced``.
- A UUID that the newest list omits is revoked, with all its versions. In a *site list* versions
  stand for themselves: what is omitted is revoked, though another version of the UUID stays.
- The same version with other bytes is not taken over; the row stays as it is, and that is told.
- A version that is announced and no longer on the list, while another of its UUID is, is forgotten.
- What a list endorses lapses when the list (or the entry) expires, and comes back with a newer one.
- What is taken in unasked is the newest version of a UUID: of those that the site has taken before
  (``known``), or of every one (``all``); of a site list what is approved there, not superseded.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterable
from dataclasses import dataclass
from datetime import datetime

from sqlalchemy import ColumnElement, and_, or_, select
from sqlalchemy.orm import Session

from distrib.catalogue import transitions
from distrib.catalogue.entries import entry_of
from distrib.catalogue.transitions import Change
from distrib.db.intake_models import Take
from distrib.db.models import AcceptedList, Image, ImageState
from distrib.db.references import USABLE, image_name
from distrib.trust.imagelist import Image as Endorsed
from distrib.trust.imagelist import version_key
from distrib.trust.reasons import ReasonCode

# Versions travel in messages, file names and URLs: the bus takes no others (docs/formats).
_VERSION = re.compile(r"[0-9A-Za-z][0-9A-Za-z_.,/+~-]{0,63}")
#: The site list carries the entries of all images whole, to every node, and has a bound itself.
ENTRY_MAX_CHARS = 16 * 1024
_TAKEN = frozenset({ImageState.EXPECTED, ImageState.QUARANTINED, *USABLE})
_GONE = frozenset({ImageState.DENIED, ImageState.REVOKED})


@dataclass(frozen=True)
class Offer:
    """One entry of a list. ``current``: not one that the site which signed the list has replaced"""

    image: Endorsed
    current: bool = True


@dataclass(frozen=True)
class Remark:
    """Why an entry of an accepted list is passed over."""

    image: str
    code: str
    message: str

    def as_dict(self) -> dict[str, str]:
        """The remark as the API carries it."""
        return {"image": self.image, "code": self.code, "message": self.message}


def is_usable_version(version: str) -> bool:
    """Whether an image version can be named in messages and files."""
    return _VERSION.fullmatch(version) is not None


def foreign_to(session: Session, list_identifier: str, uuids: Iterable[str]) -> frozenset[str]:
    """Those UUIDs that came to this site by another list first."""
    query = select(Image.identifier).where(
        Image.list_identifier != list_identifier, Image.identifier.in_(set(uuids))
    )
    return frozenset(session.scalars(query))


def follow(
    session: Session,
    signed: AcceptedList,
    offers: tuple[Offer, ...],
    *,
    by_version: bool,
    take: Take,
    change: Change,
) -> tuple[Remark, ...]:
    """Bring the images to what the newest list says. ``by_version``: it is a site list."""
    # What had lapsed unnoticed must not come back unnoticed.
    note_lapses(session, change)
    query = select(Image).where(Image.list_identifier == signed.identifier).with_for_update()
    rows = {(row.identifier, row.version): row for row in session.scalars(query)}
    remarks: list[Remark] = []
    foreign = foreign_to(session, signed.identifier, {one.image.identifier for one in offers})
    for offer in offers:
        endorsed = offer.image
        key = (endorsed.identifier, endorsed.version)
        why = _passed_over(endorsed, rows.get(key), foreign)
        if why is not None:
            remarks.append(why)
        elif key in rows:
            _renew(session, rows[key], endorsed, signed, change)
        else:
            rows[key] = transitions.announced(session, endorsed, signed, change)
    kept = _drop(session, rows, signed, offers, by_version=by_version, change=change)
    note_lapses(session, change)
    _take(session, kept, offers, take, change)
    return tuple(remarks)


def note_lapses(session: Session, change: Change) -> None:
    """Mark what has lapsed since the last look, and what is endorsed again."""
    query = select(Image).where(_turned(change.at)).with_for_update()
    for row in session.scalars(query).all():
        if row.lapsed_at is None:
            transitions.lapsed(session, row, change)
        else:
            transitions.restored(session, row, change)


def lapses_are_due(session: Session, now: datetime) -> bool:
    """Whether ``note_lapses`` has something to do."""
    return session.scalar(select(Image.identifier).where(_turned(now)).limit(1)) is not None


def _turned(now: datetime) -> ColumnElement[bool]:
    return and_(
        Image.state.not_in(_GONE),
        or_(
            and_(Image.endorsed_until <= now, Image.lapsed_at.is_(None)),
            and_(Image.endorsed_until > now, Image.lapsed_at.is_not(None)),
        ),
    )


def next_lapse(session: Session, now: datetime) -> datetime | None:
    """When the next endorsement ends; None if none does."""
    query = select(Image.endorsed_until).where(
        Image.endorsed_until > now, Image.state.not_in(_GONE)
    )
    return session.scalar(query.order_by(Image.endorsed_until).limit(1))


def was_taken(row: Image) -> bool:
    """Whether the site has asked for this version at some time."""
    if row.state in _TAKEN or row.before_denial in _TAKEN:
        return True
    return row.state in _GONE and (row.source != "" or row.approved_at is not None)


def _passed_over(endorsed: Endorsed, row: Image | None, foreign: frozenset[str]) -> Remark | None:
    name = f"{endorsed.identifier}@{endorsed.version[:80]}"
    if endorsed.identifier in foreign:
        return Remark(name, ReasonCode.UUID_FOREIGN, "belongs to another list at this site")
    if not is_usable_version(endorsed.version):
        text = "the version cannot be used here: at most 64 of letters, digits and _ . , / + ~ -"
        return Remark(name, "image-invalid", text)
    if len(json.dumps(entry_of(endorsed))) > ENTRY_MAX_CHARS:
        text = f"its entry has more than {ENTRY_MAX_CHARS} characters, all keys counted"
        return Remark(name, "image-invalid", text)
    if row is not None and row.endorsed_sha512 != endorsed.sha512:
        text = "known with other bytes: other bytes need another version"
        return Remark(name, ReasonCode.VERSION_SAME_OTHER_BYTES, text)
    return None


def _renew(
    session: Session, row: Image, endorsed: Endorsed, signed: AcceptedList, change: Change
) -> None:
    gone = row.state == ImageState.REVOKED
    transitions.renewed(session, row, endorsed, signed)
    if gone or row.before_denial == ImageState.REVOKED:
        transitions.endorsed_again(session, row, change)


def _drop(
    session: Session,
    rows: dict[tuple[str, str], Image],
    signed: AcceptedList,
    offers: tuple[Offer, ...],
    *,
    by_version: bool,
    change: Change,
) -> list[Image]:
    """Revoke or forget what the list omits; what is left."""
    listed = {(one.image.identifier, one.image.version) for one in offers}
    uuids = {identifier for identifier, _version in listed}
    kept = []
    for key, row in rows.items():
        named = key in listed if by_version else row.identifier in uuids
        if not named:
            if row.state != ImageState.REVOKED:
                transitions.revoked(session, row, signed, change)
        elif key not in listed and row.state == ImageState.ANNOUNCED:
            transitions.forgotten(session, row, why="another version is listed")
            continue
        elif key not in listed:
            # An older version: as long as its UUID is on the list, the endorser stands for it.
            transitions.endorsed_until(row, signed)
        kept.append(row)
    return kept


def _take(
    session: Session,
    rows: list[Image],
    offers: tuple[Offer, ...],
    take: Take,
    change: Change,
) -> None:
    if take == Take.NONE:
        return
    current = {(one.image.identifier, one.image.version) for one in offers if one.current}
    taken = {row.identifier: version_key(row.version) for row in _oldest_first(rows, taken=True)}
    newest = {row.identifier: row for row in _oldest_first(rows, taken=False)}
    for row in newest.values():
        known = taken.get(row.identifier)
        wanted = known is not None or take == Take.ALL
        newer = known is None or version_key(row.version) > known
        offered = (row.identifier, row.version) in current and row.lapsed_at is None
        if row.state == ImageState.ANNOUNCED and wanted and newer and offered:
            transitions.expected(session, row, source=str(row.entry["hv:uri"]), change=change)


def _oldest_first(rows: list[Image], *, taken: bool) -> list[Image]:
    found = [row for row in rows if was_taken(row)] if taken else rows
    return sorted(found, key=lambda row: (version_key(row.version), image_name(row)))
