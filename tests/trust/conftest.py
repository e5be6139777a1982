"""Two real authorities, an endorser, a catalogue, and lists that they sign."""

from __future__ import annotations

import hashlib
import subprocess
from collections.abc import Callable
from dataclasses import dataclass, replace
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest
from cryptography import x509
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import rsa
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from cryptography.x509.oid import NameOID

from distrib.trust.chain import TrustMaterial
from distrib.trust.directory import load_trust_directory
from distrib.trust.imagelist import Endorser, Image, ImageList, render_image_list
from distrib.trust.names import slash_form
from distrib.trust.reasons import Reason
from distrib.trust.signature import sign_smime
from distrib.trust.sitelist import ControllerKey, Origin, SiteImage, SiteList, render_site_list
from distrib.trust.testpki import Authority, Issued, Role

NOW = datetime(2026, 3, 1, 12, 0, tzinfo=UTC)
LIST_ID = "0d4b3b8e-54f0-4a53-8a6e-0a4f1a6a2c01"
IMAGE_ID = "7cb7a2d5-0f0e-4f43-9a11-3a9f5e0f6c11"
SHA512 = "cf83e135" * 16
CONTROLLER_KEY = Ed25519PrivateKey.from_private_bytes(b"\x07" * 32)


def codes(reasons: tuple[Reason, ...]) -> list[str]:
    """The codes alone, sorted, each once."""
    return sorted({reason.code.value for reason in reasons})


@dataclass(frozen=True)
class World:
    """An experiment with its endorser, and a site with its catalogue; both trusted at ``now``."""

    now: datetime
    experiment: Authority
    endorser: Issued
    other_endorser: Issued
    site: Authority
    catalogue: Issued
    node: Issued
    trust: TrustMaterial
    site_trust: TrustMaterial

    def image_list(self, signer: Issued | None = None) -> ImageList:
        """A plain list that states ``signer`` (or the endorser) as its endorser."""
        certificate = (signer or self.endorser).certificate
        return ImageList(
            identifier=LIST_ID,
            version="1.2.0",
            created=self.now - timedelta(days=1),
            expires=self.now + timedelta(days=27),
            endorser=Endorser(slash_form(certificate.subject), slash_form(certificate.issuer)),
            images=(
                Image(
                    identifier=IMAGE_ID,
                    version="1.0.0",
                    uri="https://images.example.org/worker.raw",
                    size_bytes=64 * 1024 * 1024,
                    sha512=SHA512,
                    title="worker",
                ),
            ),
            title="Experiment images",
        )

    def content(self) -> bytes:
        """The plain list as JSON."""
        return render_image_list(self.image_list())

    def signed(self, image_list: ImageList | None = None, by: Issued | None = None) -> bytes:
        """The list (or the plain one), signed by the endorser or somebody else."""
        signer = by or self.endorser
        content = render_image_list(image_list or self.image_list())
        return sign_smime(content, signer.certificate, signer.key)

    def site_list(self) -> SiteList:
        """A site list of one image."""
        certificate = self.catalogue.certificate
        return SiteList(
            identifier="1f8b6e0c-6b1e-4c6a-9d6e-2f0f4c1d9a10",
            version="1772366400",
            created=self.now,
            expires=self.now + timedelta(hours=72),
            site="Example Site",
            endorser=Endorser(slash_form(certificate.subject), slash_form(certificate.issuer)),
            images=(self.site_image(),),
            controller_keys=(ControllerKey.of(CONTROLLER_KEY.public_key()),),
        )

    def site_image(self, version: str = "1.0.0") -> SiteImage:
        """The endorser's image, approved."""
        endorsed = replace(self.image_list().images[0], version=version)
        return SiteImage(
            image=endorsed,
            infohash=hashlib.sha256(version.encode()).hexdigest(),
            size_bytes=64 * 1024 * 1024,
            piece_bytes=256 * 1024,
            sha512=SHA512,
            origin=Origin(
                list=LIST_ID,
                list_version="1.2.0",
                endorser_dn=slash_form(self.endorser.certificate.subject),
                endorser_ca=slash_form(self.endorser.certificate.issuer),
                sha512=SHA512,
                size_bytes=endorsed.size_bytes,
            ),
        )

    def signed_site_list(
        self, site_list: SiteList | None = None, by: Issued | None = None
    ) -> bytes:
        """The site list, signed by the catalogue or somebody else."""
        signer = by or self.catalogue
        content = render_site_list(site_list or self.site_list())
        return sign_smime(content, signer.certificate, signer.key)


@pytest.fixture(scope="session")
def world(tmp_path_factory: pytest.TempPathFactory) -> World:
    root = tmp_path_factory.mktemp("pki")
    experiment = Authority.create(root / "experiment", "Experiment", now=NOW)
    site = Authority.create(root / "site", "Example Site", now=NOW)
    return World(
        now=NOW,
        experiment=experiment,
        endorser=experiment.issue(Role.ENDORSER, "Jane Endorser", now=NOW),
        other_endorser=experiment.issue(Role.ENDORSER, "John Other", now=NOW),
        site=site,
        catalogue=site.issue(Role.CATALOGUE, now=NOW),
        node=site.issue(Role.NODE, "wn001", now=NOW, hosts=["wn001"]),
        trust=load_trust_directory(experiment.trust_directory),
        site_trust=load_trust_directory(site.trust_directory),
    )


@dataclass(frozen=True)
class Intermediate:
    """A CA below the experiment's, and an endorser below that."""

    certificate: x509.Certificate
    key: rsa.RSAPrivateKey
    leaf: x509.Certificate
    leaf_key: rsa.RSAPrivateKey

    def crl(self, *revoked: x509.Certificate) -> x509.CertificateRevocationList:
        """The intermediate's own CRL."""
        return make_crl(self.certificate.subject, self.key, *revoked)


@pytest.fixture(scope="session")
def intermediate(world: World) -> Intermediate:
    key = rsa.generate_private_key(public_exponent=65537, key_size=2048)
    leaf_key = rsa.generate_private_key(public_exponent=65537, key_size=2048)
    certificate = make_certificate("Middle CA", key, world.experiment, authority=True)
    leaf = make_certificate("Jane Below", leaf_key, Authority(Path(), certificate, key))
    return Intermediate(certificate, key, leaf, leaf_key)


def make_certificate(
    common_name: str,
    key: rsa.RSAPrivateKey,
    issuer: Authority,
    *,
    authority: bool = False,
    extensions: tuple[x509.ExtensionType, ...] = (),
    subject: x509.Name | None = None,
) -> x509.Certificate:
    """A certificate with just what a test needs."""
    builder = (
        x509.CertificateBuilder()
        .subject_name(subject or x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, common_name)]))
        .issuer_name(issuer.certificate.subject)
        .public_key(key.public_key())
        .serial_number(x509.random_serial_number())
        .not_valid_before(NOW - timedelta(days=1))
        .not_valid_after(NOW + timedelta(days=300))
        .add_extension(x509.BasicConstraints(ca=authority, path_length=None), critical=True)
    )
    for extension in extensions:
        builder = builder.add_extension(extension, critical=True)
    return builder.sign(issuer.key, hashes.SHA256())


def make_crl(
    issuer: x509.Name,
    key: rsa.RSAPrivateKey,
    *revoked: x509.Certificate,
    last_update: datetime = NOW - timedelta(hours=1),
    next_update: datetime = NOW + timedelta(days=7),
) -> x509.CertificateRevocationList:
    """A CRL in the name of ``issuer``, signed with ``key``, be it the issuer's or not."""
    builder = (
        x509.CertificateRevocationListBuilder()
        .issuer_name(issuer)
        .last_update(last_update)
        .next_update(next_update)
    )
    for certificate in revoked:
        builder = builder.add_revoked_certificate(
            x509.RevokedCertificateBuilder()
            .serial_number(certificate.serial_number)
            .revocation_date(last_update)
            .build()
        )
    return builder.sign(key, hashes.SHA256())


OpenSsl = Callable[..., bytes]


@pytest.fixture
def openssl(tmp_path: Path) -> OpenSsl:
    """The oracle: ``openssl ARGS`` with ``stdin``; its output, or CalledProcessError."""

    def run(*arguments: object, stdin: bytes = b"") -> bytes:
        return subprocess.run(
            ["openssl", *map(str, arguments)],
            input=stdin,
            capture_output=True,
            check=True,
            cwd=tmp_path,
        ).stdout

    return run
