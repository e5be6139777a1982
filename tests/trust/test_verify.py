"""The verdict on a list: each rule alone, and all together."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from datetime import timedelta
from pathlib import Path

import pytest
from cryptography import x509
from cryptography.hazmat.primitives.asymmetric import rsa
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from distrib.errors import ExitStatus, TrustRefused
from distrib.trust import cms, mime
from distrib.trust.imagelist import Endorser, render_image_list
from distrib.trust.names import slash_form
from distrib.trust.signature import open_smime, sign_smime
from distrib.trust.testpki import Issued
from distrib.trust.verify import AuthorisedEndorser, Expectation, Verdict, verify

from .conftest import IMAGE_ID, LIST_ID, OpenSsl, World, codes, make_certificate

OTHER_ID = "11111111-2222-4333-8444-555555555555"


def authorised(issued: Issued) -> AuthorisedEndorser:
    certificate = issued.certificate
    return AuthorisedEndorser(slash_form(certificate.subject), slash_form(certificate.issuer))


def judge(
    world: World,
    message: bytes | None = None,
    expectation: Expectation | None = None,
    *,
    days: float = 0,
) -> Verdict:
    expected = expectation or Expectation(
        endorsers=(authorised(world.endorser),), identifier=LIST_ID
    )
    return verify(
        world.signed() if message is None else message,
        trust=world.trust,
        expectation=expected,
        now=world.now + timedelta(days=days),
    )


def test_a_good_list_is_accepted(world: World) -> None:
    verdict = judge(world)
    assert verdict.accepted
    assert verdict.reasons == ()
    assert verdict.require() == world.image_list()
    assert verdict.signer_dn == "/O=Experiment/CN=Jane Endorser"
    assert verdict.signer_ca == "/O=Experiment/CN=Experiment CA"
    assert verdict.digest_algorithm == "sha512"
    assert len(verdict.message_sha512) == 128


def test_an_expired_list(world: World) -> None:
    assert codes(judge(world, days=26.9).reasons) == []
    verdict = judge(world, days=27.1)
    assert codes(verdict.reasons) == ["list-expired"]
    assert verdict.authentic
    with pytest.raises(TrustRefused, match="list-expired") as refused:
        verdict.require()
    assert refused.value.exit_status is ExitStatus.TRUST_REFUSED
    assert refused.value.as_dict()["reasons"] == [reason.as_dict() for reason in verdict.reasons]


def test_a_list_from_the_future_and_a_clock_that_is_off_a_little(world: World) -> None:
    def created_in(seconds: int) -> bytes:
        created = world.now + timedelta(seconds=seconds)
        return world.signed(replace(world.image_list(), created=created))

    assert judge(world, created_in(290)).accepted
    verdict = judge(world, created_in(310))
    assert codes(verdict.reasons) == ["list-not-yet-valid"]
    assert "clock" in verdict.reasons[0].message


def test_the_signer_must_be_the_endorser_that_the_list_states(world: World) -> None:
    """A list copied from one endorser and signed by another, though both are authorised."""
    both = Expectation(endorsers=(authorised(world.endorser), authorised(world.other_endorser)))
    message = world.signed(world.image_list(), by=world.other_endorser)
    assert codes(judge(world, message, both).reasons) == ["signer-not-endorser"]


def test_the_stated_ca_must_be_the_signers(world: World) -> None:
    endorser = Endorser(world.image_list().endorser.dn, "/O=Experiment/CN=Another CA")
    message = world.signed(replace(world.image_list(), endorser=endorser))
    assert codes(judge(world, message).reasons) == ["signer-not-endorser"]


def test_an_endorser_of_another_subscription(world: World) -> None:
    message = world.signed(world.image_list(world.other_endorser), by=world.other_endorser)
    assert codes(judge(world, message).reasons) == ["endorser-not-authorised"]
    assert judge(world, message, Expectation()).accepted
    assert codes(judge(world, message, Expectation(endorsers=())).reasons) == [
        "endorser-not-authorised"
    ]


def test_the_same_name_under_another_ca_is_another_endorser(world: World) -> None:
    dn = authorised(world.endorser).dn
    expected = Expectation(endorsers=(AuthorisedEndorser(dn, "/O=Elsewhere/CN=CA"),))
    assert codes(judge(world, None, expected).reasons) == ["endorser-not-authorised"]


def test_authorised_names_may_be_written_as_in_rfc_4514(world: World) -> None:
    rfc = AuthorisedEndorser("CN=Jane Endorser,O=Experiment", "CN=Experiment CA,O=Experiment")
    assert judge(world, None, Expectation(endorsers=(rfc,))).accepted


def test_the_site_ca_does_not_vouch_for_experiments(world: World) -> None:
    verdict = verify(
        world.signed(), trust=world.site_trust, expectation=Expectation(), now=world.now
    )
    assert codes(verdict.reasons) == ["chain-untrusted"]


def test_another_list_in_its_place(world: World) -> None:
    expected = Expectation(identifier=OTHER_ID)
    assert codes(judge(world, None, expected).reasons) == ["identifier-mismatch"]
    assert judge(world, None, Expectation(identifier=LIST_ID.upper())).accepted


def test_versions_never_go_down(world: World) -> None:
    def after(last: str, sha512: str | None = None) -> list[str]:
        expected = Expectation(last_version=last, last_sha512=sha512)
        return codes(judge(world, None, expected).reasons)

    own = judge(world).message_sha512
    assert after("1.1.9") == []
    assert after("1.2.0", own) == []
    assert after("1.2.0", "0" * 128) == ["version-same-other-bytes"]
    assert after("1.02.0", "0" * 128) == ["version-same-other-bytes"]
    assert after("1.10.0") == ["version-down"]


def test_image_uuids_are_unique_and_nobody_elses(world: World) -> None:
    image = world.image_list().images[0]
    twice = replace(world.image_list(), images=(image, replace(image, version="2")))
    assert codes(judge(world, world.signed(twice)).reasons) == ["uuid-duplicate"]
    foreign = Expectation(foreign_uuids=frozenset({IMAGE_ID.upper()}))
    assert codes(judge(world, None, foreign).reasons) == ["uuid-foreign"]


def test_every_reason_is_told(world: World) -> None:
    image = world.image_list().images[0]
    bad = replace(world.image_list(), images=(image, image), version="1")
    message = world.signed(bad, by=world.other_endorser).replace(b"worker.raw", b"hacker.raw")
    expected = Expectation(
        endorsers=(authorised(world.endorser),),
        identifier=OTHER_ID,
        last_version="2",
        foreign_uuids=frozenset({IMAGE_ID}),
    )
    assert codes(judge(world, message, expected, days=400).reasons) == [
        "certificate-expired",
        "crl-expired",
        "endorser-not-authorised",
        "identifier-mismatch",
        "list-expired",
        "signature-invalid",
        "signer-not-endorser",
        "uuid-duplicate",
        "uuid-foreign",
        "version-down",
    ]


def test_signed_nonsense_is_refused_for_what_it_is(world: World) -> None:
    message = sign_smime(b"hello\n", world.endorser.certificate, world.endorser.key)
    verdict = judge(world, message)
    assert codes(verdict.reasons) == ["message-malformed"]
    assert verdict.image_list is None
    assert not verdict.accepted
    assert not verdict.authentic


def content_span(message: bytes) -> tuple[int, int]:
    content = mime.split_signed(message).content
    start = message.index(content)
    return start, start + len(content)


def test_one_flipped_byte_anywhere_in_the_list(world: World) -> None:
    message = world.signed()
    start, end = content_span(message)
    for position in range(start, end):
        flipped = bytearray(message)
        flipped[position] ^= 0x01
        opened = open_smime(bytes(flipped))
        # A line end may lose its CR on the way; what comes out is what was signed.
        assert not opened.verified or opened.content == mime.crlf(world.content())


Mutation = Callable[[bytes, int, bytes], bytes]


def replaced(message: bytes, at: int, what: bytes) -> bytes:
    return message[:at] + what + message[at + len(what) :]


def inserted(message: bytes, at: int, what: bytes) -> bytes:
    return message[:at] + what + message[at:]


def deleted(message: bytes, at: int, what: bytes) -> bytes:
    return message[:at] + message[at + len(what) :]


def doubled(message: bytes, at: int, what: bytes) -> bytes:
    line = message[:at].rfind(b"\n") + 1
    end = message.find(b"\n", at) + 1 or len(message)
    return message[:end] + message[line:end] + message[end:]


@settings(max_examples=400, deadline=None, suppress_health_check=list(HealthCheck))
@given(
    mutation=st.sampled_from([replaced, inserted, deleted, doubled]),
    where=st.floats(0, 1, exclude_max=True),
    what=st.binary(min_size=1, max_size=8)
    | st.sampled_from([b"\n", b"\r\n", b"\n\n", b"--", b" ", b'"', b";", b"=", b"\x00"]),
)
def test_no_mutated_message_is_accepted_with_other_content(
    world: World, mutation: Mutation, where: float, what: bytes
) -> None:
    message = world.signed()
    verdict = judge(world, mutation(message, int(where * len(message)), what))
    assert verdict.accepted == (not verdict.reasons)
    if verdict.accepted:
        assert verdict.document == mime.crlf(world.content())
        assert verdict.require() == world.image_list()


def test_a_list_is_frozen(world: World) -> None:
    with pytest.raises(AttributeError):
        judge(world).require().version = "9"  # type: ignore[misc]


def test_a_signer_whose_certificate_may_not_sign(
    world: World, openssl: OpenSsl, tmp_path: Path
) -> None:
    """Other tools sign with it all the same."""
    key = rsa.generate_private_key(public_exponent=65537, key_size=2048)
    usage = x509.KeyUsage(
        digital_signature=False, key_encipherment=True, content_commitment=False,
        data_encipherment=False, key_agreement=False, key_cert_sign=False, crl_sign=False,
        encipher_only=False, decipher_only=False,
    )  # fmt: skip
    host = make_certificate("Host", key, world.experiment, extensions=(usage,))
    issued = Issued(host, key, tmp_path / "host.pem", tmp_path / "host.key")
    content = render_image_list(world.image_list(issued))
    der = cms.make_cms(mime.crlf(content), host, key)
    message = mime.join_signed(mime.crlf(content), der, boundary="part", micalg="sha-512")
    assert codes(judge(world, message, Expectation()).reasons) == ["key-usage"]
    assert openssl("cms", "-verify", "-noverify", stdin=message) == mime.crlf(content)
