"""Inputs that the fuzzer found, each by the name of what it broke."""

from __future__ import annotations

from datetime import timedelta
from pathlib import Path

import pytest
from cryptography import x509
from cryptography.hazmat.primitives.asymmetric import rsa
from cryptography.hazmat.primitives.serialization import Encoding
from cryptography.x509.oid import NameOID

from distrib.errors import ConfigInvalid
from distrib.trust.chain import check_chain
from distrib.trust.cms import read_certificate
from distrib.trust.directory import load_trust_directory, read_certificates
from distrib.trust.marketplace import EntryExpectation, verify_entry
from distrib.trust.names import same_name, slash_form
from distrib.trust.signature import sign_smime
from distrib.trust.testpki import Authority
from distrib.trust.verify import Expectation, verify
from tests.trust.conftest import NOW, OpenSsl, World, codes, make_certificate, make_crl
from tests.trust.marketplace_world import entry_xml

RSA_ENCRYPTION = bytes.fromhex("06092a864886f70d010101")
UNKNOWN_KEY = bytes.fromhex("06092a864886f70d010154")


@pytest.mark.parametrize(
    ("old", "new"),
    [(RSA_ENCRYPTION, UNKNOWN_KEY), (b"Experiment", b"Experimen\xc5")],
    ids=["a key of an unknown kind", "a name that is not UTF-8"],
)
def test_a_ca_certificate_whose_parts_cannot_be_read_is_named(
    world: World, tmp_path: Path, old: bytes, new: bytes
) -> None:
    """cryptography reads a certificate's parts when they are asked for: far from the file."""
    der = world.experiment.certificate.public_bytes(Encoding.DER)
    assert old in der
    (tmp_path / "good.pem").write_bytes(world.site.certificate.public_bytes(Encoding.PEM))
    (tmp_path / "0a1b2c3d.0").write_bytes(der.replace(old, new))
    with pytest.raises(ConfigInvalid, match=r"0a1b2c3d\.0"):
        load_trust_directory(tmp_path)


def broken_crl(world: World) -> x509.CertificateRevocationList:
    root = world.experiment
    assert isinstance(root.key, rsa.RSAPrivateKey)
    der = make_crl(root.certificate.subject, root.key).public_bytes(Encoding.DER)
    return x509.load_der_x509_crl(der.replace(b"Experiment", b"Experimen\xc5"))


def test_a_crl_whose_issuer_cannot_be_read_is_named(world: World, tmp_path: Path) -> None:
    (tmp_path / "ca.pem").write_bytes(world.experiment.certificate.public_bytes(Encoding.PEM))
    (tmp_path / "ca.r0").write_bytes(broken_crl(world).public_bytes(Encoding.DER))
    with pytest.raises(ConfigInvalid, match=r"ca\.r0"):
        load_trust_directory(tmp_path)


def test_a_crl_whose_issuer_cannot_be_read_counts_for_nobody(world: World) -> None:
    """As it may come over the bus."""
    trust = world.trust.with_crls(broken_crl(world))
    endorser = world.endorser.certificate
    assert check_chain(endorser, trust=trust, now=NOW) == ()
    only = load_trust_directory(world.experiment.trust_directory)
    bare = type(only)(only.anchors, crls=(broken_crl(world),))
    assert codes(check_chain(endorser, trust=bare, now=NOW)) == ["crl-missing"]


def test_a_crl_whose_entries_cannot_be_read_clears_nobody(world: World) -> None:
    """An entry's date that is none: the signature is checked first, so it takes the CA to do it."""
    root = world.experiment
    assert isinstance(root.key, rsa.RSAPrivateKey)
    crl = make_crl(root.certificate.subject, root.key, world.other_endorser.certificate)
    der = crl.public_bytes(Encoding.DER)
    serial = world.other_endorser.certificate.serial_number.to_bytes(20, "big")
    at = der.index(serial) + len(serial)
    broken = x509.load_der_x509_crl(der[: at + 2] + b"99" + der[at + 4 :])
    trust = type(world.trust)(world.trust.anchors, crls=(broken,))
    found = codes(check_chain(world.other_endorser.certificate, trust=trust, now=NOW))
    assert found == ["crl-invalid"]


def test_an_entry_with_a_relative_namespace_has_no_canonical_form(world: World) -> None:
    text = entry_xml(NOW - timedelta(hours=1)).replace("http://mp.stratuslab.eu/slterms#", "heu/")
    verdict = verify_entry(
        text.encode(), trust=world.trust, expectation=EntryExpectation(), now=NOW
    )
    assert codes(verdict.reasons) == ["message-malformed"]


def test_a_country_of_many_letters_is_read_in_silence(tmp_path: Path) -> None:
    """cryptography warns of it, on the standard error of whoever verifies. Here warnings fail."""
    key = rsa.generate_private_key(public_exponent=65537, key_size=2048)
    issuer = Authority.create(tmp_path / "ca", "Elsewhere", now=NOW)
    der = make_certificate(
        "", key, issuer, subject=x509.Name([x509.NameAttribute(NameOID.LOCALITY_NAME, "EUROPE")])
    ).public_bytes(Encoding.DER)
    # 2.5.4.7 is the locality, 2.5.4.6 the country: the builder would refuse the latter.
    odd = read_certificate(der.replace(b"\x06\x03\x55\x04\x07", b"\x06\x03\x55\x04\x06"))
    assert slash_form(odd.subject) == "/C=EUROPE"
    (tmp_path / "odd.pem").write_bytes(odd.public_bytes(Encoding.PEM))
    [again] = read_certificates(tmp_path / "odd.pem")
    assert same_name("/C=EUROPE", again.subject)
    trust = load_trust_directory(issuer.trust_directory)
    assert codes(check_chain(again, trust=trust, now=NOW)) == ["chain-untrusted"]


def test_a_ca_of_a_country_of_many_letters(openssl: OpenSsl, tmp_path: Path) -> None:
    openssl("req", "-x509", "-newkey", "rsa:2048", "-nodes", "-keyout", tmp_path / "key",
            "-out", tmp_path / "ca.pem", "-subj", "/L=EUROPE/CN=CA", "-days", "1")  # fmt: skip
    der = openssl("x509", "-in", tmp_path / "ca.pem", "-outform", "DER")
    odd = der.replace(b"\x06\x03\x55\x04\x07", b"\x06\x03\x55\x04\x06")
    (tmp_path / "ca.pem").write_bytes(odd)
    trust = load_trust_directory(tmp_path)
    now = trust.anchors[0].not_valid_before_utc
    assert check_chain(trust.anchors[0], trust=trust, now=now, crls="if-present") == ()


@pytest.mark.parametrize("content", [b"", b"Content-Type: text/plain\n\n"])
def test_nothing_well_signed_is_refused_for_a_reason(world: World, content: bytes) -> None:
    """It was refused, and nobody said why."""
    message = sign_smime(content, world.endorser.certificate, world.endorser.key)
    verdict = verify(message, trust=world.trust, expectation=Expectation(), now=NOW)
    assert not verdict.accepted
    assert codes(verdict.reasons) == ["message-malformed"]
