"""A trust directory as fetch-crl and IGTF lay it out: the one place in ``trust`` that reads files.

``*.0`` ``*.1`` … and ``*.pem`` hold CA certificates, ``*.r0`` ``*.r1`` … hold CRLs; PEM (one or
several) or DER. ``*.signing_policy`` and ``*.namespaces`` say which names a CA may certify.
"""

from __future__ import annotations

import re
from dataclasses import replace
from pathlib import Path

from cryptography import x509
from cryptography.exceptions import InvalidSignature, UnsupportedAlgorithm

from distrib.errors import ConfigInvalid
from distrib.trust import cms, revocation
from distrib.trust.chain import TrustMaterial
from distrib.trust.names import DistinguishedName
from distrib.trust.namespaces import PolicyFile, PolicyUse
from distrib.trust.oldserials import old_serials_allowed
from distrib.trust.policyfiles import MAX_POLICY_BYTES, parse_policy

MAX_FILE_BYTES = 64 * 1024 * 1024

_CERTIFICATE_FILE = re.compile(r"[0-9a-fA-F]{8}\.\d+|.*\.(?:\d|pem)")
_CRL_FILE = re.compile(r"[0-9a-fA-F]{8}\.r\d+|.*\.r\d")
_POLICY_FILE = re.compile(r".*\.(?:signing_policy|namespaces)")
_CRL_BLOCK = re.compile(rb"-----BEGIN X509 CRL-----.+?-----END X509 CRL-----", re.DOTALL)


def load_trust_directory(path: str | Path, *, policies: PolicyUse = "if-present") -> TrustMaterial:
    """Read every CA certificate, CRL and policy file in ``path``.

    Self-signed certificates become anchors, others intermediates. ``ConfigInvalid`` names a
    certificate or CRL that cannot be read or is something else, and a directory without any anchor.
    A policy file that cannot be read is kept as such, and permits nothing.
    """
    directory = Path(path)
    try:
        entries = sorted(directory.iterdir())
        files = [entry for entry in entries if entry.is_file()]
    except OSError as error:
        raise ConfigInvalid(
            f"trust directory {directory}: {error.strerror}",
            hint="give a directory of CA certificates (HASH.0, *.pem) and CRLs (HASH.r0)",
            path=str(directory),
        ) from None
    # fetch-crl's layouts hold the same CA under several names; a dict drops the doubles.
    certificates: dict[x509.Certificate, None] = {}
    owners: dict[str, set[DistinguishedName]] = {}
    crls: list[x509.CertificateRevocationList] = []
    for file in files:
        if _CRL_FILE.fullmatch(file.name):
            crls += read_crls(file)
        elif _CERTIFICATE_FILE.fullmatch(file.name):
            found = read_certificates(file)
            certificates |= dict.fromkeys(found)
            names = {DistinguishedName.from_x509(entry.subject) for entry in found}
            owners.setdefault(file.stem, set()).update(names)
    anchors = tuple(entry for entry in certificates if _is_self_signed(entry))
    if not anchors:
        raise ConfigInvalid(
            f"trust directory {directory} holds no self-signed CA certificate",
            hint="put the CA's certificate there as HASH.0 (openssl rehash) or NAME.pem",
            path=str(directory),
        )
    others = tuple(entry for entry in certificates if entry not in set(anchors))
    return TrustMaterial(
        anchors=anchors,
        intermediates=others,
        crls=tuple(crls),
        policies=tuple(
            _read_policy(entry, frozenset(owners.get(entry.stem, ())))
            for entry in entries
            if _POLICY_FILE.fullmatch(entry.name)
        ),
        policy_use=policies,
    )


def read_certificates(file: str | Path) -> list[x509.Certificate]:
    """The certificates in a file, PEM or DER; ``ConfigInvalid`` if there are none."""
    path = Path(file)
    data = _read(path)
    try:
        with old_serials_allowed():
            if b"-----BEGIN" in data:
                found = x509.load_pem_x509_certificates(data)
            else:
                found = [x509.load_der_x509_certificate(data)]
        return [cms.read_whole(certificate) for certificate in found]
    except cms.PARSE_FAULTS as error:
        raise _bad_file(path, "an X.509 certificate", error) from None


def read_crls(file: str | Path) -> list[x509.CertificateRevocationList]:
    """The CRLs in a file, PEM or DER; ``ConfigInvalid`` if there are none."""
    path = Path(file)
    data = _read(path)
    try:
        if b"-----BEGIN" in data:
            blocks = _CRL_BLOCK.findall(data)
            found = [x509.load_pem_x509_crl(block) for block in blocks or [data]]
        else:
            found = [x509.load_der_x509_crl(data)]
        return [revocation.read_whole(crl) for crl in found]
    except cms.PARSE_FAULTS as error:
        raise _bad_file(path, "a CRL", error) from None


def _read_policy(path: Path, owners: frozenset[DistinguishedName]) -> PolicyFile:
    try:
        with path.open("rb") as file:
            content = file.read(MAX_POLICY_BYTES + 1)
    except OSError as error:
        # A link that leads nowhere, or a file of another user: nobody knows what it would forbid.
        return replace(parse_policy(path.name, b"", owners=owners), fault=str(error.strerror))
    return parse_policy(path.name, content, owners=owners)


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


def _bad_file(path: Path, what: str, error: Exception) -> ConfigInvalid:
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
