"""Certificate paths and CRLs: missing, expired, forged, revoked, at every level."""

from __future__ import annotations

from dataclasses import replace
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest
from cryptography import x509
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import rsa
from cryptography.hazmat.primitives.serialization import Encoding

from distrib.errors import ConfigInvalid
from distrib.trust.chain import TrustMaterial, check_chain
from distrib.trust.directory import load_trust_directory
from distrib.trust.revocation import CrlPolicy
from distrib.trust.testpki import Authority, Role

from .conftest import NOW, Intermediate, OpenSsl, World, codes, make_certificate, make_crl


@pytest.fixture
def below(world: World, intermediate: Intermediate) -> TrustMaterial:
    """Trust with both CRLs: the root's, and the intermediate's."""
    return world.trust.with_crls(intermediate.crl())


def check(
    certificate: x509.Certificate,
    trust: TrustMaterial,
    *untrusted: x509.Certificate,
    crls: CrlPolicy = "require",
    days: int = 0,
) -> list[str]:
    now = NOW + timedelta(days=days)
    return codes(check_chain(certificate, untrusted=untrusted, trust=trust, now=now, crls=crls))


def test_a_path_through_an_intermediate_that_came_with_the_message(
    below: TrustMaterial, intermediate: Intermediate
) -> None:
    assert check(intermediate.leaf, below, intermediate.certificate) == []
    assert check(intermediate.leaf, below) == ["chain-untrusted"]


def test_an_intermediate_of_the_trust_directory(
    below: TrustMaterial, intermediate: Intermediate
) -> None:
    trust = replace(below, intermediates=(intermediate.certificate,))
    assert check(intermediate.leaf, trust) == []


def test_an_intermediate_from_the_message_is_no_anchor(intermediate: Intermediate) -> None:
    trust = TrustMaterial(anchors=(), crls=(intermediate.crl(),))
    assert check(intermediate.leaf, trust, intermediate.certificate) == ["chain-untrusted"]


def test_the_crl_of_the_intermediate_is_asked_for(world: World, intermediate: Intermediate) -> None:
    assert check(intermediate.leaf, world.trust, intermediate.certificate) == ["crl-missing"]
    without_root = TrustMaterial(world.trust.anchors, crls=(intermediate.crl(),))
    assert check(intermediate.leaf, without_root, intermediate.certificate) == ["crl-missing"]


def test_a_revoked_leaf(below: TrustMaterial, intermediate: Intermediate) -> None:
    trust = below.with_crls(
        make_crl(intermediate.certificate.subject, intermediate.key, intermediate.leaf,
                 last_update=NOW - timedelta(minutes=1))
    )  # fmt: skip
    assert check(intermediate.leaf, trust, intermediate.certificate) == ["certificate-revoked"]


def test_a_revoked_intermediate(world: World, intermediate: Intermediate) -> None:
    """The hole of older verifiers, which asked the first issuer's CRL only."""
    root = world.experiment
    assert isinstance(root.key, rsa.RSAPrivateKey)
    revoking = make_crl(root.certificate.subject, root.key, intermediate.certificate)
    trust = TrustMaterial(world.trust.anchors, crls=(revoking, intermediate.crl()))
    for crls in ("require", "if-present"):
        found = check(intermediate.leaf, trust, intermediate.certificate, crls=crls)
        assert found == ["certificate-revoked"]


def test_a_forged_crl_neither_revokes_nor_clears(world: World, intermediate: Intermediate) -> None:
    """It bears the root's name, and somebody else's signature."""
    endorser = world.endorser.certificate
    name = world.experiment.certificate.subject
    forged = make_crl(name, intermediate.key, endorser, last_update=NOW - timedelta(seconds=1))
    assert check(endorser, world.trust.with_crls(forged)) == []
    only_forged = TrustMaterial(world.trust.anchors, crls=(forged,))
    assert check(endorser, only_forged) == ["crl-invalid"]
    assert check(endorser, only_forged, crls="if-present") == ["crl-invalid"]


def test_the_newest_genuine_crl_counts(world: World) -> None:
    """An old one replayed beside it hides no revocation."""
    root = world.experiment
    assert isinstance(root.key, rsa.RSAPrivateKey)
    name, endorser = root.certificate.subject, world.endorser.certificate
    old = make_crl(name, root.key, last_update=NOW - timedelta(hours=5))
    new = make_crl(name, root.key, endorser, last_update=NOW - timedelta(hours=1))
    for crls in ((old, new), (new, old)):
        trust = TrustMaterial(world.trust.anchors, crls=crls)
        assert check(endorser, trust) == ["certificate-revoked"]


def test_crls_out_of_date(world: World) -> None:
    root = world.experiment
    assert isinstance(root.key, rsa.RSAPrivateKey)
    name, endorser = root.certificate.subject, world.endorser.certificate
    old = make_crl(name, root.key, next_update=NOW - timedelta(seconds=1))
    future = make_crl(name, root.key, last_update=NOW + timedelta(hours=1))
    anchors = world.trust.anchors
    assert check(endorser, TrustMaterial(anchors, crls=(old,))) == ["crl-expired"]
    assert check(endorser, TrustMaterial(anchors, crls=(future,))) == ["crl-not-yet-valid"]


def test_an_expired_crl_still_revokes(world: World) -> None:
    root = world.experiment
    assert isinstance(root.key, rsa.RSAPrivateKey)
    endorser = world.endorser.certificate
    old = make_crl(
        root.certificate.subject, root.key, endorser, next_update=NOW - timedelta(seconds=1)
    )
    trust = TrustMaterial(world.trust.anchors, crls=(old,))
    assert check(endorser, trust) == ["certificate-revoked", "crl-expired"]


def test_no_crl_passes_only_where_the_site_says_so(world: World) -> None:
    bare = TrustMaterial(world.trust.anchors)
    assert check(world.endorser.certificate, bare) == ["crl-missing"]
    assert check(world.endorser.certificate, bare, crls="if-present") == []


@pytest.mark.parametrize(
    ("days", "expected"),
    [
        (-1, ["certificate-not-yet-valid", "crl-not-yet-valid"]),
        (31, ["crl-expired"]),
        (366, ["certificate-expired", "crl-expired"]),
    ],
)
def test_time(world: World, days: int, expected: list[str]) -> None:
    assert check(world.endorser.certificate, world.trust, days=days) == expected


def test_another_authority_of_the_same_name_is_not_trusted(world: World, tmp_path: Path) -> None:
    impostor = Authority.create(tmp_path / "ca", "Experiment", now=NOW)
    forged = impostor.issue(Role.ENDORSER, "Jane Endorser", now=NOW).certificate
    assert forged.subject == world.endorser.certificate.subject
    assert check(forged, world.trust, impostor.certificate) == ["chain-untrusted"]


def test_an_endorser_is_no_authority(world: World) -> None:
    """A certificate that an end entity issued leads nowhere."""
    key = rsa.generate_private_key(public_exponent=65537, key_size=2048)
    endorser = Authority(Path(), world.endorser.certificate, world.endorser.key)
    forged = make_certificate("Mallory", key, endorser)
    assert check(forged, world.trust, world.endorser.certificate) == ["chain-untrusted"]


def test_weak_keys_are_refused(world: World) -> None:
    key = rsa.generate_private_key(public_exponent=65537, key_size=1024)  # noqa: S505
    assert check(make_certificate("Weak", key, world.experiment), world.trust) == ["key-weak"]


def test_a_partial_crl_is_not_taken_for_a_whole_one(world: World) -> None:
    root = world.experiment
    partial = (
        x509.CertificateRevocationListBuilder()
        .issuer_name(root.certificate.subject)
        .last_update(NOW - timedelta(hours=1))
        .next_update(NOW + timedelta(days=1))
        .add_extension(
            x509.IssuingDistributionPoint(None, None, False, True, None, False, False), True
        )
        .sign(root.key, hashes.SHA256())
    )
    trust = TrustMaterial(world.trust.anchors, crls=(partial,))
    assert check(world.endorser.certificate, trust) == ["crl-invalid"]


def test_now_must_know_its_zone(world: World) -> None:
    with pytest.raises(ValueError, match="aware"):
        check_chain(world.endorser.certificate, trust=world.trust, now=NOW.replace(tzinfo=None))


class TestDirectory:
    def test_pem_der_and_bundles(self, world: World, site_ca: Authority, tmp_path: Path) -> None:
        pem = world.experiment.certificate.public_bytes(Encoding.PEM)
        crl = world.trust.crls[0]
        (tmp_path / "a.pem").write_bytes(pem + site_ca.certificate.public_bytes(Encoding.PEM))
        (tmp_path / "0a1b2c3d.0").write_bytes(
            world.experiment.certificate.public_bytes(Encoding.DER)
        )
        (tmp_path / "0a1b2c3d.r10").write_bytes(crl.public_bytes(Encoding.DER))
        for name in ("0a1b2c3d.crl_url", "0a1b2c3d.info", "0a1b2c3d.0.20260301", "README"):
            (tmp_path / name).write_text("is for others")
        trust = load_trust_directory(tmp_path)
        assert set(trust.anchors) == {world.experiment.certificate, site_ca.certificate}
        assert trust.crls == (crl,)

    def test_intermediates_are_no_anchors(
        self, world: World, intermediate: Intermediate, tmp_path: Path
    ) -> None:
        (tmp_path / "root.pem").write_bytes(world.experiment.certificate.public_bytes(Encoding.PEM))
        (tmp_path / "middle.pem").write_bytes(intermediate.certificate.public_bytes(Encoding.PEM))
        trust = load_trust_directory(tmp_path)
        assert trust.anchors == (world.experiment.certificate,)
        assert trust.intermediates == (intermediate.certificate,)

    @pytest.mark.parametrize("name", ["bad.pem", "0a1b2c3d.0", "0a1b2c3d.r0"])
    @pytest.mark.parametrize("content", [b"", b"junk", b"-----BEGIN CERTIFICATE-----\nx\n"])
    def test_a_bad_file_is_named(
        self, world: World, tmp_path: Path, name: str, content: bytes
    ) -> None:
        (tmp_path / "root.pem").write_bytes(world.experiment.certificate.public_bytes(Encoding.PEM))
        (tmp_path / name).write_bytes(content)
        with pytest.raises(ConfigInvalid, match=name) as error:
            load_trust_directory(tmp_path)
        assert error.value.hint

    def test_empty_or_absent(self, tmp_path: Path) -> None:
        with pytest.raises(ConfigInvalid, match="no self-signed"):
            load_trust_directory(tmp_path)
        with pytest.raises(ConfigInvalid, match="No such file"):
            load_trust_directory(tmp_path / "nowhere")


@pytest.fixture
def site_ca(world: World) -> Authority:
    return world.site


@pytest.mark.parametrize("serial", ["0", "-5"])
def test_the_serial_numbers_of_old_grid_authorities(
    openssl: OpenSsl, tmp_path: Path, serial: str
) -> None:
    openssl(
        "req", "-x509", "-newkey", "rsa:2048", "-nodes", "-keyout", tmp_path / "key",
        "-out", tmp_path / "old.pem", "-subj", "/CN=Old CA", "-set_serial", serial,
    )  # fmt: skip
    trust = load_trust_directory(tmp_path)
    tomorrow = datetime.now(UTC) + timedelta(days=1)
    assert check_chain(trust.anchors[0], trust=trust, now=tomorrow, crls="if-present") == ()


def test_a_ca_that_changed_its_key_lies_there_twice(world: World, tmp_path: Path) -> None:
    """One name, so one hash: ``.0`` and ``.1``, ``.r0`` and ``.r1``. Each vouches for its own."""
    old = world.experiment
    new = Authority.create(tmp_path / "new", "Experiment", now=NOW)
    stem = old.crl_path.stem
    key = rsa.generate_private_key(public_exponent=65537, key_size=2048)
    for order in ((old, new), (new, old)):
        directory = tmp_path / f"{order[0].directory.name} first"
        directory.mkdir()
        for number, authority in enumerate(order):
            pem = authority.certificate.public_bytes(Encoding.PEM)
            (directory / f"{stem}.{number}").write_bytes(pem)
            (directory / f"{stem}.r{number}").write_bytes(authority.crl_path.read_bytes())
        trust = load_trust_directory(directory)
        assert len(trust.anchors) == len(trust.crls) == 2
        for authority in order:
            with_identifier = authority.issue(Role.ENDORSER, "Jane", now=NOW).certificate
            assert check(with_identifier, trust) == []
            assert check(make_certificate("Bare", key, authority), trust) == []
            authority.revoke(with_identifier, now=NOW)
            revoked = trust.with_crls(*load_trust_directory(authority.trust_directory).crls)
            assert check(with_identifier, revoked) == ["certificate-revoked"]
            authority.write_crl((), now=NOW)


def test_an_intermediate_that_changed_its_key_came_twice(world: World) -> None:
    keys = [rsa.generate_private_key(public_exponent=65537, key_size=2048) for _ in range(3)]
    middles = [
        make_certificate("Middle CA", key, world.experiment, authority=True) for key in keys[:2]
    ]
    crls = [make_crl(middles[0].subject, key) for key in keys[:2]]
    for middle, key in zip(middles, keys, strict=False):
        leaf = make_certificate("Leaf", keys[2], Authority(Path(), middle, key))
        for untrusted in (middles, middles[::-1]):
            assert check(leaf, world.trust.with_crls(*crls), *untrusted) == []
