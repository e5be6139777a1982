"""Taking images in: a signed list that names the image, then the image itself, into quarantine.

1. ``announce``: the list is held against every rule of ``distrib.trust``, for the endorsers that
   this site has authorised for it. Accepted, its bytes are kept for ever, and images that it no
   longer names are revoked.
2. ``receive``: the file streams into quarantine while its size and SHA-512 are computed. It is
   refused at the first byte too many, and what was refused is deleted.

Nothing of a quarantined image reaches a node: that takes an approval (``approval``).
"""

from __future__ import annotations

import re
from collections.abc import Callable
from dataclasses import dataclass, replace
from datetime import datetime

import structlog
from sqlalchemy import select
from sqlalchemy.orm import Session

from distrib.catalogue.clock import Clock
from distrib.catalogue.endorsers import authorised_for
from distrib.catalogue.entries import entry_of
from distrib.catalogue.formats import require_raw
from distrib.catalogue.store import ImageStore
from distrib.db.audit import record
from distrib.db.counters import CATALOGUE_CHANGES, rise
from distrib.db.models import AcceptedList, Image, ImageState
from distrib.db.references import image_name
from distrib.db.session import Database
from distrib.errors import (
    Conflict,
    DigestMismatch,
    ImageError,
    NotFound,
    OperatorError,
    Revoked,
    TrustRefused,
)
from distrib.trust.chain import TrustMaterial
from distrib.trust.imagelist import Image as Endorsed
from distrib.trust.imagelist import ImageList, version_key
from distrib.trust.revocation import CrlPolicy
from distrib.trust.verify import Expectation, Verdict, verify

log = structlog.get_logger(__name__)

# Versions travel in messages, file names and URLs: the bus takes no others (docs/formats).
_VERSION = re.compile(r"[0-9A-Za-z][0-9A-Za-z_.,/+~-]{0,63}")


@dataclass(frozen=True)
class ImageChoice:
    """Which image of a list is meant: everything that is given must fit, and fit one only."""

    sha512: str | None = None
    identifier: str | None = None
    title: str | None = None
    version: str | None = None
    size_bytes: int | None = None

    def fits(self, image: Endorsed) -> bool:
        """Whether ``image`` is one that is meant."""
        wanted = (
            (self.sha512 and self.sha512.lower(), image.sha512),
            (self.identifier and self.identifier.lower(), image.identifier),
            (self.title, image.title),
            (self.version, image.version),
        )
        return all(not want or want == have for want, have in wanted)


class Intake:
    """Signed lists in, expected images out. ``trust`` reads the trust directory anew at each call,
    because CRLs are renewed there behind our back."""

    def __init__(
        self,
        *,
        database: Database,
        store: ImageStore,
        trust: Callable[[], TrustMaterial],
        clock: Clock,
        crls: CrlPolicy = "require",
    ) -> None:
        self._database = database
        self._store = store
        self._trust = trust
        self._clock = clock
        self._crls: CrlPolicy = crls

    def announce(self, message: bytes, choice: ImageChoice, *, actor: str) -> Image:
        """Accept the signed list and expect the image of it that ``choice`` names.

        An image that is known already comes back in the state that it is in. Raises TrustRefused
        with every reason, NotFound or OperatorError where none or several fit, DigestMismatch for
        another SHA-512 or size, Conflict for other bytes under a known version, Revoked for a
        denied image.
        """
        image_list, sha512 = self._accept(message, actor=actor)
        endorsed = _choose(image_list, choice)
        _check_usable(endorsed, choice, self._clock())
        with self._database.transaction() as session:
            return self._expect(session, endorsed, image_list, sha512, actor=actor)

    def _accept(self, message: bytes, *, actor: str) -> tuple[ImageList, str]:
        trust = self._trust()
        with self._database.transaction() as session:
            verdict = self._verdict(session, message, trust)
            if verdict.accepted:
                image_list = verdict.require()
                self._store.keep_list(verdict.message_sha512, message)
                self._register(session, image_list, verdict, actor=actor)
                return image_list, verdict.message_sha512
            claimed = verdict.image_list
            record(
                session,
                at=self._clock(),
                actor=actor,
                action="list-refused",
                subject=claimed.identifier if claimed else verdict.message_sha512,
                reasons=[reason.as_dict() for reason in verdict.reasons],
                signer_dn=verdict.signer_dn,
            )
        verdict.require()
        raise AssertionError("a verdict that is not accepted does not pass")

    def _verdict(self, session: Session, message: bytes, trust: TrustMaterial) -> Verdict:
        """Twice: what the list claims to be says what it must be held against."""
        now = self._clock()
        first = verify(message, trust=trust, expectation=Expectation(), now=now, crls=self._crls)
        claimed = first.image_list
        last = None if claimed is None else _newest_list(session, claimed.identifier)
        expectation = Expectation(
            endorsers=authorised_for(session, claimed.identifier if claimed else None),
            last_version=last.version if last else None,
            last_sha512=last.sha512 if last else None,
            foreign_uuids=_foreign(session, claimed) if claimed else frozenset(),
        )
        return verify(message, trust=trust, expectation=expectation, now=now, crls=self._crls)

    def _register(
        self, session: Session, image_list: ImageList, verdict: Verdict, *, actor: str
    ) -> None:
        if session.get(AcceptedList, verdict.message_sha512) is not None:
            return
        now = self._clock()
        session.add(
            AcceptedList(
                sha512=verdict.message_sha512,
                identifier=image_list.identifier,
                version=image_list.version,
                endorser_dn=verdict.signer_dn,
                endorser_ca=verdict.signer_ca,
                created=image_list.created,
                expires=image_list.expires,
                accepted_at=now,
                accepted_by=actor,
            )
        )
        record(
            session,
            at=now,
            actor=actor,
            action="list-accepted",
            subject=image_list.identifier,
            version=image_list.version,
            sha512=verdict.message_sha512,
            signer_dn=verdict.signer_dn,
        )
        self._revoke_omitted(session, image_list, actor=actor)

    def _revoke_omitted(self, session: Session, image_list: ImageList, *, actor: str) -> None:
        """Omission from the newest list is how an endorser revokes."""
        named = {image.identifier for image in image_list.images}
        rows = session.scalars(select(Image).where(Image.list_identifier == image_list.identifier))
        gone = {ImageState.DENIED, ImageState.REVOKED}
        for row in rows:
            if row.identifier in named or row.state in gone:
                continue
            row.state, row.since = ImageState.REVOKED, self._clock()
            row.reason = f"no longer on the list {image_list.identifier} {image_list.version}"
            rise(session, CATALOGUE_CHANGES)
            record(
                session,
                at=row.since,
                actor=actor,
                action="image-revoked",
                subject=image_name(row),
                list=image_list.identifier,
                list_version=image_list.version,
            )
            log.warning("image-revoked", image=image_name(row), why=row.reason)

    def _expect(
        self,
        session: Session,
        endorsed: Endorsed,
        image_list: ImageList,
        sha512: str,
        *,
        actor: str,
    ) -> Image:
        row = session.get(Image, (endorsed.identifier, endorsed.version))
        if row is not None:
            _check_same(row, endorsed)
            if row.state != ImageState.REVOKED:
                return row
        else:
            row = Image(identifier=endorsed.identifier, version=endorsed.version)
            session.add(row)
        row.title = endorsed.title
        row.list_sha512 = sha512
        row.list_identifier, row.list_version = image_list.identifier, image_list.version
        row.endorser_dn, row.endorser_ca = image_list.endorser.dn, image_list.endorser.ca
        row.entry = entry_of(endorsed)
        row.endorsed_sha512, row.endorsed_size_bytes = endorsed.sha512, endorsed.size_bytes
        row.expires = endorsed.expires
        row.state, row.since, row.reason = ImageState.EXPECTED, self._clock(), ""
        session.flush()
        record(
            session,
            at=row.since,
            actor=actor,
            action="image-expected",
            subject=image_name(row),
            title=row.title,
            list_sha512=sha512,
        )
        return row


def _newest_list(session: Session, identifier: str) -> AcceptedList | None:
    rows = session.scalars(select(AcceptedList).where(AcceptedList.identifier == identifier))
    return max(rows, key=lambda row: version_key(row.version), default=None)


def _foreign(session: Session, image_list: ImageList) -> frozenset[str]:
    """Those UUIDs of the list that came to this site by another list first."""
    query = select(Image.identifier).where(
        Image.list_identifier != image_list.identifier,
        Image.identifier.in_({image.identifier for image in image_list.images}),
    )
    return frozenset(session.scalars(query))


def _choose(image_list: ImageList, choice: ImageChoice) -> Endorsed:
    fitting = [image for image in image_list.images if choice.fits(image)]
    names = "; ".join(f"{image.title!r} {image.version}" for image in image_list.images[:8])
    others = [image for image in image_list.images if replace(choice, sha512=None).fits(image)]
    if not fitting and others:
        meant = "; ".join(f"{image.title!r} {image.version}" for image in others[:8])
        raise DigestMismatch(
            f"the file's SHA-512 differs from that of {meant} on the list {image_list.identifier}",
            hint="this is not the endorsed file, or another list endorses it",
            list=image_list.identifier,
        )
    if not fitting:
        raise NotFound(
            f"the list {image_list.identifier} names no such image",
            hint=f"it names {names or 'none at all'}",
            list=image_list.identifier,
        )
    if len(fitting) > 1:
        raise OperatorError(
            f"{len(fitting)} images of the list fit",
            hint=f"give title and version of one: {names}",
            list=image_list.identifier,
        )
    return fitting[0]


def _check_usable(endorsed: Endorsed, choice: ImageChoice, now: datetime) -> None:
    name = f"{endorsed.identifier}@{endorsed.version}"
    if _VERSION.fullmatch(endorsed.version) is None:
        raise ImageError(
            f"image {endorsed.identifier}: version {endorsed.version[:80]!r} cannot be used here",
            hint="at most 64 of letters, digits and _ . , / + ~ -: the endorser has to change it",
            image=endorsed.identifier,
        )
    if endorsed.expires is not None and endorsed.expires <= now:
        raise TrustRefused(
            f"image {name} expired at {endorsed.expires:%Y-%m-%dT%H:%M:%SZ}",
            hint="ask the endorser for a newer list",
            image=name,
        )
    require_raw(endorsed.format, image=name)
    if choice.size_bytes is not None and choice.size_bytes != endorsed.size_bytes:
        raise DigestMismatch(
            f"image {name}: the file has {choice.size_bytes} bytes,"
            f" the list says {endorsed.size_bytes}",
            hint="this is not the endorsed file, or not all of it",
            image=name,
        )


def _check_same(row: Image, endorsed: Endorsed) -> None:
    if row.endorsed_sha512 != endorsed.sha512:
        raise Conflict(
            f"image {image_name(row)} is known with other bytes",
            hint="other bytes need another version: the endorser has to change it",
            image=image_name(row),
        )
    if row.state == ImageState.DENIED:
        raise Revoked(
            f"image {image_name(row)} was denied by this site: {row.reason}",
            hint="a denied version does not come back; take in another version",
            image=image_name(row),
        )
