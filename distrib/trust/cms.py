"""Detached CMS signatures (RFC 5652): reading one of one signer, checking it, making one.

asn1crypto parses, ``cryptography`` computes. asn1crypto is lazy and lax, so everything that is
looked at is looked at in one place, and every fault there is ``CmsInvalid``.
"""

from __future__ import annotations

import hashlib
from dataclasses import dataclass
from typing import Any

from asn1crypto import algos, cms
from asn1crypto import x509 as asn1_x509
from cryptography import x509
from cryptography.exceptions import InvalidSignature, UnsupportedAlgorithm
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec, padding, rsa
from cryptography.hazmat.primitives.serialization import Encoding

from distrib.trust.oldserials import old_serials_allowed

#: Digests that may carry trust.
STRONG_DIGESTS = frozenset({"sha256", "sha384", "sha512"})
#: Digests that are computed, so that a weak list is refused for its weakness and not for a
#: mismatch.
_HASHES: dict[str, type[hashes.HashAlgorithm]] = {
    "md5": hashes.MD5,
    "sha1": hashes.SHA1,
    "sha224": hashes.SHA224,
    "sha256": hashes.SHA256,
    "sha384": hashes.SHA384,
    "sha512": hashes.SHA512,
}
_MAX_CERTIFICATES = 16
#: What asn1crypto and ``cryptography`` raise on bytes that are not what they say.
PARSE_FAULTS = (
    ValueError,
    TypeError,
    KeyError,
    IndexError,
    AttributeError,
    OverflowError,
    UnsupportedAlgorithm,
    x509.DuplicateExtension,
    x509.InvalidVersion,
    x509.UnsupportedGeneralNameType,
)

SigningKey = rsa.RSAPrivateKey | ec.EllipticCurvePrivateKey


class CmsInvalid(ValueError):
    """The bytes are no detached CMS signature of the kind that is read here."""


@dataclass(frozen=True, slots=True)
class Signer:
    """One SignerInfo: ``message_digest`` of the content, ``signed_bytes`` under the signature."""

    certificate: x509.Certificate
    digest: str
    signature_digest: str
    padding: padding.AsymmetricPadding | None
    message_digest: bytes
    signed_bytes: bytes
    signature: bytes


@dataclass(frozen=True, slots=True)
class Cms:
    """A parsed signature: how many signers, the one (if it is one), the certificates with it."""

    signer_count: int
    signer: Signer | None
    certificates: tuple[x509.Certificate, ...]


def parse_cms(der: bytes) -> Cms:
    """Parse a detached SignedData; ``CmsInvalid`` on whatever is not one."""
    try:
        return _parse(der)
    except CmsInvalid:
        raise
    except PARSE_FAULTS as error:
        raise CmsInvalid(f"the signature cannot be parsed: {error}"[:300]) from None
    except RecursionError:
        raise CmsInvalid("the signature is nested too deep") from None


def digest_of(name: str, content: bytes) -> bytes:
    """The digest ``name`` (one of those that ``parse_cms`` lets through) of the content."""
    return hashlib.new(name, content, usedforsecurity=False).digest()


def signature_fault(signer: Signer) -> str | None:
    """Why the signer's key did not make this signature; None if it did."""
    key = signer.certificate.public_key()
    algorithm = _HASHES[signer.signature_digest]()
    try:
        if isinstance(key, rsa.RSAPublicKey):
            used = signer.padding or padding.PKCS1v15()
            key.verify(signer.signature, signer.signed_bytes, used, algorithm)
        elif isinstance(key, ec.EllipticCurvePublicKey):
            key.verify(signer.signature, signer.signed_bytes, ec.ECDSA(algorithm))
        else:
            return f"a {type(key).__name__} is not a key that lists are signed with"
    except InvalidSignature:
        return "the signature was not made by the signer's key over these bytes"
    except (UnsupportedAlgorithm, ValueError, TypeError) as error:
        return f"the signature cannot be checked: {error}"[:200]
    return None


def _parse(der: bytes) -> Cms:
    info = cms.ContentInfo.load(der, strict=True)
    if info["content_type"].native != "signed_data":
        raise CmsInvalid("the signature is not CMS SignedData")
    signed = info["content"]
    encapsulated = signed["encap_content_info"]
    if encapsulated["content_type"].native != "data":
        raise CmsInvalid("the signature is not over plain data")
    if encapsulated["content"].native is not None:
        raise CmsInvalid("the signature brings content of its own; it must be detached")
    choices = signed["certificates"]
    entries = [choice for choice in choices if choice.name == "certificate"] if choices else []
    if len(entries) > _MAX_CERTIFICATES:
        raise CmsInvalid(f"more than {_MAX_CERTIFICATES} certificates in the signature")
    certificates = tuple(read_certificate(entry.chosen.dump()) for entry in entries)
    signers = signed["signer_infos"]
    count = len(signers)
    signer = _signer(signers[0], entries, certificates) if count == 1 else None
    return Cms(signer_count=count, signer=signer, certificates=certificates)


def read_certificate(der: bytes) -> x509.Certificate:
    """A certificate with all that is read later read once here: ``cryptography`` parses late.

    One of ``PARSE_FAULTS`` if it is none.
    """
    # The serial number in authorityKeyIdentifier counts here too.
    with old_serials_allowed():
        certificate = x509.load_der_x509_certificate(der)
        _ = (certificate.extensions, certificate.version)
    return read_whole(certificate)


def read_whole(certificate: x509.Certificate) -> x509.Certificate:
    """The certificate, if its names, dates and key can be read; else one of ``PARSE_FAULTS``.

    Its extensions not: CAs have odd ones, and those that count are read where they do.
    """
    with old_serials_allowed():
        _ = (
            certificate.subject,
            certificate.issuer,
            certificate.serial_number,
            certificate.public_key(),
            certificate.not_valid_before_utc,
            certificate.not_valid_after_utc,
        )
    return certificate


def _signer(info: Any, entries: list[Any], certificates: tuple[x509.Certificate, ...]) -> Signer:
    digest = info["digest_algorithm"]["algorithm"].native
    if digest not in _HASHES:
        raise CmsInvalid(f"digest algorithm {digest!r} is unknown")
    signature_digest, padding_used = _signature_algorithm(info["signature_algorithm"], digest)
    attributes = info["signed_attrs"]
    if attributes.native is None or not len(attributes):
        raise CmsInvalid("the signature has no signed attributes")
    if _only_value(attributes, "content_type").native != "data":
        raise CmsInvalid("the signed content type is not plain data")
    message_digest = _only_value(attributes, "message_digest").native
    # RFC 5652 5.4: what is signed is the explicit SET OF (0x31), what is sent is the implicit [0].
    return Signer(
        certificate=_find(info["sid"], entries, certificates),
        digest=digest,
        signature_digest=signature_digest,
        padding=padding_used,
        message_digest=bytes(message_digest),
        signed_bytes=b"\x31" + attributes.dump()[1:],
        signature=bytes(info["signature"].native),
    )


def _only_value(attributes: Any, kind: str) -> Any:
    found = [attribute for attribute in attributes if attribute["type"].native == kind]
    if len(found) != 1 or len(found[0]["values"]) != 1:
        raise CmsInvalid(f"the signed attribute {kind} does not occur exactly once")
    return found[0]["values"][0]


def _find(
    sid: Any, entries: list[Any], certificates: tuple[x509.Certificate, ...]
) -> x509.Certificate:
    for entry, certificate in zip(entries, certificates, strict=True):
        parsed = entry.chosen
        if sid.name == "issuer_and_serial_number":
            wanted = sid.chosen
            same_issuer = wanted["issuer"].dump() == parsed["tbs_certificate"]["issuer"].dump()
            if same_issuer and wanted["serial_number"].native == parsed.serial_number:
                return certificate
        elif parsed.key_identifier is not None and sid.chosen.native == parsed.key_identifier:
            return certificate
    raise CmsInvalid("the signer's certificate is not in the message")


def _signature_algorithm(
    algorithm: Any, digest: str
) -> tuple[str, padding.AsymmetricPadding | None]:
    """The hash that the signature was made with, and the padding where it is PSS."""
    name = algorithm["algorithm"].native
    if name in {"rsassa_pkcs1v15", "ecdsa"}:
        return digest, None
    if name == "rsassa_pss":
        parameters = algorithm["parameters"]
        used = parameters["hash_algorithm"]["algorithm"].native
        mask = parameters["mask_gen_algorithm"]
        mask_digest = mask["parameters"]["algorithm"].native
        if mask["algorithm"].native != "mgf1" or {used, mask_digest} != {digest}:
            raise CmsInvalid("PSS with digests that differ")
        salt = parameters["salt_length"].native
        return digest, padding.PSS(padding.MGF1(_HASHES[digest]()), salt)
    used = algorithm.hash_algo
    if used not in _HASHES or algorithm.signature_algo not in {"rsassa_pkcs1v15", "ecdsa"}:
        raise CmsInvalid(f"signature algorithm {name!r} is not one that lists are signed with")
    if used != digest:
        raise CmsInvalid(f"digest {digest} but signature over {used}")
    return used, None


def make_cms(
    content: bytes,
    certificate: x509.Certificate,
    key: SigningKey,
    *,
    extra_certificates: tuple[x509.Certificate, ...] = (),
    digest: str = "sha512",
) -> bytes:
    """DER of a detached SignedData over ``content`` by one signer, with signed attributes."""
    signer = make_signer(content, certificate, key, digest=digest)
    return pack_cms([signer], (certificate, *extra_certificates))


def make_signer(
    content: bytes, certificate: x509.Certificate, key: SigningKey, *, digest: str
) -> cms.SignerInfo:
    """The SignerInfo of one signer over ``content``."""
    signer = cms.SignerInfo(
        {
            "version": "v1",
            "sid": _issuer_and_serial(certificate),
            "digest_algorithm": algos.DigestAlgorithm({"algorithm": digest}),
            "signed_attrs": signed_attributes(digest_of(digest, content)),
            "signature_algorithm": {"algorithm": _signature_name(key, digest)},
            "signature": b"",
        }
    )
    signer["signature"] = _sign(key, b"\x31" + signer["signed_attrs"].dump()[1:], digest)
    return signer


def signed_attributes(message_digest: bytes) -> cms.CMSAttributes:
    """The attributes content-type and message-digest."""
    return cms.CMSAttributes(
        [
            cms.CMSAttribute({"type": "content_type", "values": ["data"]}),
            cms.CMSAttribute({"type": "message_digest", "values": [message_digest]}),
        ]
    )


def pack_cms(signers: list[cms.SignerInfo], certificates: tuple[x509.Certificate, ...]) -> bytes:
    """DER of the SignedData that holds these signers and certificates."""
    parsed = [
        asn1_x509.Certificate.load(certificate.public_bytes(Encoding.DER))
        for certificate in certificates
    ]
    signed = cms.SignedData(
        {
            "version": "v1",
            "digest_algorithms": cms.DigestAlgorithms(
                [signer["digest_algorithm"].copy() for signer in signers]
            ),
            "encap_content_info": {"content_type": "data"},
            "certificates": [cms.CertificateChoices("certificate", entry) for entry in parsed],
            "signer_infos": signers,
        }
    )
    der: bytes = cms.ContentInfo({"content_type": "signed_data", "content": signed}).dump()
    return der


def _issuer_and_serial(certificate: x509.Certificate) -> cms.SignerIdentifier:
    parsed = asn1_x509.Certificate.load(certificate.public_bytes(Encoding.DER))
    sid = {"issuer": parsed.issuer, "serial_number": certificate.serial_number}
    return cms.SignerIdentifier("issuer_and_serial_number", cms.IssuerAndSerialNumber(sid))


def _signature_name(key: SigningKey, digest: str) -> str:
    return "rsassa_pkcs1v15" if isinstance(key, rsa.RSAPrivateKey) else f"{digest}_ecdsa"


def _sign(key: SigningKey, signed_bytes: bytes, digest: str) -> bytes:
    algorithm = _HASHES[digest]()
    if isinstance(key, rsa.RSAPrivateKey):
        return key.sign(signed_bytes, padding.PKCS1v15(), algorithm)
    return key.sign(signed_bytes, ec.ECDSA(algorithm))
