"""An attacker's workshop: CMS and MIME put together by hand, with nobody to be polite.

Nothing here goes through the product's own signer, which would refuse most of it.
"""

from __future__ import annotations

import base64
import hashlib
from collections.abc import Sequence
from datetime import timedelta
from typing import Any

from asn1crypto import algos, cms, core
from asn1crypto import x509 as asn1_x509
from cryptography import x509
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import padding, rsa
from cryptography.hazmat.primitives.serialization import Encoding

from distrib.trust.testpki import Issued
from tests.trust.conftest import NOW

BOUNDARY = "=_forged"


def key_pair() -> rsa.RSAPrivateKey:
    """A new key of the attacker."""
    return rsa.generate_private_key(public_exponent=65537, key_size=2048)


def attribute(kind: str, *values: Any) -> cms.CMSAttribute:
    """A signed attribute."""
    return cms.CMSAttribute({"type": kind, "values": list(values)})


def attributes_for(content: bytes, digest: str = "sha256") -> list[cms.CMSAttribute]:
    """What an honest signer signs."""
    return [
        attribute("content_type", "data"),
        attribute("message_digest", hashlib.new(digest, content).digest()),
    ]


def signer_info(
    who: Issued,
    attributes: Sequence[cms.CMSAttribute] | None,
    *,
    content: bytes = b"",
    key: rsa.RSAPrivateKey | None = None,
    stated: x509.Certificate | bytes | None = None,
    digest: str = "sha256",
    signed_with: str | None = None,
) -> cms.SignerInfo:
    """A SignerInfo by ``who``; without attributes the signature is over ``content`` itself.

    ``stated``: whose certificate it points to; ``key``: what really signs; ``signed_with``: the
    hash under the signature, where it is not the one that is stated.
    """
    signing = key or who.key
    assert isinstance(signing, rsa.RSAPrivateKey)
    certificate = asn1_x509.Certificate.load(_der(stated or who.certificate))
    fields: dict[str, Any] = {
        "version": "v1",
        "sid": cms.SignerIdentifier(
            "issuer_and_serial_number",
            cms.IssuerAndSerialNumber(
                {"issuer": certificate.issuer, "serial_number": certificate.serial_number}
            ),
        ),
        "digest_algorithm": algos.DigestAlgorithm({"algorithm": digest}),
        "signature_algorithm": {"algorithm": "rsassa_pkcs1v15"},
        "signature": b"",
    }
    to_sign = content
    if attributes is not None:
        fields["signed_attrs"] = cms.CMSAttributes(list(attributes))
        to_sign = b"\x31" + cms.CMSAttributes(list(attributes)).dump()[1:]
    algorithm = getattr(hashes, (signed_with or digest).upper())()
    fields["signature"] = signing.sign(to_sign, padding.PKCS1v15(), algorithm)
    return cms.SignerInfo(fields)


def signed_data(
    *signers: cms.SignerInfo, certificates: Sequence[x509.Certificate | bytes], over: str = "data"
) -> bytes:
    """DER of a detached SignedData."""
    data = cms.SignedData(
        {
            "version": "v1",
            "digest_algorithms": [signer["digest_algorithm"].copy() for signer in signers],
            "encap_content_info": {"content_type": over},
            "certificates": [
                cms.CertificateChoices("certificate", asn1_x509.Certificate.load(_der(each)))
                for each in certificates
            ],
            "signer_infos": list(signers),
        }
    )
    der: bytes = cms.ContentInfo({"content_type": "signed_data", "content": data}).dump()
    return der


def signature_part(der: bytes) -> bytes:
    """The second part, as mailers write it."""
    return (
        b"Content-Type: application/pkcs7-signature; name=smime.p7s\r\n"
        b"Content-Transfer-Encoding: base64\r\n\r\n" + base64.encodebytes(der)
    )


def shell(
    *parts: bytes,
    content_type: str = "",
    preamble: bytes = b"",
    epilogue: bytes = b"",
    more_headers: bytes = b"",
) -> bytes:
    """A multipart message of these parts, whatever they are."""
    kind = content_type or (
        'multipart/signed; protocol="application/pkcs7-signature"; micalg="sha-256"; '
        f'boundary="{BOUNDARY}"'
    )
    line = f"--{BOUNDARY}".encode()
    head = b"MIME-Version: 1.0\r\n" + more_headers + f"Content-Type: {kind}\r\n\r\n".encode()
    body = b"".join(line + b"\r\n" + part + b"\r\n" for part in parts)
    return head + preamble + body + line + b"--\r\n" + epilogue


def forged_certificate(
    subject: x509.Name,
    issuer: x509.Name,
    key: rsa.RSAPrivateKey,
    signed_by: rsa.RSAPrivateKey,
    *,
    authority: bool = False,
) -> x509.Certificate:
    """A certificate that says what the attacker wants."""
    return (
        x509.CertificateBuilder()
        .subject_name(subject)
        .issuer_name(issuer)
        .public_key(key.public_key())
        .serial_number(x509.random_serial_number())
        .not_valid_before(NOW - timedelta(days=1))
        .not_valid_after(NOW + timedelta(days=300))
        .add_extension(x509.BasicConstraints(ca=authority, path_length=None), critical=True)
        .sign(signed_by, hashes.SHA256())
    )


def renamed(certificate: x509.Certificate, subject_der: bytes, by: rsa.RSAPrivateKey) -> bytes:
    """DER of the certificate with another subject, signed anew; it may be one that nobody reads."""
    raw = asn1_x509.Certificate.load(_der(certificate))
    raw["tbs_certificate"]["subject"] = asn1_x509.Name.load(subject_der)
    signature = by.sign(raw["tbs_certificate"].dump(), padding.PKCS1v15(), hashes.SHA256())
    raw["signature_value"] = core.OctetBitString(signature)
    der: bytes = raw.dump()
    return der


def _der(certificate: x509.Certificate | bytes) -> bytes:
    if isinstance(certificate, bytes):
        return certificate
    return certificate.public_bytes(Encoding.DER)


def name_der(*relative: Sequence[tuple[str, int, bytes]]) -> bytes:
    """DER of a name from RDNs of (object identifier, string tag, bytes): any encoding at all."""

    def tlv(tag: int, body: bytes) -> bytes:
        assert len(body) < 128
        return bytes([tag, len(body)]) + body

    sets = []
    for attributes in relative:
        encoded = [
            tlv(0x30, core.ObjectIdentifier(oid).dump() + tlv(tag, value))
            for oid, tag, value in attributes
        ]
        sets.append(tlv(0x31, b"".join(sorted(encoded))))
    return tlv(0x30, b"".join(sets))
