"""A trust directory as fetch-crl and IGTF lay it out: the one place in ``trust`` that reads files.

``*.0`` ``*.1`` … and ``*.pem`` hold CA certificates, ``*.r0`` ``*.r1`` … hold CRLs; PEM (one or
several) or DER.
"""

from __future__ import annotations

import re
from pathlib import Path

from cryptography import x509
from cryptography.exceptions import InvalidSignature, UnsupportedAlgorithm

from distrib.errors import ConfigInvalid
from distrib.trust.chain import TrustMaterial
from distrib.trust.oldserials import old_serials_allowed

MAX_FILE_BYTES = 64 * 1024 * 1024

_CERTIFICATE_FILE = re.compile(r".*\.(?:\d|pem)")
_CRL_FILE = re.compile(r".*\.r\d")
_CRL_BLOCK = re.compile(rb"-----BEGIN X509 CRL-----.+?-----END X509 CRL-----", re.DOTALL)


def load_trust_directory(path: str | Path) -> TrustMaterial:
    """Read every CA certificate and CRL in ``path``.

    Self-signed certificates become anchors, others intermediates. ``ConfigInvalid`` names a file
    that cannot be read or holds something else, and a directory without any anchor.
    """
    directory = Path(path)
    try:
        files = sorted(entry for entry in directory.iterdir() if entry.is_file())
    except OSError as error:
        raise ConfigInvalid(
            f"trust directory {directory}: {error.strerror}",
            hint="give a directory of CA certificates (HASH.0, *.pem) and CRLs (HASH.r0)",
            path=str(directory),
        ) from None
    # fetch-crl's layouts hold the same CA under several names; a dict drops the doubles.
    certificates: dict[x509.Certificate, None] = {}
    crls: list[x509.CertificateRevocationList] = []
    for file in files:
        if _CRL_FILE.fullmatch(file.name):
            crls += read_crls(file)
        elif _CERTIFICATE_FILE.fullmatch(file.name):
            certificates |= dict.fromkeys(read_certificates(file))
    anchors = tuple(entry for entry in certificates if _is_self_signed(entry))
    if not anchors:
        raise ConfigInvalid(
            f"trust directory {directory} holds no self-signed CA certificate",
            hint="put the CA's certificate there as HASH.0 (openssl rehash) or NAME.pem",
            path=str(directory),
        )
    others = tuple(entry for entry in certificates if entry not in set(anchors))
    return TrustMaterial(anchors=anchors, intermediates=others, crls=tuple(crls))


def read_certificates(file: str | Path) -> list[x509.Certificate]:
    """The certificates in a file, PEM or DER; ``ConfigInvalid`` if there are none."""
    path = Path(file)
    data = _read(path)
    try:
        with old_serials_allowed():
            if b"-----BEGIN" in data:
                return x509.load_pem_x509_certificates(data)
            return [x509.load_der_x509_certificate(data)]
    except ValueError as error:
        raise _bad_file(path, "an X.509 certificate", error) from None


def read_crls(file: str | Path) -> list[x509.CertificateRevocationList]:
    """The CRLs in a file, PEM or DER; ``ConfigInvalid`` if there are none."""
    path = Path(file)
    data = _read(path)
    try:
        if b"-----BEGIN" in data:
            blocks = _CRL_BLOCK.findall(data)
            return [x509.load_pem_x509_crl(block) for block in blocks or [data]]
        return [x509.load_der_x509_crl(data)]
    except ValueError as error:
        raise _bad_file(path, "a CRL", error) from None


def _read(path: Path) -> bytes:
    try:
        if path.stat().st_size > MAX_FILE_BYTES:
            raise ConfigInvalid(
                f"{path} is larger than {MAX_FILE_BYTES} bytes",
                hint="this is no certificate or CRL; move it away",
                path=str(path),
            )
        return path.read_bytes()
    except OSError as error:
        raise ConfigInvalid(
            f"{path}: {error.strerror}",
            hint="make the file readable for the user that runs this",
            path=str(path),
        ) from None


def _bad_file(path: Path, what: str, error: ValueError) -> ConfigInvalid:
    return ConfigInvalid(
        f"{path} is not {what}: {str(error)[:120]}",
        hint="replace the file, or move it out of the trust directory",
        path=str(path),
    )


def _is_self_signed(certificate: x509.Certificate) -> bool:
    try:
        certificate.verify_directly_issued_by(certificate)
    except (InvalidSignature, UnsupportedAlgorithm, ValueError, TypeError):
        # An old root may be signed with a digest that is refused here; by name it is still a root.
        return certificate.issuer == certificate.subject
    return True
