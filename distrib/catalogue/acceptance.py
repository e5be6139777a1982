"""Whether a signed list may be believed here and now; and, where it may, that it counts.

``examine`` holds it against every rule of ``distrib.trust``, ``accept`` keeps its bytes for ever
and lets the images follow. Both run in one transaction of the caller: of two lists that come at the
same time, the second is held against what the first has left.

A list that says ``distrib:profile`` is a site's (docs/formats/site-list.md) and is held against the
rules of site lists, which take the role ``catalogue`` of its signer.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import structlog
from sqlalchemy import select
from sqlalchemy.orm import Session

from distrib.catalogue.clock import Clock
from distrib.catalogue.following import Offer, Remark, follow, foreign_to
from distrib.catalogue.store import ImageStore
from distrib.catalogue.transitions import Change
from distrib.db.audit import record
from distrib.db.counters import LIST_ACCEPTANCES, rise
from distrib.db.intake_models import Take
from distrib.db.models import AcceptedList, Image
from distrib.trust.chain import TrustMaterial
from distrib.trust.imagelist import ImageList, ImageListInvalid, parse_image_list, version_key
from distrib.trust.reasons import Reason, ReasonCode, refusal
from distrib.trust.revocation import CrlPolicy
from distrib.trust.signature import open_smime
from distrib.trust.sitelist import site_list_of
from distrib.trust.verify import AuthorisedEndorser, Expectation, Profile, Verdict, verify

log = structlog.get_logger(__name__)

SITE_PROFILE_KEY = "distrib:profile"
#: Accepting a list holds the lock of the database, 1.5 ms an image: a denial must not wait long.
MAX_IMAGES = 2000


@dataclass(frozen=True)
class Claim:
    """What a message says of itself, before anything of it is believed."""

    identifier: str | None = None
    profile: Profile = Profile.ENDORSER
    uuids: frozenset[str] = frozenset()

    @property
    def is_site_list(self) -> bool:
        """Whether it says that a site has signed it."""
        return self.profile is Profile.SITE


@dataclass(frozen=True)
class Examined:
    """A message and what was found; ``offers`` are empty unless it may be believed."""

    message: bytes
    claim: Claim
    verdict: Verdict
    reasons: tuple[Reason, ...]
    offers: tuple[Offer, ...] = ()

    def require(self) -> ImageList:
        """The list. Raises TrustRefused with every reason."""
        if self.reasons or self.verdict.image_list is None:
            raise refusal(
                "image list",
                self.reasons,
                message_sha512=self.verdict.message_sha512,
            )
        return self.verdict.image_list


@dataclass(frozen=True)
class Accepted:
    """``new`` is False where the very same message was accepted before."""

    image_list: ImageList
    sha512: str
    new: bool
    remarks: tuple[Remark, ...]


class Acceptance:
    """``trust`` reads the trust directory anew each time: CRLs are renewed behind our back."""

    def __init__(
        self,
        *,
        store: ImageStore,
        trust: Callable[[], TrustMaterial],
        clock: Clock,
        crls: CrlPolicy = "require",
    ) -> None:
        self._store = store
        self._trust = trust
        self._clock = clock
        self._crls: CrlPolicy = crls

    def trust(self) -> TrustMaterial:
        """The CAs and CRLs of endorsers, now. Raises ConfigInvalid."""
        return self._trust()

    def examine(
        self,
        session: Session,
        message: bytes,
        claim: Claim,
        trust: TrustMaterial,
        *,
        endorsers: tuple[AuthorisedEndorser, ...],
        identifier: str | None = None,
    ) -> Examined:
        """Every rule that the list breaks. ``identifier``: which list it must be, if that is known.

        Nobody else's list is accepted until the transaction ends.
        """
        rise(session, LIST_ACCEPTANCES)
        last = None if claim.identifier is None else newest_list(session, claim.identifier)
        expectation = Expectation(
            endorsers=endorsers,
            identifier=identifier,
            last_sha512=last[0] if last else None,
            last_version=last[1] if last else None,
            foreign_uuids=_foreign(session, claim),
            profile=claim.profile,
        )
        verdict = verify(
            message, trust=trust, expectation=expectation, now=self._clock(), crls=self._crls
        )
        offers, faults = _offers(verdict, claim)
        reasons = (*verdict.reasons, *faults, *_takes_proposals(session, claim))
        return Examined(message, claim, verdict, reasons, () if reasons else offers)

    def accept(self, session: Session, examined: Examined, *, take: Take, actor: str) -> Accepted:
        """Keep the list and let the images follow. Raises TrustRefused; may be repeated."""
        image_list = examined.require()
        verdict = examined.verdict
        # Before the commit: what the database says was accepted can be shown.
        self._store.keep_list(verdict.message_sha512, examined.message)
        change = Change(self._clock(), actor)
        signed = session.get(AcceptedList, verdict.message_sha512)
        new = signed is None
        if signed is None:
            signed = AcceptedList(
                sha512=verdict.message_sha512,
                identifier=image_list.identifier,
                version=image_list.version,
                endorser_dn=verdict.signer_dn,
                endorser_ca=verdict.signer_ca,
                created=image_list.created,
                expires=image_list.expires,
                accepted_at=change.at,
                accepted_by=actor,
            )
            session.add(signed)
            session.flush()
            record(
                session,
                at=change.at,
                actor=actor,
                action="list-accepted",
                subject=image_list.identifier,
                version=image_list.version,
                sha512=verdict.message_sha512,
                signer_dn=verdict.signer_dn,
                images=len(image_list.images),
            )
        remarks = follow(
            session,
            signed,
            examined.offers,
            by_version=examined.claim.is_site_list,
            take=take,
            change=change,
        )
        return Accepted(image_list, verdict.message_sha512, new, remarks)

    def note_refusal(self, session: Session, examined: Examined, *, actor: str) -> None:
        """Leave a line in the audit log."""
        claimed, verdict = examined.claim.identifier, examined.verdict
        record(
            session,
            at=self._clock(),
            actor=actor,
            action="list-refused",
            subject=claimed or verdict.message_sha512,
            reasons=[{"code": one.code, "message": one.message} for one in examined.reasons],
            signer_dn=verdict.signer_dn,
            sha512=verdict.message_sha512,
        )


def claim_of(message: bytes) -> Claim:
    """Which list the message says it is. Says nothing of whether that is true."""
    document = open_smime(message).document
    try:
        image_list = parse_image_list(document)
    except ImageListInvalid:
        return Claim()
    return Claim(
        identifier=image_list.identifier,
        profile=Profile.SITE if SITE_PROFILE_KEY in image_list.extra else Profile.ENDORSER,
        uuids=frozenset(image.identifier for image in image_list.images),
    )


def newest_list(session: Session, identifier: str) -> tuple[str, str] | None:
    """SHA-512 and version of the accepted list of the highest version; None before the first."""
    query = select(AcceptedList.sha512, AcceptedList.version)
    rows = session.execute(query.where(AcceptedList.identifier == identifier))
    found = [(sha512, version) for sha512, version in rows]
    return max(found, key=lambda row: version_key(row[1]), default=None)


def _foreign(session: Session, claim: Claim) -> frozenset[str]:
    """In a site list single entries are passed over; an endorser's list is refused as a whole."""
    if claim.identifier is None or claim.is_site_list:
        return frozenset()
    return foreign_to(session, claim.identifier, claim.uuids)


def _offers(verdict: Verdict, claim: Claim) -> tuple[tuple[Offer, ...], tuple[Reason, ...]]:
    image_list = verdict.image_list
    if image_list is None:
        return (), ()
    if len(image_list.images) > MAX_IMAGES:
        text = f"{len(image_list.images)} images; a site takes lists of up to {MAX_IMAGES}"
        return (), (Reason(ReasonCode.TOO_LARGE, text),)
    if not claim.is_site_list:
        return tuple(Offer(image) for image in image_list.images), ()
    try:
        entries = site_list_of(image_list).images
    except ImageListInvalid as error:
        return (), error.found
    # What users of the other site brought is on that site's head alone.
    endorsed = (one for one in entries if not one.origin.proposed_by)
    return tuple(Offer(one.image, current=one.state == "approved") for one in endorsed), ()


def _takes_proposals(session: Session, claim: Claim) -> tuple[Reason, ...]:
    """A list under the identifier of a proposal would have that image follow it."""
    mine = select(Image.identifier).where(
        Image.list_identifier == claim.identifier, Image.proposed_by.is_not(None)
    )
    if claim.identifier is None or session.scalar(mine.limit(1)) is None:
        return ()
    text = f"{claim.identifier} is what a user of this site proposed"
    return (Reason(ReasonCode.UUID_FOREIGN, text),)
