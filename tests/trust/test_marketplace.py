"""Marketplace entries: what the tests sign themselves, rule by rule, and forgeries of it."""

from __future__ import annotations

from datetime import timedelta
from pathlib import Path

import pytest
from cryptography import x509
from cryptography.hazmat.primitives.asymmetric import rsa
from hypothesis import given
from hypothesis import strategies as st

from distrib.errors import TrustRefused
from distrib.trust.chain import TrustMaterial
from distrib.trust.entry import identifier_of, parse_entry, sha1_of
from distrib.trust.marketplace import (
    EndorserByEmail,
    EntryExpectation,
    EntryVerdict,
    verify_entry,
)
from distrib.trust.verify import AuthorisedEndorser
from distrib.trust.xmltext import load_xml

from .conftest import NOW, Intermediate, World, codes, make_certificate
from .marketplace_world import EMAIL, certificate_with_email, entry_xml, sign_entry

HOUR = timedelta(hours=1)
ANYBODY = EntryExpectation()


def entry(**changes: object) -> str:
    return entry_xml(NOW - HOUR, expires=NOW + 24 * HOUR, **changes)  # type: ignore[arg-type]


def signed(world: World, text: str | None = None, **how: object) -> bytes:
    key = world.endorser.key
    assert isinstance(key, rsa.RSAPrivateKey)
    return sign_entry(text or entry(), world.endorser.certificate, key, **how)  # type: ignore[arg-type]


def judge(
    world: World,
    content: bytes,
    expectation: EntryExpectation = ANYBODY,
    *,
    later: timedelta = timedelta(),
    trust: TrustMaterial | None = None,
) -> EntryVerdict:
    return verify_entry(
        content, trust=trust or world.trust, expectation=expectation, now=NOW + later
    )


def found(
    world: World,
    content: bytes,
    expectation: EntryExpectation = ANYBODY,
    *,
    later: timedelta = timedelta(),
) -> list[str]:
    return codes(judge(world, content, expectation, later=later).reasons)


def test_a_good_entry_is_accepted(world: World) -> None:
    verdict = judge(world, signed(world))
    assert verdict.reasons == ()
    read = verdict.require()
    assert read.title == "worker"
    assert read.locations == ("https://images.example.org/worker.raw",)
    assert sorted(read.checksums) == ["SHA-1", "SHA-512"]
    assert verdict.signer_dn == "/O=Experiment/CN=Jane Endorser"
    assert verdict.digest_algorithm == "sha256"


def test_sha_1_is_refused_unless_the_site_allows_that_endorser(world: World) -> None:
    old = signed(world, digest="sha1")
    assert found(world, old) == ["signature-sha1"]
    for name in ("/O=Experiment/CN=Jane Endorser", "CN=Jane Endorser,O=Experiment"):
        assert found(world, old, EntryExpectation(sha1_endorsers=frozenset({name}))) == []
    for name in ("/O=Experiment/CN=John", EMAIL, ""):
        allowed = EntryExpectation(sha1_endorsers=frozenset({name}))
        assert found(world, old, allowed) == ["signature-sha1"]


@pytest.fixture(scope="module")
def mail(world: World) -> tuple[x509.Certificate, rsa.RSAPrivateKey]:
    key = rsa.generate_private_key(public_exponent=65537, key_size=2048)
    return certificate_with_email(key, world.experiment), key


def test_an_e_mail_address_counts_only_where_the_certificate_bears_it(
    world: World, mail: tuple[x509.Certificate, rsa.RSAPrivateKey]
) -> None:
    """Anybody can write an address into an entry."""
    good = sign_entry(entry(subject="CN=Jane Mail"), *mail, digest="sha1")
    by_mail = EntryExpectation(
        endorsers=(EndorserByEmail(EMAIL.upper()),), sha1_endorsers=frozenset({EMAIL})
    )
    assert found(world, good, by_mail) == []
    other = sign_entry(entry(subject="CN=Jane Mail", email="boss@example.org"), *mail)
    assert found(world, other) == ["signer-not-endorser"]
    claimed = signed(world, digest="sha1")
    assert found(world, claimed, by_mail) == ["endorser-not-authorised", "signature-sha1"]


def test_the_stated_endorser_must_be_the_signer(world: World) -> None:
    for change in ({"subject": "CN=John,O=Experiment"}, {"issuer": "CN=Other CA"}):
        assert found(world, signed(world, entry(**change))) == ["signer-not-endorser"]


def test_the_endorser_must_be_authorised(world: World) -> None:
    jane = AuthorisedEndorser("CN=Jane Endorser,O=Experiment", "/O=Experiment/CN=Experiment CA")
    john = AuthorisedEndorser("/CN=John", "/O=Experiment/CN=Experiment CA")
    assert found(world, signed(world), EntryExpectation(endorsers=(john, jane))) == []
    refused = ["endorser-not-authorised"]
    assert found(world, signed(world), EntryExpectation(endorsers=(john,))) == refused
    assert found(world, signed(world), EntryExpectation(endorsers=())) == refused


def test_dates(world: World) -> None:
    assert found(world, signed(world), later=25 * HOUR) == ["list-expired"]
    assert judge(world, signed(world), later=25 * HOUR).authentic
    future = signed(world, entry_xml(NOW + HOUR))
    assert found(world, future) == ["list-not-yet-valid"]
    assert found(world, signed(world, entry_xml(NOW + HOUR / 20))) == []


def test_a_deprecated_entry_is_refused_and_says_why(world: World) -> None:
    for text, told in (("root has no password", "root has no password"), ("", "no reason given")):
        more = f"<slterms:deprecated>{text}</slterms:deprecated>"
        verdict = judge(world, signed(world, entry(more=more)))
        assert codes(verdict.reasons) == ["deprecated"]
        assert told in verdict.reasons[0].message


def test_the_line_in_time_never_goes_back(world: World) -> None:
    content = signed(world)
    own = judge(world, content).message_sha512

    def after(last: timedelta, sha512: str | None = None) -> list[str]:
        expected = EntryExpectation(last_created=NOW - HOUR + last, last_sha512=sha512)
        return found(world, content, expected)

    assert after(-HOUR) == []
    assert after(timedelta(), own) == []
    assert after(timedelta(), "0" * 128) == ["version-same-other-bytes"]
    assert after(HOUR) == ["version-down"]


def test_another_image(world: World) -> None:
    expected = EntryExpectation(identifier=identifier_of("0" * 40))
    assert found(world, signed(world), expected) == ["identifier-mismatch"]


def test_an_entry_without_a_strong_checksum(world: World) -> None:
    text = entry()
    start = text.index("<slreq:checksum", text.index("SHA-1"))
    end = text.index("</slreq:checksum>", start) + len("</slreq:checksum>")
    assert found(world, signed(world, text[:start] + text[end:])) == ["digest-weak"]


@pytest.mark.parametrize(
    ("old", "new"),
    [
        (b"worker.raw", b"hacker.raw"),
        (b"<slreq:bytes>9<", b"<slreq:bytes>8<"),
        (b">worker<", b">worker <"),
        (b"#rsa-sha256", b"#rsa-sha512"),
        (b'xml:base="http://mp', b'xml:base="http://mq'),
        (b'URI=""', b'URI="#x"'),
        (b"#enveloped-signature", b"#base64"),
        (b"<Transforms>", b"<Transforms><Transform Algorithm='http://www.w3.org/TR/1999/REC-xslt-19991116'/>"),
        (b"<SignatureValue>", b"<SignatureValue>AAAA"),
        (b"<X509Certificate>", b"<X509Certificate>AAAA"),
        (b"<KeyInfo>", b"<KeyInfoo>"),
        (b"</DigestValue>", b"</DigestValue><DigestValue>AAAA</DigestValue>"),
        (b"#WithComments", b"#WithSomething"),
    ],
)  # fmt: skip
def test_a_signed_entry_that_was_touched(world: World, old: bytes, new: bytes) -> None:
    content = signed(world)
    assert old in content
    touched = content.replace(old, new).replace(b"</KeyInfo>", b"</KeyInfoo>" if b"oo>" in new else b"</KeyInfo>")  # noqa: E501  # fmt: skip
    verdict = judge(world, touched)
    assert not verdict.accepted
    assert "signature-invalid" in codes(verdict.reasons)


def test_md5_is_weak_and_no_key_alone_is_believed(world: World) -> None:
    content = signed(world)
    assert found(world, content.replace(b"more#rsa-sha256", b"more#rsa-md5")) == ["digest-weak"]
    without = content.replace(b"X509Data>", b"KeyValue>")
    assert found(world, without) == ["signature-invalid"]


def test_a_second_signature(world: World) -> None:
    content = signed(world)
    start, end = content.index(b"<Signature "), content.index(b"</rdf:RDF>")
    twice = content[:end] + content[start:end] + content[end:]
    assert found(world, twice) == ["signer-count"]
    assert found(world, content[:start] + content[end:]) == ["signer-count"]


def test_a_signature_wrapped_deeper_covers_nothing(world: World) -> None:
    content = signed(world)
    start, end = content.index(b"<Signature "), content.index(b"</rdf:RDF>")
    signature = content[start:end]
    moved = content.replace(signature, b"").replace(
        b"</rdf:Description>", signature + b"</rdf:Description>"
    )
    assert "signature-invalid" in found(world, moved)


def test_comments_are_not_signed_and_hide_nothing(world: World) -> None:
    """A comment that parts a value in two must not shorten what is read of it."""
    plain, content = judge(world, signed(world)).require(), signed(world)
    parted = content.replace(b"<slreq:bytes>9<", b"<slreq:bytes><!-- x -->9<!-- y --><")
    parted = parted.replace(b"worker.raw<", b"wor<!-- z -->ker.raw<")
    assert judge(world, parted).require() == plain


def test_the_chain_is_checked_as_for_lists(world: World, intermediate: Intermediate) -> None:
    content = sign_entry(
        entry(subject="CN=Jane Below", issuer="CN=Middle CA"),
        intermediate.leaf,
        intermediate.leaf_key,
        extra=(intermediate.certificate,),
    )
    assert found(world, content) == ["crl-missing"]
    trust = world.trust.with_crls(intermediate.crl())
    assert judge(world, content, trust=trust).accepted
    revoked = world.trust.with_crls(intermediate.crl(intermediate.leaf))
    assert codes(judge(world, content, trust=revoked).reasons) == ["certificate-revoked"]
    assert codes(judge(world, content, trust=world.site_trust).reasons) == ["chain-untrusted"]


def test_a_certificate_that_may_not_sign(world: World) -> None:
    usage = x509.KeyUsage(
        digital_signature=False, key_encipherment=True, content_commitment=False,
        data_encipherment=False, key_agreement=False, key_cert_sign=False, crl_sign=False,
        encipher_only=False, decipher_only=False,
    )  # fmt: skip
    key = rsa.generate_private_key(public_exponent=65537, key_size=2048)
    host = make_certificate("Host", key, world.experiment, extensions=(usage,))
    assert found(world, sign_entry(entry(subject="CN=Host"), host, key)) == ["key-usage"]


@pytest.mark.parametrize(
    ("old", "new", "named"),
    [
        ("<slreq:bytes>9</slreq:bytes>", "", "slreq:bytes is missing"),
        ("<slreq:bytes>9<", "<slreq:bytes>-9<", "slreq:bytes is not a size"),
        ("<slreq:bytes>9<", f"<slreq:bytes>{'9' * 100_000}<", "slreq:bytes has"),
        (">SHA-1<", ">SHA-3<", "slreq:checksum is of 'SHA-3'"),
        (">SHA-512<", ">SHA-1<", "slreq:checksum"),
        ("dcterms:created>", "dcterms:creation>", "dcterms:created is missing"),
        ("slreq:email>", "slreq:mail>", "slreq:email is missing"),
        ("<slreq:issuer>CN=Experiment CA,O=Experiment", "<slreq:issuer>", "slreq:issuer is empty"),
        (' rdf:about="', ' rdf:ID="', "rdf:about is missing"),
        ("<dcterms:identifier>", "<dcterms:identifier>A</dcterms:identifier><dcterms:identifier>",
         "dcterms:identifier occurs 2 times"),
        ("<dcterms:title>worker", "<dcterms:title><b>worker</b>", "dcterms:title is not a text"),
        ("worker<", "wor\u0085ker<", "dcterms:title has control characters"),
    ],
)  # fmt: skip
def test_a_field_that_is_wrong_is_named(world: World, old: str, new: str, named: str) -> None:
    text = entry()
    assert old in text
    verdict = judge(world, signed(world, text.replace(old, new)))
    assert verdict.entry is None
    assert set(codes(verdict.reasons)) <= {"field-missing", "field-invalid"}
    assert any(named in reason.message for reason in verdict.reasons), verdict.reasons
    with pytest.raises(TrustRefused):
        verdict.require()


@pytest.mark.parametrize(
    ("content", "code"),
    [
        (b"", "message-malformed"),
        (b"<", "message-malformed"),
        (b"<rdf/>", "message-malformed"),
        ('<?xml version="1.0" encoding="UTF-16"?><a/>'.encode("utf-16"), "message-malformed"),
        (b'<?xml version="1.0" encoding="latin-1"?><a/>', "message-malformed"),
        (b"<!DOCTYPE a><a/>", "message-malformed"),
        (b"<a>&lol;</a>", "message-malformed"),
        (b"<a><?php x?></a>", "message-malformed"),
        (b"<a>" * 40 + b"</a>" * 40, "message-malformed"),
        (b"<a>" + b"<b/>" * 20_000 + b"</a>", "message-malformed"),
        (
            b"<a " + b" ".join(b'xmlns:a%d="u"' % n for n in range(5000)) + b"/>",
            "message-malformed",
        ),
        (b"<a>" + b" " * 300_000 + b"</a>", "too-large"),
    ],
)
def test_xml_that_is_not_read(world: World, content: bytes, code: str) -> None:
    assert code in found(world, content)


@given(st.integers(0, 2**160 - 1))
def test_identifiers_are_the_sha_1_in_another_base(value: int) -> None:
    sha1 = f"{value:040x}"
    assert sha1_of(identifier_of(sha1)) == sha1
    assert len(identifier_of(sha1)) == 27


def test_the_fields_own_identifiers() -> None:
    assert identifier_of("c319bbd5afc0a22ba3eaed0507c39383ec28eeff") == (
        "MMZu9WvwKIro-rtBQfDk4PsKO7_"
    )
    assert identifier_of("1104f3e30c030f8b93f220b04131032dddf51f21") == (
        "BEE8-MMAw-Lk_IgsEExAy3d9R8h"
    )
    for wrong in ("", "A" * 26, "-" + "A" * 26, "A" * 26 + "/"):
        with pytest.raises(ValueError, match=r"digits|bits"):
            sha1_of(wrong)


@given(st.binary(max_size=300) | st.text(max_size=300).map(str.encode))
def test_no_bytes_crash_the_reader(world: World, content: bytes) -> None:
    assert not judge(world, content).accepted


def test_the_example_of_the_page_is_well_formed() -> None:
    page = (Path(__file__).parents[2] / "docs" / "formats" / "marketplace.md").read_text("utf-8")
    example = page.partition("```xml\n")[2].partition("```")[0]
    parsed, faults = parse_entry(load_xml(example.encode()))
    assert faults == ()
    assert parsed is not None
    assert parsed.size_bytes == 9
