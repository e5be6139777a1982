"""X.509: does a path lead from a certificate to an anchor, with nothing on it expired or revoked?

OpenSSL (pyOpenSSL's ``X509Store``, CRL_CHECK|CRL_CHECK_ALL at the given time) has the last word. It
names only the first fault that it meets, so the path is first found without regard to time and
CRLs, and looked over here for everything that is wrong; then OpenSSL must agree.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, replace
from datetime import UTC, datetime
from itertools import pairwise

from cryptography import x509
from cryptography.exceptions import InvalidSignature, UnsupportedAlgorithm
from cryptography.hazmat.primitives.asymmetric import ec, rsa
from OpenSSL import crypto

from distrib.trust.cms import read_whole
from distrib.trust.names import same_name, slash_form
from distrib.trust.namespaces import PolicyFile, PolicyUse, check_namespaces
from distrib.trust.oldserials import old_serials_allowed
from distrib.trust.reasons import Reason, ReasonCode
from distrib.trust.revocation import CrlPolicy, check_revocation, weak_hash

_MIN_RSA_BITS = 2048
_MIN_CURVE_BITS = 256
# X509_V_FLAG_NO_CHECK_TIME, which pyOpenSSL does not name (openssl/x509_vfy.h).
_NO_CHECK_TIME = 0x200000
# openssl/x509_vfy.h, X509_V_ERR_*: what OpenSSL may find that was not seen here before.
_OPENSSL_CODES = {
    3: ReasonCode.CRL_MISSING,
    8: ReasonCode.CRL_INVALID,
    9: ReasonCode.CERTIFICATE_NOT_YET_VALID,
    10: ReasonCode.CERTIFICATE_EXPIRED,
    11: ReasonCode.CRL_NOT_YET_VALID,
    12: ReasonCode.CRL_EXPIRED,
    23: ReasonCode.CERTIFICATE_REVOKED,
    35: ReasonCode.CRL_INVALID,
    36: ReasonCode.CRL_INVALID,
    44: ReasonCode.CRL_INVALID,
}


@dataclass(frozen=True, slots=True)
class TrustMaterial:
    """What a site trusts: self-signed ``anchors``, further CA certificates, CRLs (any order).

    ``policies`` say which names a CA may certify; ``policy_use``, whether every CA must have one.
    """

    anchors: tuple[x509.Certificate, ...]
    intermediates: tuple[x509.Certificate, ...] = ()
    crls: tuple[x509.CertificateRevocationList, ...] = ()
    policies: tuple[PolicyFile, ...] = ()
    policy_use: PolicyUse = "if-present"

    def with_crls(self, *more: x509.CertificateRevocationList) -> TrustMaterial:
        """The same with further CRLs; of several by one issuer the newest genuine one counts."""
        return replace(self, crls=(*self.crls, *more))


def check_chain(
    certificate: x509.Certificate,
    *,
    untrusted: Sequence[x509.Certificate] = (),
    trust: TrustMaterial,
    now: datetime,
    crls: CrlPolicy = "require",
) -> tuple[Reason, ...]:
    """Every reason not to believe ``certificate`` at ``now`` (aware); none if it is to be believed.

    ``untrusted`` are certificates that came with the message; they may only help to build the path.
    ``crls="if-present"`` lets an issuer pass that has no CRL; one that is there is checked.
    """
    if now.tzinfo is None:
        raise ValueError("now must be an aware datetime")
    helpers = (*trust.intermediates, *untrusted)
    anchors = _without_namesakes(trust.anchors, (certificate, *helpers))
    helpers = _without_namesakes(helpers, (certificate, *helpers))
    path, fault = _find_path(certificate, helpers, anchors, now)
    if fault is not None:
        text = f"no path from {slash_form(certificate.subject)} to a trusted CA: {fault}"
        return (
            Reason(ReasonCode.CHAIN_UNTRUSTED, text),
            *_date_reasons(certificate, now),
            *_strength_reasons(certificate),
        )
    reasons: list[Reason] = []
    for member in path:
        reasons += _date_reasons(member, now)
        if member is not path[-1]:
            reasons += _strength_reasons(member)
    reasons += _impostor_reasons(path, trust)
    reasons += check_namespaces(path, trust.policies, use=trust.policy_use)
    revocation = check_revocation(path, trust.crls, now=now, policy=crls)
    reasons += revocation.reasons
    if not reasons:
        flags, used = 0, revocation.in_force
        if revocation.complete:
            flags = crypto.X509StoreFlags.CRL_CHECK | crypto.X509StoreFlags.CRL_CHECK_ALL
        _, error = _openssl(certificate, helpers, anchors=anchors, crls=used, flags=flags, now=now)
        if error is not None:
            code = _OPENSSL_CODES.get(error[0], ReasonCode.CHAIN_UNTRUSTED)
            reasons.append(Reason(code, f"{slash_form(certificate.subject)}: {error[1]}"))
    return tuple(reasons)


def _find_path(
    certificate: x509.Certificate,
    helpers: Sequence[x509.Certificate],
    anchors: Sequence[x509.Certificate],
    now: datetime,
) -> tuple[list[x509.Certificate], str | None]:
    """The path, leaf first, whatever its dates; or why there is none."""
    if not anchors:
        return [], "none of the trusted CAs has issued anything here"
    path, error = _openssl(
        certificate, helpers, anchors=anchors, crls=(), flags=_NO_CHECK_TIME, now=now
    )
    return path, error[1] if error else None


def _without_namesakes(
    authorities: Sequence[x509.Certificate], issued: Sequence[x509.Certificate]
) -> tuple[x509.Certificate, ...]:
    """The CAs, less those of one name that issued nothing here.

    A CA that changed its key has two certificates of one name. OpenSSL takes the first that fits by
    name and key identifier, and where there is no identifier that may be the wrong one.
    """
    names = Counter(authority.subject for authority in authorities)
    return tuple(
        authority
        for authority in authorities
        if names[authority.subject] == 1
        or authority == issued[0]
        or any(_may_have_issued(authority, each) for each in issued if each != authority)
    )


def _may_have_issued(authority: x509.Certificate, issued: x509.Certificate) -> bool:
    try:
        issued.verify_directly_issued_by(authority)
    except UnsupportedAlgorithm:
        return issued.issuer == authority.subject
    except (InvalidSignature, ValueError, TypeError):
        return False
    return True


def _openssl(
    certificate: x509.Certificate,
    helpers: Sequence[x509.Certificate],
    *,
    anchors: Sequence[x509.Certificate],
    crls: Sequence[x509.CertificateRevocationList],
    flags: int,
    now: datetime,
) -> tuple[list[x509.Certificate], tuple[int, str] | None]:
    """OpenSSL's verified path, or its error number and text."""
    store = crypto.X509Store()
    store.set_time(now.astimezone(UTC))
    if flags:
        store.set_flags(flags)
    try:
        for anchor in anchors:
            store.add_cert(crypto.X509.from_cryptography(anchor))
        for crl in crls:
            store.add_crl(crl)
        chain = [crypto.X509.from_cryptography(helper) for helper in helpers]
        leaf = crypto.X509.from_cryptography(certificate)
        context = crypto.X509StoreContext(store, leaf, chain)
        found = context.get_verified_chain()
    except crypto.X509StoreContextError as error:
        number, depth, text = error.errors
        return [], (int(number), f"{text} (depth {depth})")
    except crypto.Error as error:
        return [], (1, f"OpenSSL cannot use a certificate: {error}"[:200])
    with old_serials_allowed():
        return [read_whole(member.to_cryptography()) for member in found], None


def _impostor_reasons(path: Sequence[x509.Certificate], trust: TrustMaterial) -> list[Reason]:
    """What on the path passes for a CA that it is not.

    An endorser is known by his name and his CA's. So the issuer that a certificate states must be
    spelled as the CA is (OpenSSL overlooks case and spaces), and a CA of the trust directory shares
    its name with nobody but its own next certificate: of the same key, or by the same issuer.
    """
    known = (*trust.anchors, *trust.intermediates)
    reasons = []
    for member, issuer in pairwise(path):
        name = slash_form(issuer.subject)
        if not same_name(member.issuer, issuer.subject):
            text = f"{slash_form(member.issuer)!r} is stated as issuer, the CA is {name!r}"
            reasons.append(Reason(ReasonCode.CHAIN_UNTRUSTED, text))
        namesakes = [each for each in known if same_name(each.subject, issuer.subject)]
        if namesakes and not any(
            each.public_key() == issuer.public_key() or same_name(each.issuer, issuer.issuer)
            for each in namesakes
        ):
            text = f"{name}, certified by {slash_form(issuer.issuer)}, has the name of a known CA"
            reasons.append(Reason(ReasonCode.CHAIN_UNTRUSTED, text))
    return reasons


def _date_reasons(certificate: x509.Certificate, now: datetime) -> list[Reason]:
    name = slash_form(certificate.subject)
    if now > certificate.not_valid_after_utc:
        text = f"{name} expired at {certificate.not_valid_after_utc:%Y-%m-%dT%H:%M:%SZ}"
        return [Reason(ReasonCode.CERTIFICATE_EXPIRED, text)]
    if now < certificate.not_valid_before_utc:
        start = f"{certificate.not_valid_before_utc:%Y-%m-%dT%H:%M:%SZ}"
        text = f"{name} is valid from {start} on; it is {now:%Y-%m-%dT%H:%M:%SZ} by the clock here"
        return [Reason(ReasonCode.CERTIFICATE_NOT_YET_VALID, text)]
    return []


def _strength_reasons(certificate: x509.Certificate) -> list[Reason]:
    """What is too weak about a certificate below the anchor, whose own signature means nothing."""
    name = slash_form(certificate.subject)
    reasons = []
    weak = weak_hash(certificate)
    if weak:
        reasons.append(Reason(ReasonCode.DIGEST_WEAK, f"{name} was certified with {weak}"))
    key = certificate.public_key()
    if isinstance(key, rsa.RSAPublicKey) and key.key_size < _MIN_RSA_BITS:
        text = f"{name} has an RSA key of {key.key_size} bits, {_MIN_RSA_BITS} are the least"
        reasons.append(Reason(ReasonCode.KEY_WEAK, text))
    elif isinstance(key, ec.EllipticCurvePublicKey) and key.key_size < _MIN_CURVE_BITS:
        text = f"{name} has a key on a curve of {key.key_size} bits"
        reasons.append(Reason(ReasonCode.KEY_WEAK, text))
    return reasons
