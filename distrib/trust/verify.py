"""One verdict on one signed list: every rule of ``distrib.trust``, every broken one named."""

from __future__ import annotations

import hashlib
from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass
from datetime import datetime, timedelta
from enum import StrEnum

from cryptography import x509

from distrib.trust.chain import TrustMaterial, check_chain
from distrib.trust.imagelist import (
    ImageList,
    ImageListInvalid,
    format_time,
    parse_image_list,
    version_key,
)
from distrib.trust.names import same_name, slash_form
from distrib.trust.reasons import TIME_CODES, Reason, ReasonCode, refusal
from distrib.trust.revocation import CrlPolicy
from distrib.trust.signature import may_sign, open_smime

ROLE_URI_PREFIX = "urn:distrib:role:"
CATALOGUE_ROLE = "catalogue"
DEFAULT_CLOCK_SKEW_S = 300


class Profile(StrEnum):
    """Whose list it is: an endorser's, or a site's (docs/formats/site-list.md)."""

    ENDORSER = "endorser"
    SITE = "site"


@dataclass(frozen=True, slots=True)
class AuthorisedEndorser:
    """Somebody who may sign a list: subject and issuer, in slash form or RFC 4514."""

    dn: str
    ca: str


@dataclass(frozen=True, slots=True)
class Expectation:
    """What a list is held against.

    ``endorsers``: who may sign it; None where nobody is asked for (a first look), and nobody at all
    if empty. ``identifier``: the subscription's. ``last_version`` and ``last_sha512`` (of the whole
    message, hex): the last list that was accepted. ``foreign_uuids``: image UUIDs that other
    subscriptions own.
    """

    endorsers: tuple[AuthorisedEndorser, ...] | None = None
    identifier: str | None = None
    last_version: str | None = None
    last_sha512: str | None = None
    foreign_uuids: frozenset[str] = frozenset()
    clock_skew_s: int = DEFAULT_CLOCK_SKEW_S
    profile: Profile = Profile.ENDORSER


@dataclass(frozen=True, slots=True)
class Verdict:
    """What was found. ``image_list``, ``signer_dn``, ``signer_ca`` are claims unless ``accepted``.

    They are None or empty where the message could not be read that far.
    """

    reasons: tuple[Reason, ...]
    image_list: ImageList | None
    document: bytes
    signer: x509.Certificate | None
    signer_dn: str
    signer_ca: str
    digest_algorithm: str
    message_sha512: str

    @property
    def accepted(self) -> bool:
        """Whether the list breaks no rule."""
        return self.image_list is not None and not self.reasons

    @property
    def authentic(self) -> bool:
        """Whether only the passing of time speaks against the list: it was acceptable once."""
        return self.image_list is not None and all(
            reason.code in TIME_CODES for reason in self.reasons
        )

    def require(self) -> ImageList:
        """The list, if accepted; else ``TrustRefused`` with every reason."""
        if self.image_list is None or self.reasons:
            raise refusal(
                "image list",
                self.reasons,
                message_sha512=self.message_sha512,
            )
        return self.image_list


def verify(
    message: bytes,
    *,
    trust: TrustMaterial,
    expectation: Expectation,
    now: datetime,
    crls: CrlPolicy = "require",
) -> Verdict:
    """Hold a signed list against every rule at ``now`` (aware). A bad message never raises."""
    opened = open_smime(message)
    reasons = list(opened.reasons)
    sha512 = hashlib.sha512(message).hexdigest()
    dn = ca = ""
    if opened.signer is not None:
        dn, ca = slash_form(opened.signer.subject), slash_form(opened.signer.issuer)
        reasons += _signer_reasons(opened.signer, expectation)
        reasons += check_chain(
            opened.signer, untrusted=opened.certificates, trust=trust, now=now, crls=crls
        )
    image_list = None
    if opened.document or not opened.reasons:
        try:
            image_list = parse_image_list(opened.document)
        except ImageListInvalid as error:
            reasons += error.found
    if image_list is not None:
        if opened.signer is not None:
            reasons += _endorser_reasons(image_list, opened.signer)
        reasons += _date_reasons(image_list, now, expectation.clock_skew_s)
        reasons += _subscription_reasons(image_list, expectation, sha512)
        reasons += _uuid_reasons(image_list, expectation)
    return Verdict(
        reasons=tuple(dict.fromkeys(reasons)),
        image_list=image_list,
        document=opened.document,
        signer=opened.signer,
        signer_dn=dn,
        signer_ca=ca,
        digest_algorithm=opened.digest_algorithm,
        message_sha512=sha512,
    )


def roles_of(certificate: x509.Certificate) -> frozenset[str]:
    """The roles in a SubjectAltName, as ``catalogue`` of ``urn:distrib:role:catalogue``."""
    try:
        names = certificate.extensions.get_extension_for_class(x509.SubjectAlternativeName).value
    except (x509.ExtensionNotFound, ValueError):
        return frozenset()
    uris = names.get_values_for_type(x509.UniformResourceIdentifier)
    return frozenset(
        uri.removeprefix(ROLE_URI_PREFIX) for uri in uris if uri.startswith(ROLE_URI_PREFIX)
    )


def _signer_reasons(signer: x509.Certificate, expectation: Expectation) -> Iterable[Reason]:
    dn, ca = slash_form(signer.subject), slash_form(signer.issuer)
    if not may_sign(signer):
        yield Reason(ReasonCode.KEY_USAGE, f"{dn} may not sign: keyUsage lacks digitalSignature")
    if expectation.profile is Profile.SITE and CATALOGUE_ROLE not in roles_of(signer):
        text = f"{dn} does not have the role {CATALOGUE_ROLE}: it may not sign site lists"
        yield Reason(ReasonCode.ROLE_MISSING, text)
    if expectation.endorsers is not None and not any(
        same_name(endorser.dn, signer.subject) and same_name(endorser.ca, signer.issuer)
        for endorser in expectation.endorsers
    ):
        text = f"{dn} (certified by {ca}) is not authorised to sign this list"
        yield Reason(ReasonCode.ENDORSER_NOT_AUTHORISED, text)


def _endorser_reasons(image_list: ImageList, signer: x509.Certificate) -> Iterable[Reason]:
    for key, stated, actual in (
        ("hv:dn", image_list.endorser.dn, signer.subject),
        ("hv:ca", image_list.endorser.ca, signer.issuer),
    ):
        if not same_name(stated, actual):
            text = f"{key} is {stated!r}, the signer's certificate says {slash_form(actual)!r}"
            yield Reason(ReasonCode.SIGNER_NOT_ENDORSER, text)


def _date_reasons(image_list: ImageList, now: datetime, skew_s: int) -> Iterable[Reason]:
    if image_list.created > now + timedelta(seconds=skew_s):
        ahead_s = int((image_list.created - now).total_seconds())
        text = (
            f"created {format_time(image_list.created)}, {ahead_s} s after now: "
            "the clock here is behind, or the endorser's is ahead"
        )
        yield Reason(ReasonCode.LIST_NOT_YET_VALID, text)
    if now > image_list.expires:
        yield Reason(ReasonCode.LIST_EXPIRED, f"expired {format_time(image_list.expires)}")


def _subscription_reasons(
    image_list: ImageList, expectation: Expectation, sha512: str
) -> Iterable[Reason]:
    wanted = expectation.identifier
    if wanted is not None and image_list.identifier != wanted.lower():
        text = f"the list is {image_list.identifier}, the subscription is for {wanted.lower()}"
        yield Reason(ReasonCode.IDENTIFIER_MISMATCH, text)
    if expectation.last_version is None:
        return
    new, last = version_key(image_list.version), version_key(expectation.last_version)
    if new < last:
        text = f"version {image_list.version} after {expectation.last_version}"
        yield Reason(ReasonCode.VERSION_DOWN, text)
    elif new == last and expectation.last_sha512 not in {None, sha512}:
        text = f"version {image_list.version} was seen before with other bytes"
        yield Reason(ReasonCode.VERSION_SAME_OTHER_BYTES, text)


def _uuid_reasons(image_list: ImageList, expectation: Expectation) -> Iterable[Reason]:
    site = expectation.profile is Profile.SITE
    counts = Counter(
        f"{image.identifier}@{image.version}" if site else image.identifier
        for image in image_list.images
    )
    for name, count in counts.items():
        if count > 1:
            yield Reason(ReasonCode.UUID_DUPLICATE, f"image {name} occurs {count} times")
    if not site:
        foreign = {uuid.lower() for uuid in expectation.foreign_uuids}
        for name in counts:
            if name in foreign:
                text = f"image {name} belongs to another subscription"
                yield Reason(ReasonCode.UUID_FOREIGN, text)
