"""S/MIME: is this message signed by one key over exactly these bytes? Opening, and signing.

``mime`` splits the message, ``cms`` reads and computes the signature; here the rules 1 to 5 of
``distrib.trust`` are applied. Whether the signer's certificate is to be believed is for ``chain``.
"""

from __future__ import annotations

import hashlib
from dataclasses import dataclass

from cryptography import x509
from cryptography.hazmat.primitives.asymmetric import ec, rsa
from cryptography.hazmat.primitives.asymmetric.types import PrivateKeyTypes

from distrib.errors import ConfigInvalid
from distrib.trust import cms, mime
from distrib.trust.jsontext import MAX_CONTENT_BYTES
from distrib.trust.reasons import Reason, ReasonCode

#: The content, its signature with a chain of certificates, and room for headers.
MAX_MESSAGE_BYTES = MAX_CONTENT_BYTES + 4 * 1024 * 1024


@dataclass(frozen=True, slots=True)
class SignedMessage:
    """An opened message. Nothing in it is to be used unless ``verified``.

    ``content``: the first part exactly as it was signed; ``document``: the same without MIME
    headers of its own. ``signer`` is None where the signature could not be read; ``certificates``
    are all that came along. ``digest_algorithm``: as ``sha512``, empty where unknown. ``reasons``:
    every rule that is broken.
    """

    content: bytes
    document: bytes
    signer: x509.Certificate | None
    certificates: tuple[x509.Certificate, ...]
    digest_algorithm: str
    reasons: tuple[Reason, ...]

    @property
    def verified(self) -> bool:
        """Whether the signer's key signed this content, by means that hold."""
        return not self.reasons


def open_smime(message: bytes) -> SignedMessage:
    """Open a signed message. Never raises: what is wrong is in ``reasons``."""
    if len(message) > MAX_MESSAGE_BYTES:
        text = f"{len(message)} bytes, at most {MAX_MESSAGE_BYTES} are read"
        return _unread(b"", Reason(ReasonCode.TOO_LARGE, text))
    try:
        parts = mime.split_signed(message)
        mime.check_document(parts.content)
    except mime.MimeInvalid as error:
        return _unread(b"", Reason(ReasonCode.MESSAGE_MALFORMED, str(error)))
    try:
        parsed = cms.parse_cms(parts.signature)
    except cms.CmsInvalid as error:
        return _unread(parts.content, Reason(ReasonCode.MESSAGE_MALFORMED, str(error)))
    if parsed.signer is None:
        text = f"{parsed.signer_count} signers, exactly one is accepted"
        return _unread(parts.content, Reason(ReasonCode.SIGNER_COUNT, text), parsed.certificates)
    content, reasons = _check(parts.content, parsed.signer)
    return SignedMessage(
        content=content,
        document=mime.document_of(content),
        signer=parsed.signer.certificate,
        certificates=parsed.certificates,
        digest_algorithm=parsed.signer.digest,
        reasons=tuple(reasons),
    )


def _unread(
    content: bytes, reason: Reason, certificates: tuple[x509.Certificate, ...] = ()
) -> SignedMessage:
    return SignedMessage(content, mime.document_of(content), None, certificates, "", (reason,))


def _check(content: bytes, signer: cms.Signer) -> tuple[bytes, list[Reason]]:
    """The content as it was signed, and what is wrong with the signature."""
    reasons = []
    if signer.digest not in cms.STRONG_DIGESTS:
        text = f"signed with {signer.digest}, SHA-256 is the least that is accepted"
        reasons.append(Reason(ReasonCode.DIGEST_WEAK, text))
    # What is signed is the canonical form (CR LF); a transport may have made LF of it on the way.
    for candidate in (content, mime.crlf(content)):
        if cms.digest_of(signer.digest, candidate) == signer.message_digest:
            content = candidate
            break
    else:
        text = "the content is not what was signed: its digest differs"
        reasons.append(Reason(ReasonCode.SIGNATURE_INVALID, text))
    fault = cms.signature_fault(signer)
    if fault is not None:
        reasons.append(Reason(ReasonCode.SIGNATURE_INVALID, fault))
    return content, reasons


def may_sign(certificate: x509.Certificate) -> bool:
    """Whether keyUsage (where the certificate has one) allows digital signatures."""
    try:
        usage = certificate.extensions.get_extension_for_class(x509.KeyUsage).value
    except x509.ExtensionNotFound:
        return True
    except (ValueError, x509.DuplicateExtension):
        return False
    return usage.digital_signature


def sign_smime(
    content: bytes,
    certificate: x509.Certificate,
    key: PrivateKeyTypes,
    extra_certificates: tuple[x509.Certificate, ...] = (),
    *,
    digest: str = "sha512",
) -> bytes:
    """``content`` as a detached S/MIME message, signed with SHA-512 (or ``sha256``, ``sha384``).

    Line ends become CR LF, as S/MIME signs text. ``ConfigInvalid`` if the key is not the
    certificate's, is of a kind that lists are not signed with, or the certificate may not sign
    (keyUsage without digitalSignature).
    """
    if digest not in cms.STRONG_DIGESTS:
        raise ConfigInvalid(f"{digest} is too weak to sign with", hint="take sha512 or sha256")
    if not isinstance(key, rsa.RSAPrivateKey | ec.EllipticCurvePrivateKey):
        raise ConfigInvalid(
            "lists are signed with RSA or ECDSA keys", hint="take a key of one of these kinds"
        )
    if certificate.public_key() != key.public_key():
        raise ConfigInvalid(
            "the key does not belong to the certificate", hint="check --cert and --key"
        )
    if not may_sign(certificate):
        raise ConfigInvalid(
            "the certificate may not sign: its keyUsage lacks digitalSignature",
            hint="ask the CA for a certificate with digitalSignature",
        )
    canonical = mime.crlf(content)
    signature = cms.make_cms(
        canonical, certificate, key, extra_certificates=extra_certificates, digest=digest
    )
    # Derived from the content, so that it cannot occur in it, and one input gives one message.
    boundary = "----" + hashlib.sha256(b"boundary\n" + canonical).hexdigest()[:32].upper()
    micalg = f"sha-{digest.removeprefix('sha')}"
    return mime.join_signed(canonical, signature, boundary=boundary, micalg=micalg)
