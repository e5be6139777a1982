"""What openssl signs is opened, what is signed here openssl verifies, and forgeries are named."""

from __future__ import annotations

import base64
import subprocess
from pathlib import Path

import pytest
from cryptography import x509
from cryptography.hazmat.primitives.asymmetric import rsa
from cryptography.hazmat.primitives.serialization import (
    Encoding,
    NoEncryption,
    PrivateFormat,
)

from distrib.errors import ConfigInvalid
from distrib.trust import cms, mime
from distrib.trust.signature import open_smime, sign_smime
from distrib.trust.testpki import Issued

from .conftest import NOW, OpenSsl, World, codes, make_certificate


def signing(issued: Issued) -> list[object]:
    return ["-signer", issued.certificate_path, "-inkey", issued.key_path]


@pytest.mark.parametrize("digest", ["sha256", "sha384", "sha512"])
def test_openssl_verifies_what_was_signed_here(world: World, openssl: OpenSsl, digest: str) -> None:
    endorser = world.endorser
    message = sign_smime(world.content(), endorser.certificate, endorser.key, digest=digest)
    content = openssl(
        "cms", "-verify", "-CApath", world.experiment.trust_directory, "-crl_check_all",
        "-attime", int(NOW.timestamp()), "-purpose", "any", stdin=message,
    )  # fmt: skip
    assert content == mime.crlf(world.content())
    opened = open_smime(message)
    assert opened.verified
    assert opened.content == content
    assert opened.digest_algorithm == digest
    assert opened.signer == endorser.certificate


def test_an_ecdsa_key_signs_too(world: World, openssl: OpenSsl) -> None:
    node = world.node
    message = sign_smime(world.content(), node.certificate, node.key)
    assert open_smime(message).verified
    assert openssl("cms", "-verify", "-noverify", stdin=message) == mime.crlf(world.content())


@pytest.mark.parametrize(
    "options",
    [
        ["-md", "sha256"],
        ["-md", "sha512", "-binary"],
        ["-md", "sha384", "-keyid"],
        ["-md", "sha256", "-keyopt", "rsa_padding_mode:pss"],
        ["-md", "sha512", "-keyopt", "rsa_padding_mode:pss", "-keyopt", "rsa_pss_saltlen:20"],
        ["-md", "sha256", "-text"],
        ["-md", "sha256", "-crlfeol"],
        ["-md", "sha256", "-nosmimecap"],
    ],
    ids=" ".join,
)
def test_what_openssl_signs_is_opened(
    world: World, openssl: OpenSsl, tmp_path: Path, options: list[str]
) -> None:
    signer = world.endorser
    if "-keyid" in options:
        signer = with_key_identifier(world, tmp_path)
    content = mime.crlf(world.content())
    message = openssl("cms", "-sign", *signing(signer), *options, stdin=content)
    opened = open_smime(message)
    assert opened.reasons == ()
    assert opened.document == content


def with_key_identifier(world: World, directory: Path) -> Issued:
    key = rsa.generate_private_key(public_exponent=65537, key_size=2048)
    identifier = x509.SubjectKeyIdentifier.from_public_key(key.public_key())
    certificate = make_certificate("By Key", key, world.experiment, extensions=(identifier,))
    issued = Issued(certificate, key, directory / "bykey.pem", directory / "bykey.key")
    issued.certificate_path.write_bytes(certificate.public_bytes(Encoding.PEM))
    issued.key_path.write_bytes(
        key.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, NoEncryption())
    )
    return issued


def test_ecdsa_by_openssl_is_opened(world: World, openssl: OpenSsl) -> None:
    message = openssl("cms", "-sign", "-md", "sha256", *signing(world.node), stdin=b"{}\r\n")
    assert open_smime(message).verified


def test_a_transport_that_made_lf_of_crlf_changes_nothing(world: World) -> None:
    message = world.signed()
    opened = open_smime(message.replace(b"\r\n", b"\n"))
    assert opened.verified
    assert opened.content == open_smime(message).content


def test_a_transport_that_made_crlf_of_lf_changes_nothing(world: World) -> None:
    opened = open_smime(mime.crlf(world.signed()))
    assert opened.verified
    assert opened.content == mime.crlf(world.content())


def test_sha1_is_refused_as_weak_and_not_as_a_mismatch(world: World, openssl: OpenSsl) -> None:
    message = openssl("cms", "-sign", "-md", "sha1", *signing(world.endorser), stdin=b"{}\r\n")
    assert codes(open_smime(message).reasons) == ["digest-weak"]
    forged = message.replace(b"{}", b"[]")
    assert codes(open_smime(forged).reasons) == ["digest-weak", "signature-invalid"]


def test_two_signers_are_refused(world: World, openssl: OpenSsl) -> None:
    message = openssl(
        "cms", "-sign", "-md", "sha256", *signing(world.endorser),
        *signing(world.other_endorser), stdin=world.content(),
    )  # fmt: skip
    assert codes(open_smime(message).reasons) == ["signer-count"]


def test_no_signer_is_refused(world: World) -> None:
    empty = cms.pack_cms([], (world.endorser.certificate,))
    message = mime.join_signed(world.content(), empty, boundary="b", micalg="sha-256")
    assert codes(open_smime(message).reasons) == ["signer-count"]


def test_a_signature_without_attributes_is_refused(world: World, openssl: OpenSsl) -> None:
    message = openssl(
        "cms", "-sign", "-md", "sha256", "-noattr", *signing(world.endorser), stdin=b"{}\r\n"
    )
    assert codes(open_smime(message).reasons) == ["message-malformed"]


def test_content_inside_the_signature_is_refused(world: World, openssl: OpenSsl) -> None:
    inside = openssl(
        "cms", "-sign", "-md", "sha256", "-nodetach", "-outform", "DER",
        *signing(world.endorser), stdin=b"{}\r\n",
    )  # fmt: skip
    message = mime.join_signed(b"{}\r\n", inside, boundary="b", micalg="sha-256")
    assert codes(open_smime(message).reasons) == ["message-malformed"]


def test_a_signature_without_the_signers_certificate_is_refused(
    world: World, openssl: OpenSsl
) -> None:
    message = openssl(
        "cms", "-sign", "-md", "sha256", "-nocerts", *signing(world.endorser), stdin=b"{}\r\n"
    )
    assert codes(open_smime(message).reasons) == ["message-malformed"]


def test_another_key_under_the_endorsers_name_is_refused(world: World) -> None:
    """The certificate is the endorser's, the signature is another's."""
    der = cms.make_cms(world.content(), world.endorser.certificate, world.other_endorser.key)
    message = mime.join_signed(world.content(), der, boundary="b", micalg="sha-512")
    assert codes(open_smime(message).reasons) == ["signature-invalid"]


def test_a_signature_moved_to_another_list_is_refused(world: World) -> None:
    message = world.signed()
    assert codes(open_smime(message.replace(b"worker.raw", b"hacker.raw")).reasons) == [
        "signature-invalid"
    ]


def test_attributes_signed_for_a_digest_that_is_not_there(world: World) -> None:
    """A valid signature over attributes without message-digest says nothing about the content."""
    endorser = world.endorser
    signer = cms.make_signer(world.content(), endorser.certificate, endorser.key, digest="sha256")
    kept = [entry for entry in signer["signed_attrs"] if entry["type"].native == "content_type"]
    signer["signed_attrs"] = kept
    der = cms.pack_cms([signer], (endorser.certificate,))
    message = mime.join_signed(world.content(), der, boundary="b", micalg="sha-256")
    assert codes(open_smime(message).reasons) == ["message-malformed"]


@pytest.mark.parametrize(
    ("old", "new"),
    [
        (b"multipart/signed", b"multipart/mixed"),
        (b'protocol="application/pkcs7-signature"', b'protocol="application/pgp-signature"'),
        (b"\nContent-Type: application/pkcs7-signature", b"\nContent-Type: text/plain"),
        (b"Content-Transfer-Encoding: base64", b"Content-Transfer-Encoding: 8bit"),
        (b"MIME-Version: 1.0\n", b"MIME-Version: 1.0\nContent-Type: text/plain\n"),
        (b"--\n", b"\n"),
        (b'boundary="', b'boundary="x" ; boundary="'),
    ],
)
def test_a_message_of_another_shape_is_refused(world: World, old: bytes, new: bytes) -> None:
    message = world.signed()
    assert old in message
    assert codes(open_smime(message.replace(old, new)).reasons) == ["message-malformed"]


def test_a_third_part_is_refused(world: World) -> None:
    message = world.signed()
    boundary = b"--" + message.split(b'boundary="')[1].split(b'"')[0]
    content = message.split(boundary)[1]
    doubled = message.replace(boundary + content, boundary + content + boundary + content, 1)
    assert codes(open_smime(doubled).reasons) == ["message-malformed"]


def test_bytes_after_the_signature_are_refused(world: World) -> None:
    endorser = world.endorser
    der = cms.make_cms(b"{}", endorser.certificate, endorser.key) + b"\x00"
    message = mime.join_signed(b"{}", der, boundary="b", micalg="sha-512")
    assert codes(open_smime(message).reasons) == ["message-malformed"]


def test_the_x_pkcs7_types_of_2010_are_read(world: World) -> None:
    message = world.signed().replace(b"application/pkcs7", b"application/x-pkcs7")
    assert open_smime(message).verified


@pytest.mark.parametrize("junk", [b"", b"\n\n", b"{}", b"\x30\x80" * 50, b"A: b\n\nc"])
def test_junk_is_refused(junk: bytes) -> None:
    assert codes(open_smime(junk).reasons) == ["message-malformed"]


@pytest.mark.parametrize("der", [b"", b"\x30\x80" * 5000, b"\xff" * 100, b"\x30\x03\x02\x01\x01"])
def test_a_signature_that_is_no_asn1_is_refused(der: bytes) -> None:
    message = mime.join_signed(b"{}", der, boundary="b", micalg="sha-512")
    assert codes(open_smime(message).reasons) == ["message-malformed"]


def test_too_large_is_refused_unread() -> None:
    assert codes(open_smime(b"x" * (13 * 1024 * 1024)).reasons) == ["too-large"]


def test_a_certificate_that_may_not_sign_does_not(world: World) -> None:
    key = rsa.generate_private_key(public_exponent=65537, key_size=2048)
    only_encipher = x509.KeyUsage(
        digital_signature=False, key_encipherment=True, content_commitment=False,
        data_encipherment=False, key_agreement=False, key_cert_sign=False, crl_sign=False,
        encipher_only=False, decipher_only=False,
    )  # fmt: skip
    certificate = make_certificate("Host", key, world.experiment, extensions=(only_encipher,))
    with pytest.raises(ConfigInvalid, match="keyUsage"):
        sign_smime(b"{}", certificate, key)


def test_key_and_certificate_must_belong_together(world: World) -> None:
    with pytest.raises(ConfigInvalid, match="does not belong"):
        sign_smime(b"{}", world.endorser.certificate, world.other_endorser.key)
    with pytest.raises(ConfigInvalid, match="weak"):
        sign_smime(b"{}", world.endorser.certificate, world.endorser.key, digest="sha1")


def test_signing_twice_gives_the_same_message(world: World) -> None:
    assert world.signed() == world.signed()


def test_openssl_refuses_what_is_refused_here(world: World, openssl: OpenSsl) -> None:
    forged = world.signed().replace(b"worker.raw", b"hacker.raw")
    with pytest.raises(subprocess.CalledProcessError):
        openssl("cms", "-verify", "-noverify", stdin=forged)


def test_the_boundary_may_stand_inside_a_json_text(world: World) -> None:
    """Only a whole line is a boundary."""
    endorser = world.endorser
    content = b'{"text": "--b and --b--"}'
    der = cms.make_cms(content, endorser.certificate, endorser.key)
    message = mime.join_signed(content, der, boundary="b", micalg="sha-512")
    assert open_smime(message).content == content
    assert base64.b64encode(der)[:40] in message.replace(b"\n", b"")
