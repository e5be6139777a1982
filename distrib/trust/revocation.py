"""CRLs along a whole path: there, genuine, in date, and naming nobody on the path.

Each issuer's CRL is taken for what its signature makes it, which smimeX509validation never checked;
parents of intermediate CAs are asked too.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import Literal

from cryptography import x509
from cryptography.exceptions import UnsupportedAlgorithm

from distrib.trust.names import slash_form
from distrib.trust.oldserials import old_serials_allowed
from distrib.trust.reasons import Reason, ReasonCode

#: ``if-present``: an issuer without any CRL passes; a CRL that is there is checked all the same.
CrlPolicy = Literal["require", "if-present"]

_EXTENSION_FAULTS = (ValueError, x509.DuplicateExtension, x509.UnsupportedGeneralNameType)
_WEAK_HASHES = frozenset({"md5", "sha1", "sha224"})


@dataclass(frozen=True, slots=True)
class Revocation:
    """``in_force``: one CRL an issuer; ``complete``: every issuer on the path has one."""

    in_force: tuple[x509.CertificateRevocationList, ...]
    complete: bool
    reasons: tuple[Reason, ...]


def check_revocation(
    path: Sequence[x509.Certificate],
    crls: Sequence[x509.CertificateRevocationList],
    *,
    now: datetime,
    policy: CrlPolicy,
) -> Revocation:
    """Look every certificate of ``path`` (leaf first, anchor last) up in its issuer's CRL.

    The anchor is looked up in its own, as OpenSSL's CRL_CHECK_ALL does.
    """
    issuers = (*path[1:], path[-1])
    found: dict[x509.Certificate, x509.CertificateRevocationList | None] = {}
    reasons: list[Reason] = []
    for issuer in dict.fromkeys(issuers):
        candidates = [crl for crl in crls if _is_named_after(crl, issuer)]
        found[issuer], faults = _in_force(candidates, issuer, now)
        if candidates or policy == "require":
            reasons += faults
    for member, issuer in zip(path, issuers, strict=True):
        reason = _look_up(member, found[issuer])
        if reason is not None:
            reasons.append(reason)
    in_force = tuple(crl for crl in found.values() if crl is not None)
    return Revocation(in_force, len(in_force) == len(found), tuple(reasons))


def read_whole(crl: x509.CertificateRevocationList) -> x509.CertificateRevocationList:
    """The CRL, with its head read now: ``cryptography`` parses late. ``ValueError`` if it cannot.

    Its entries are many, and are read where somebody is looked up; its extensions, where it counts.
    """
    with old_serials_allowed():
        _ = (crl.issuer, crl.last_update_utc, crl.next_update_utc)
    return crl


def weak_hash(signed: x509.Certificate | x509.CertificateRevocationList) -> str:
    """The digest of a certificate's or CRL's signature if weaker than SHA-256; else empty."""
    try:
        algorithm = signed.signature_hash_algorithm
    except UnsupportedAlgorithm:
        return "an unknown digest"
    # None: Ed25519 and Ed448 have no separate digest.
    return algorithm.name if algorithm is not None and algorithm.name in _WEAK_HASHES else ""


def _is_named_after(crl: x509.CertificateRevocationList, issuer: x509.Certificate) -> bool:
    try:
        return read_whole(crl).issuer == issuer.subject
    except ValueError:
        # Nobody knows whose it is. Whose CRL it was has none, then.
        return False


def _look_up(member: x509.Certificate, crl: x509.CertificateRevocationList | None) -> Reason | None:
    name, serial = slash_form(member.subject), _serial(member)
    try:
        entry = crl.get_revoked_certificate_by_serial_number(serial) if crl else None
        if entry is None:
            return None
        when = f"{entry.revocation_date_utc:%Y-%m-%dT%H:%M:%SZ}"
    except ValueError:
        text = f"the CRL in which {name} would be has entries that cannot be read"
        return Reason(ReasonCode.CRL_INVALID, text)
    text = f"{name} (serial {serial:x}) was revoked at {when}"
    return Reason(ReasonCode.CERTIFICATE_REVOKED, text)


def _serial(certificate: x509.Certificate) -> int:
    with old_serials_allowed():
        return certificate.serial_number


def _in_force(
    candidates: Sequence[x509.CertificateRevocationList], issuer: x509.Certificate, now: datetime
) -> tuple[x509.CertificateRevocationList | None, list[Reason]]:
    """The newest genuine CRL, and what is wrong with it (or with all of them, if None)."""
    name = slash_form(issuer.subject)
    if not candidates:
        return None, [Reason(ReasonCode.CRL_MISSING, f"no CRL of {name}")]
    genuine = []
    faults = []
    for crl in candidates:
        fault = _fault(crl, issuer)
        if fault is None:
            genuine.append(crl)
        else:
            faults.append(Reason(ReasonCode.CRL_INVALID, f"the CRL of {name} {fault}"))
    if not genuine:
        return None, faults
    started = [crl for crl in genuine if crl.last_update_utc <= now]
    if not started:
        start = min(crl.last_update_utc for crl in genuine)
        text = f"the CRL of {name} is from {start:%Y-%m-%dT%H:%M:%SZ}, after now"
        return None, [Reason(ReasonCode.CRL_NOT_YET_VALID, text)]
    newest = max(started, key=_age)
    if newest.next_update_utc is not None and now > newest.next_update_utc:
        text = (
            f"the CRL of {name} was due for renewal at {newest.next_update_utc:%Y-%m-%dT%H:%M:%SZ}"
        )
        return newest, [Reason(ReasonCode.CRL_EXPIRED, text)]
    return newest, []


def _age(crl: x509.CertificateRevocationList) -> tuple[datetime, int, int]:
    """What CRLs are ordered by: of two of one second the later number, or the longer one."""
    try:
        number = crl.extensions.get_extension_for_class(x509.CRLNumber).value.crl_number
    except x509.ExtensionNotFound:
        number = 0
    return crl.last_update_utc, number, len(crl)


def _fault(crl: x509.CertificateRevocationList, issuer: x509.Certificate) -> str | None:
    """Why this CRL does not speak for this issuer about all that it issued; None if it does."""
    try:
        if not crl.is_signature_valid(issuer.public_key()):  # type: ignore[arg-type]
            return "was not signed by it"
    except (TypeError, ValueError, UnsupportedAlgorithm):
        return "has a signature that cannot be checked"
    weak = weak_hash(crl)
    if weak:
        return f"is signed with {weak}"
    try:
        usage = issuer.extensions.get_extension_for_class(x509.KeyUsage).value
        if not usage.crl_sign:
            return "was signed by a certificate that may not sign CRLs"
    except x509.ExtensionNotFound:
        pass
    except _EXTENSION_FAULTS:
        return "has an issuer whose extensions cannot be read"
    return _partial(crl)


def _partial(crl: x509.CertificateRevocationList) -> str | None:
    try:
        for extension in crl.extensions:
            value = extension.value
            if isinstance(value, x509.DeltaCRLIndicator):
                return "is a delta only"
            if isinstance(value, x509.IssuingDistributionPoint) and (
                value.only_contains_user_certs
                or value.only_contains_ca_certs
                or value.only_contains_attribute_certs
                or value.only_some_reasons
                or value.indirect_crl
            ):
                return "covers only a part of what it issued"
    except _EXTENSION_FAULTS:
        return "has extensions that cannot be read"
    return None
