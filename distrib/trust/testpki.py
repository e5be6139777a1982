"""A PKI for demos and tests: keys in plain files, no passphrase, no policy. Not for a farm.

Layout of an authority's directory (``Authority.create``)::

    ca.pem  ca.key            the authority's certificate and key
    trust/HASH.0 HASH.r0      a trust directory: the certificate and the CRL
    certs/NAME.pem NAME.key   what it issued

List signers and authorities get RSA 2048 (what the field's tools take), all others ECDSA P-256.
Keys are written with mode 0600. An experiment's authority and a site's are different authorities.
"""

from __future__ import annotations

import ipaddress
import os
import re
from collections.abc import Iterable
from dataclasses import dataclass
from datetime import datetime, timedelta
from enum import StrEnum
from pathlib import Path

from cryptography import x509
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec, rsa
from cryptography.hazmat.primitives.serialization import (
    Encoding,
    NoEncryption,
    PrivateFormat,
    load_pem_private_key,
)
from cryptography.x509.oid import ExtendedKeyUsageOID, NameOID
from OpenSSL import crypto

from distrib.errors import ConfigInvalid, Conflict, NotFound
from distrib.trust.cms import SigningKey
from distrib.trust.verify import ROLE_URI_PREFIX

#: Certificates and CRLs begin this much before now, for clocks that are behind.
BACKDATE = timedelta(minutes=5)
CA_DAYS = 3650
CERTIFICATE_DAYS = 365
CRL_DAYS = 30

_NODE_NAME = re.compile(r"[a-z0-9][a-z0-9.-]{0,62}")


class Role(StrEnum):
    """What a certificate is for. All but ``node`` and ``endorser`` have their role as their CN."""

    ENDORSER = "endorser"
    CATALOGUE = "catalogue"
    NODE = "node"
    CONTROLLER = "controller"
    SEEDER = "seeder"
    SERVER = "server"
    OPERATOR = "operator"


# A node's CN is its user name at the broker: a node of such a name would have that role's rights.
RESERVED_NAMES = frozenset(role.value for role in Role)
_LIST_SIGNERS = frozenset({Role.ENDORSER, Role.CATALOGUE})
_SERVERS = frozenset({Role.SERVER, Role.CONTROLLER, Role.SEEDER})


@dataclass(frozen=True, slots=True)
class Issued:
    """A certificate with its key, and the files that hold them (PEM)."""

    certificate: x509.Certificate
    key: SigningKey
    certificate_path: Path
    key_path: Path


@dataclass(frozen=True, slots=True)
class Authority:
    """A CA whose files are in ``directory``."""

    directory: Path
    certificate: x509.Certificate
    key: SigningKey

    @property
    def trust_directory(self) -> Path:
        """What to give to ``load_trust_directory`` or ``--trust``."""
        return self.directory / "trust"

    @classmethod
    def create(
        cls, directory: str | Path, organisation: str, *, now: datetime, days: int = CA_DAYS
    ) -> Authority:
        """A new authority ``/O=ORGANISATION/CN=ORGANISATION CA``; ``Conflict`` if one is there."""
        target = Path(directory)
        if (target / "ca.key").exists():
            raise Conflict(
                f"{target} holds an authority already",
                hint="take another directory, or remove this one",
                path=str(target),
            )
        key = rsa.generate_private_key(public_exponent=65537, key_size=2048)
        name = _name(organisation, f"{organisation} CA")
        certificate = (
            _builder(name, name, key, now=now, days=days)
            .add_extension(x509.BasicConstraints(ca=True, path_length=None), critical=True)
            .add_extension(_key_usage(authority=True), critical=True)
            .add_extension(x509.SubjectKeyIdentifier.from_public_key(key.public_key()), False)
            .sign(key, hashes.SHA256())
        )
        authority = cls(target, certificate, key)
        for folder in (target, target / "certs", authority.trust_directory):
            folder.mkdir(parents=True, exist_ok=True)
        _write(target / "ca.pem", certificate.public_bytes(Encoding.PEM), 0o644)
        _write(target / "ca.key", _key_bytes(key), 0o600)
        anchor = authority.trust_directory / f"{subject_hash(certificate)}.0"
        _write(anchor, certificate.public_bytes(Encoding.PEM), 0o644)
        authority.write_crl((), now=now)
        return authority

    @classmethod
    def load(cls, directory: str | Path) -> Authority:
        """The authority in ``directory``; ``NotFound`` if there is none."""
        target = Path(directory)
        try:
            certificate = x509.load_pem_x509_certificate((target / "ca.pem").read_bytes())
            key = load_pem_private_key((target / "ca.key").read_bytes(), None)
        except OSError as error:
            raise NotFound(
                f"no authority in {target}: {error.strerror}",
                hint="make one with: distrib testpki init",
                path=str(target),
            ) from None
        if not isinstance(key, rsa.RSAPrivateKey | ec.EllipticCurvePrivateKey):
            raise ConfigInvalid(f"{target}/ca.key is of another kind", hint="make a new authority")
        return cls(target, certificate, key)

    def issue(
        self,
        role: Role,
        name: str = "",
        *,
        now: datetime,
        hosts: Iterable[str] = (),
        days: int = CERTIFICATE_DAYS,
    ) -> Issued:
        """A certificate for ``role``, in ``certs/NAME.pem`` and ``.key``, which are replaced.

        ``name`` is the CN of a node or an endorser; for other roles it names the files only, the CN
        is the role. ``hosts``: DNS names and IP addresses for SubjectAltName. ``ConfigInvalid`` for
        a name that a node may not have.
        """
        common_name = _common_name(role, name)
        key: SigningKey
        if role in _LIST_SIGNERS:
            key = rsa.generate_private_key(public_exponent=65537, key_size=2048)
        else:
            key = ec.generate_private_key(ec.SECP256R1())
        organisation = self.certificate.subject.get_attributes_for_oid(NameOID.ORGANIZATION_NAME)
        subject = _name(str(organisation[0].value), common_name)
        alternatives: list[x509.GeneralName] = [
            x509.UniformResourceIdentifier(f"{ROLE_URI_PREFIX}{role.value}")
        ]
        alternatives += [_host(host) for host in hosts]
        builder = (
            _builder(subject, self.certificate.subject, key, now=now, days=days)
            .add_extension(x509.BasicConstraints(ca=False, path_length=None), critical=True)
            .add_extension(_key_usage(authority=False), critical=True)
            .add_extension(x509.SubjectAlternativeName(alternatives), critical=False)
            .add_extension(self._key_identifier(), critical=False)
        )
        purposes = _purposes(role)
        if purposes:
            builder = builder.add_extension(x509.ExtendedKeyUsage(purposes), critical=False)
        certificate = builder.sign(self.key, hashes.SHA256())
        certificate_path = self.certificate_path(name or role.value)
        key_path = certificate_path.with_name(certificate_path.name.removesuffix(".pem") + ".key")
        _write(certificate_path, certificate.public_bytes(Encoding.PEM), 0o644)
        _write(key_path, _key_bytes(key), 0o600)
        return Issued(certificate, key, certificate_path, key_path)

    def revoke(self, certificate: x509.Certificate, *, now: datetime) -> Path:
        """Put ``certificate`` on the CRL; returns the CRL's file."""
        known = {entry.serial_number: entry for entry in self._revoked()}
        entry = (
            x509.RevokedCertificateBuilder()
            .serial_number(certificate.serial_number)
            .revocation_date(now)
            .build()
        )
        known.setdefault(certificate.serial_number, entry)
        return self.write_crl(known.values(), now=now)

    def write_crl(
        self,
        revoked: Iterable[x509.RevokedCertificate] | None = None,
        *,
        now: datetime,
        days: int = CRL_DAYS,
    ) -> Path:
        """Write a CRL in force from now on (None: of what is revoked already); returns its file."""
        builder = (
            x509.CertificateRevocationListBuilder()
            .issuer_name(self.certificate.subject)
            .last_update(now - BACKDATE)
            .next_update(now + timedelta(days=days))
        )
        for entry in self._revoked() if revoked is None else revoked:
            builder = builder.add_revoked_certificate(entry)
        crl = builder.sign(self.key, hashes.SHA256())
        _write(self.crl_path, crl.public_bytes(Encoding.PEM), 0o644)
        return self.crl_path

    def certificate_path(self, name: str) -> Path:
        """The file of the certificate that was issued by ``name``."""
        stem = re.sub(r"[^A-Za-z0-9._-]", "_", name).lstrip(".") or "_"
        return self.directory / "certs" / f"{stem}.pem"

    @property
    def crl_path(self) -> Path:
        """The CRL's file in the trust directory."""
        return self.trust_directory / f"{subject_hash(self.certificate)}.r0"

    def _key_identifier(self) -> x509.AuthorityKeyIdentifier:
        own = self.certificate.extensions.get_extension_for_class(x509.SubjectKeyIdentifier).value
        return x509.AuthorityKeyIdentifier.from_issuer_subject_key_identifier(own)

    def _revoked(self) -> list[x509.RevokedCertificate]:
        try:
            return list(x509.load_pem_x509_crl(self.crl_path.read_bytes()))
        except FileNotFoundError:
            return []


@dataclass(frozen=True, slots=True)
class Demo:
    """Two authorities, and what they issued: all that a site and its experiment need for a try."""

    site: Authority
    experiment: Authority
    issued: tuple[Issued, ...]


def create_demo(
    directory: str | Path,
    *,
    site: str,
    nodes: Iterable[str] = (),
    endorser: str = "Endorser",
    experiment: str = "Experiment",
    hosts: Iterable[str] = (),
    now: datetime,
) -> Demo:
    """``DIRECTORY/site`` with every role and node, ``DIRECTORY/experiment`` with the endorser.

    Servers answer for ``localhost``, its addresses and ``hosts``.
    """
    names = [check_node_name(node) for node in nodes]
    site_authority = Authority.create(Path(directory) / "site", site, now=now)
    experiment_authority = Authority.create(Path(directory) / "experiment", experiment, now=now)
    answered = ("localhost", "127.0.0.1", "::1", *hosts)
    issued = [site_authority.issue(Role.CATALOGUE, now=now)]
    issued += [
        site_authority.issue(role, now=now, hosts=answered)
        for role in (Role.SERVER, Role.CONTROLLER, Role.SEEDER)
    ]
    issued.append(site_authority.issue(Role.OPERATOR, now=now))
    issued += [site_authority.issue(Role.NODE, name, now=now, hosts=(name,)) for name in names]
    issued.append(experiment_authority.issue(Role.ENDORSER, endorser, now=now))
    return Demo(site_authority, experiment_authority, tuple(issued))


def check_node_name(name: str) -> str:
    """The name, if a node may have it; else ``ConfigInvalid``."""
    if not _NODE_NAME.fullmatch(name):
        raise ConfigInvalid(
            f"{name[:80]!r} is no node name",
            hint="up to 63 of a-z, 0-9, dot and dash; first a letter or digit",
        )
    if name in RESERVED_NAMES:
        raise ConfigInvalid(
            f"a node may not be called {name!r}", hint="that is a role's name at the broker"
        )
    return name


def subject_hash(certificate: x509.Certificate) -> str:
    """What ``openssl x509 -subject_hash`` prints: the stem of the file in a trust directory."""
    return f"{crypto.X509.from_cryptography(certificate).subject_name_hash():08x}"


def _common_name(role: Role, name: str) -> str:
    if role is Role.NODE:
        return check_node_name(name)
    if role is Role.ENDORSER:
        if not name or name in RESERVED_NAMES:
            raise ConfigInvalid("an endorser needs a name of its own", hint="give its CN")
        return name
    return role.value


def _name(organisation: str, common_name: str) -> x509.Name:
    return x509.Name(
        [
            x509.NameAttribute(NameOID.ORGANIZATION_NAME, organisation),
            x509.NameAttribute(NameOID.COMMON_NAME, common_name),
        ]
    )


def _builder(
    subject: x509.Name, issuer: x509.Name, key: SigningKey, *, now: datetime, days: int
) -> x509.CertificateBuilder:
    return (
        x509.CertificateBuilder()
        .subject_name(subject)
        .issuer_name(issuer)
        .public_key(key.public_key())
        .serial_number(x509.random_serial_number())
        .not_valid_before(now - BACKDATE)
        .not_valid_after(now + timedelta(days=days))
    )


def _key_usage(*, authority: bool) -> x509.KeyUsage:
    return x509.KeyUsage(
        digital_signature=not authority,
        key_cert_sign=authority,
        crl_sign=authority,
        content_commitment=False,
        key_encipherment=False,
        data_encipherment=False,
        key_agreement=False,
        encipher_only=False,
        decipher_only=False,
    )


def _purposes(role: Role) -> list[x509.ObjectIdentifier]:
    if role in _LIST_SIGNERS:
        return []
    purposes = [ExtendedKeyUsageOID.SERVER_AUTH] if role in _SERVERS else []
    if role is not Role.SERVER:
        purposes.append(ExtendedKeyUsageOID.CLIENT_AUTH)
    return purposes


def _host(host: str) -> x509.GeneralName:
    try:
        return x509.IPAddress(ipaddress.ip_address(host))
    except ValueError:
        return x509.DNSName(host)


def _key_bytes(key: SigningKey) -> bytes:
    return key.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, NoEncryption())


def _write(path: Path, data: bytes, mode: int) -> None:
    """Replace a file whole: readers see old or new, and its mode is right from the first byte."""
    partial = path.with_name(f".{path.name}.new")
    partial.unlink(missing_ok=True)
    descriptor = os.open(partial, os.O_WRONLY | os.O_CREAT | os.O_EXCL, mode)
    with os.fdopen(descriptor, "wb") as file:
        file.write(data)
    partial.replace(path)
