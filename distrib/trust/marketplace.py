"""One verdict on one entry of StratusLab's Marketplace, by the rules of ``distrib.trust``.

The service is gone; its entries are signed documents, and are read as such: as files, or by a URL
that somebody keeps. Format: docs/formats/marketplace.md.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterable
from dataclasses import dataclass
from datetime import datetime, timedelta

from cryptography import x509
from cryptography.x509.oid import NameOID

from distrib.trust.chain import TrustMaterial, check_chain
from distrib.trust.entry import Entry, parse_entry
from distrib.trust.fields import format_time
from distrib.trust.names import same_name, slash_form
from distrib.trust.reasons import TIME_CODES, Reason, ReasonCode, refusal
from distrib.trust.revocation import CrlPolicy
from distrib.trust.signature import may_sign
from distrib.trust.verify import DEFAULT_CLOCK_SKEW_S, AuthorisedEndorser
from distrib.trust.xmldsig import SignedXml, open_signed
from distrib.trust.xmltext import Element, XmlRefused, canonical, load_xml


@dataclass(frozen=True, slots=True)
class EndorserByEmail:
    """Somebody who may endorse, by an e-mail address that the certificate must bear."""

    email: str


@dataclass(frozen=True, slots=True)
class EntryExpectation:
    """What an entry is held against; see ``verify.Expectation``.

    ``last_created``: of the last entry that was accepted for this identifier and endorser, since
    their line in time never goes back. ``sha1_endorsers``: who may sign with SHA-1, by e-mail
    address or subject.
    """

    endorsers: tuple[AuthorisedEndorser | EndorserByEmail, ...] | None = None
    identifier: str | None = None
    last_created: datetime | None = None
    last_sha512: str | None = None
    sha1_endorsers: frozenset[str] = frozenset()
    clock_skew_s: int = DEFAULT_CLOCK_SKEW_S


@dataclass(frozen=True, slots=True)
class EntryVerdict:
    """What was found. ``entry`` and the signer's names are claims unless ``accepted``."""

    reasons: tuple[Reason, ...]
    entry: Entry | None
    signer: x509.Certificate | None
    signer_dn: str
    signer_ca: str
    digest_algorithm: str
    message_sha512: str

    @property
    def accepted(self) -> bool:
        """Whether the entry breaks no rule."""
        return self.entry is not None and not self.reasons

    @property
    def authentic(self) -> bool:
        """Whether only the passing of time speaks against it."""
        return self.entry is not None and all(each.code in TIME_CODES for each in self.reasons)

    def require(self) -> Entry:
        """The entry, if accepted; else ``TrustRefused`` with every reason."""
        if self.entry is None or self.reasons:
            raise refusal(
                "marketplace entry",
                self.reasons,
                message_sha512=self.message_sha512,
            )
        return self.entry


def verify_entry(
    content: bytes,
    *,
    trust: TrustMaterial,
    expectation: EntryExpectation,
    now: datetime,
    crls: CrlPolicy = "require",
) -> EntryVerdict:
    """Hold a signed entry against every rule at ``now`` (aware). A bad entry never raises."""
    sha512 = hashlib.sha512(content).hexdigest()
    try:
        root = load_xml(content)
        opened = open_signed(root)
        entry, faults = parse_entry(_readable(root, opened))
    except XmlRefused as refused:
        return EntryVerdict((refused.reason,), None, None, "", "", "", sha512)
    reasons = [*opened.reasons, *faults]
    dn = ca = ""
    signer = opened.signer
    if signer is not None:
        dn, ca = slash_form(signer.subject), slash_form(signer.issuer)
        reasons += _signer_reasons(signer, opened, expectation)
        reasons += check_chain(
            signer, untrusted=opened.certificates[1:], trust=trust, now=now, crls=crls
        )
    if entry is not None:
        if signer is not None:
            reasons += _endorser_reasons(entry, signer)
        reasons += _entry_reasons(entry, now, expectation, sha512)
    return EntryVerdict(
        reasons=tuple(dict.fromkeys(reasons)),
        entry=entry,
        signer=signer,
        signer_dn=dn,
        signer_ca=ca,
        digest_algorithm=opened.digest_algorithm,
        message_sha512=sha512,
    )


def emails_of(certificate: x509.Certificate) -> frozenset[str]:
    """The e-mail addresses that a CA vouches for in this certificate, in lowercase."""
    found = {
        str(attribute.value)
        for attribute in certificate.subject.get_attributes_for_oid(NameOID.EMAIL_ADDRESS)
    }
    try:
        names = certificate.extensions.get_extension_for_class(x509.SubjectAlternativeName).value
        found |= set(names.get_values_for_type(x509.RFC822Name))
    except (x509.ExtensionNotFound, ValueError):
        pass
    return frozenset(address.lower() for address in found)


def _readable(root: Element, opened: SignedXml) -> Element:
    """What to read the entry from: what was signed, or else the whole without its comments."""
    return load_xml(canonical(root) if opened.document is None else opened.document)


def _signer_reasons(
    signer: x509.Certificate, opened: SignedXml, expectation: EntryExpectation
) -> Iterable[Reason]:
    dn, ca = slash_form(signer.subject), slash_form(signer.issuer)
    emails = emails_of(signer)
    if not may_sign(signer):
        yield Reason(ReasonCode.KEY_USAGE, f"{dn} may not sign: keyUsage lacks digitalSignature")
    allowed = expectation.sha1_endorsers
    if opened.sha1 and not any(
        each.lower() in emails or same_name(each, signer.subject) for each in allowed
    ):
        text = f"signed with SHA-1, which {dn} is not allowed to"
        yield Reason(ReasonCode.SIGNATURE_SHA1, text)
    if expectation.endorsers is not None and not any(
        endorser.email.lower() in emails
        if isinstance(endorser, EndorserByEmail)
        else same_name(endorser.dn, signer.subject) and same_name(endorser.ca, signer.issuer)
        for endorser in expectation.endorsers
    ):
        text = f"{dn} (certified by {ca}) is not authorised to endorse this entry"
        yield Reason(ReasonCode.ENDORSER_NOT_AUTHORISED, text)


def _endorser_reasons(entry: Entry, signer: x509.Certificate) -> Iterable[Reason]:
    for key, stated, actual in (
        ("slreq:subject", entry.endorser.subject, signer.subject),
        ("slreq:issuer", entry.endorser.issuer, signer.issuer),
    ):
        if not same_name(stated, actual):
            text = f"{key} is {stated!r}, the signer's certificate says {slash_form(actual)!r}"
            yield Reason(ReasonCode.SIGNER_NOT_ENDORSER, text)
    emails = emails_of(signer)
    # Many grid certificates bear no address: then nobody vouches for it, and none is believed.
    if emails and entry.endorser.email.lower() not in emails:
        text = f"slreq:email is {entry.endorser.email!r}, which the signer's certificate lacks"
        yield Reason(ReasonCode.SIGNER_NOT_ENDORSER, text)


def _entry_reasons(
    entry: Entry, now: datetime, expectation: EntryExpectation, sha512: str
) -> Iterable[Reason]:
    created, expires = entry.created, entry.expires
    if created > now + timedelta(seconds=expectation.clock_skew_s):
        text = f"created {format_time(created)}, after now: one of the clocks is off"
        yield Reason(ReasonCode.LIST_NOT_YET_VALID, text)
    if expires is not None and now > expires:
        yield Reason(ReasonCode.LIST_EXPIRED, f"the entry expired {format_time(expires)}")
    if entry.deprecated is not None:
        text = f"withdrawn by its endorser: {entry.deprecated or 'no reason given'}"
        yield Reason(ReasonCode.DEPRECATED, text)
    if "SHA-512" not in entry.checksums:
        text = f"the image has no SHA-512, only {', '.join(sorted(entry.checksums))}"
        yield Reason(ReasonCode.DIGEST_WEAK, text)
    wanted = expectation.identifier
    if wanted is not None and entry.identifier != wanted:
        text = f"the entry is for {entry.identifier}, asked for was {wanted}"
        yield Reason(ReasonCode.IDENTIFIER_MISMATCH, text)
    last = expectation.last_created
    if last is None:
        return
    if created < last:
        text = f"created {format_time(created)}, and one of {format_time(last)} was accepted before"
        yield Reason(ReasonCode.VERSION_DOWN, text)
    elif created == last and expectation.last_sha512 not in {None, sha512}:
        text = f"one created {format_time(created)} was seen before with other bytes"
        yield Reason(ReasonCode.VERSION_SAME_OTHER_BYTES, text)
