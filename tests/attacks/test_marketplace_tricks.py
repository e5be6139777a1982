"""Tricks with XML signatures: what is signed, and what is read, must be one thing.

The attacker holds a genuine entry of the endorser; in some stories he has a certificate of his own.
"""

from __future__ import annotations

import base64
from datetime import timedelta
from pathlib import Path

import pytest
from cryptography import x509
from cryptography.hazmat.primitives import hashes, hmac
from cryptography.hazmat.primitives.asymmetric import rsa
from cryptography.hazmat.primitives.serialization import Encoding, PublicFormat

from distrib.trust.marketplace import EntryExpectation, EntryVerdict, verify_entry
from distrib.trust.verify import AuthorisedEndorser
from tests.trust.conftest import NOW, World, codes
from tests.trust.marketplace_world import entry_xml, sign_entry

DSIG = "http://www.w3.org/2000/09/xmldsig#"
KNOWN = EntryExpectation(
    endorsers=(
        AuthorisedEndorser("/O=Experiment/CN=Jane Endorser", "/O=Experiment/CN=Experiment CA"),
    )
)


def judge(world: World, content: bytes) -> EntryVerdict:
    return verify_entry(content, trust=world.trust, expectation=KNOWN, now=NOW)


def text() -> str:
    return entry_xml(NOW - timedelta(hours=1), expires=NOW + timedelta(hours=24))


@pytest.fixture(scope="module")
def genuine(world: World) -> bytes:
    key = world.endorser.key
    assert isinstance(key, rsa.RSAPrivateKey)
    return sign_entry(text(), world.endorser.certificate, key)


def signature_of(content: bytes) -> bytes:
    start, end = content.index(b"<Signature "), content.index(b"</rdf:RDF>")
    return content[start:end]


def description_of(content: bytes) -> bytes:
    start = content.index(b"<rdf:Description")
    end = content.index(b"</rdf:Description>") + len(b"</rdf:Description>")
    return content[start:end]


def pem_body(certificate: x509.Certificate) -> bytes:
    return base64.b64encode(certificate.public_bytes(Encoding.DER))


def edited(content: bytes, old: bytes, new: bytes) -> bytes:
    assert old in content
    return content.replace(old, new, 1)


def test_what_nobody_touched_is_taken(world: World, genuine: bytes) -> None:
    assert judge(world, genuine).accepted


def test_the_signed_entry_is_wrapped_away_and_another_put_in_its_place(
    world: World, genuine: bytes
) -> None:
    """The signature finds what it was made over; a careless reader finds the first entry."""
    signed, other = description_of(genuine), description_of(genuine).replace(b"worker", b"hacker")
    signature = signature_of(genuine)
    ways = {
        "beside": edited(genuine, signed, other + signed),
        "behind": edited(genuine, signed, signed + other),
        "in an Object of the signature": edited(
            genuine.replace(signed, other), b"</Signature>",
            b"<Object>" + signed + b"</Object></Signature>",
        ),
        "the other in an Object": edited(
            genuine, b"</Signature>", b"<Object>" + other + b"</Object></Signature>"
        ),
        "the other in SignedInfo": edited(
            genuine, b"</SignedInfo>", b"<Object>" + other + b"</Object></SignedInfo>"
        ),
        "the other in KeyInfo": edited(genuine, b"</KeyInfo>", other + b"</KeyInfo>"),
        "the whole document within another": (
            genuine.split(b"<rdf:Description")[0] + other + genuine + b"</rdf:RDF>"
        ),
        "the signature within the other": edited(
            edited(genuine, signature, b""), signed,
            signed + other.replace(b"</rdf:Description>", signature + b"</rdf:Description>"),
        ),
    }  # fmt: skip
    for way, content in ways.items():
        verdict = judge(world, content)
        if verdict.accepted:
            # An enveloped signature does not sign itself, and nothing in it is read.
            assert way in {"the other in an Object", "the other in KeyInfo"}
            assert verdict.require().title == "worker", way
        else:
            assert verdict.reasons, way


@pytest.mark.parametrize(
    "uri",
    [
        b"#x", b"#xpointer(/)", b"#xpointer(id('x'))", b"http://localhost:9/entry", b"file:///etc/passwd",
        b"/etc/passwd", b"%23x",
    ],
)  # fmt: skip
def test_a_reference_to_something_else(world: World, genuine: bytes, uri: bytes) -> None:
    content = edited(genuine, b'URI=""', b'URI="' + uri + b'"')
    content = edited(content, b"<rdf:Description", b'<rdf:Description Id="x"')
    verdict = judge(world, content)
    assert "signature-invalid" in codes(verdict.reasons)
    assert "whole document" in str(verdict.reasons)


def test_no_reference_and_two_of_them(world: World, genuine: bytes) -> None:
    start = genuine.index(b"<Reference")
    end = genuine.index(b"</Reference>") + len(b"</Reference>")
    reference = genuine[start:end]
    without_uri = edited(genuine, b' URI=""', b"")
    manifest = b"<Object><Manifest>" + reference + b"</Manifest></Object></Signature>"
    for content in (
        edited(genuine, reference, b""),
        edited(genuine, reference, reference * 2),
        without_uri,
        edited(edited(genuine, reference, b""), b"</Signature>", manifest),
    ):
        assert "signature-invalid" in codes(judge(world, content).reasons)


@pytest.mark.parametrize(
    "algorithm",
    [
        "http://www.w3.org/TR/1999/REC-xslt-19991116",
        "http://www.w3.org/TR/1999/REC-xpath-19991116",
        "http://www.w3.org/2002/06/xmldsig-filter2",
        f"{DSIG}base64",
        "http://www.w3.org/2001/10/xml-exc-c14n#",
        "http://www.w3.org/2000/09/xmldsig#enveloped-signature",
    ],
)
def test_a_transform_that_takes_away_what_should_be_signed(
    world: World, genuine: bytes, algorithm: str
) -> None:
    added = (
        f'<Transform Algorithm="{algorithm}"><XPath>false()</XPath></Transform></Transforms>'
    ).encode()
    for content in (
        edited(genuine, b"</Transforms>", added),
        edited(genuine, b"<Transforms>", b"<Transforms>" + added.removesuffix(b"</Transforms>")),
    ):
        assert "signature-invalid" in codes(judge(world, content).reasons)


def test_the_public_key_as_the_secret_of_an_hmac(world: World, genuine: bytes) -> None:
    """Everybody has the certificate; whoever lets the entry choose the algorithm is lost."""
    public = world.endorser.certificate.public_key()
    secrets = [
        world.endorser.certificate.public_bytes(Encoding.DER),
        world.endorser.certificate.public_bytes(Encoding.PEM),
        public.public_bytes(Encoding.PEM, PublicFormat.SubjectPublicKeyInfo),
        b"",
    ]
    info = genuine[genuine.index(b"<SignedInfo") : genuine.index(b"</SignedInfo>") + 13]
    old = genuine[genuine.index(b"<SignatureValue>") : genuine.index(b"</SignatureValue>")]
    for name, kind in (
        ("hmac-sha1", DSIG),
        ("hmac-sha256", "http://www.w3.org/2001/04/xmldsig-more#"),
    ):
        for secret in secrets:
            mac = hmac.HMAC(secret or b"\0", hashes.SHA256())
            mac.update(info)
            value = b"<SignatureValue>" + base64.b64encode(mac.finalize())
            content = edited(genuine, old, value)
            start = content.index(b"<SignatureMethod")
            end = content.index(b">", start)
            method = f'<SignatureMethod Algorithm="{kind}{name}"'.encode()
            content = content[:start] + method + content[end:]
            found = judge(world, content)
            assert codes(found.reasons) == ["signature-invalid"]
            assert "is not an algorithm" in str(found.reasons)


def test_a_key_beside_the_endorsers_certificate(world: World, genuine: bytes) -> None:
    """He signs with his own key, and lets KeyInfo name the endorser as well."""
    his = world.other_endorser
    assert isinstance(his.key, rsa.RSAPrivateKey)
    own = sign_entry(text(), his.certificate, his.key)
    jane, john = pem_body(world.endorser.certificate), pem_body(his.certificate)
    card = b"<X509Certificate>%s</X509Certificate>"
    numbers = his.certificate.public_key().public_numbers()  # type: ignore[union-attr]
    modulus = base64.b64encode(numbers.n.to_bytes(256, "big"))  # type: ignore[union-attr]
    key_value = (
        b"<KeyValue><RSAKeyValue><Modulus>" + modulus + b"</Modulus><Exponent>AQAB</Exponent>"
        b"</RSAKeyValue></KeyValue>"
    )
    ways = {
        "hers instead of his": own.replace(john, jane),
        "hers first": own.replace(card % john, card % jane + card % john),
        "hers second": own.replace(card % john, card % john + card % jane),
        "hers in X509Data of its own": own.replace(
            b"<X509Data>", b"<X509Data>" + card % jane + b"</X509Data><X509Data>", 1
        ),
        "hers, and his bare key": own.replace(john, jane).replace(
            b"<KeyInfo>", b"<KeyInfo>" + key_value
        ),
        "hers, and his key's name": own.replace(john, jane).replace(
            b"<KeyInfo>", b"<KeyInfo><KeyName>John Other</KeyName>"
        ),
        "a comment in hers": own.replace(john, jane[:40] + b"<!-- -->" + jane[40:]),
        "two KeyInfos": own.replace(
            b"<KeyInfo>", b"<KeyInfo><X509Data>" + card % jane + b"</X509Data></KeyInfo><KeyInfo>"
        ),
    }
    for way, content in ways.items():
        assert content != own, way
        found = set(codes(judge(world, content).reasons))
        assert found & {"signature-invalid", "endorser-not-authorised"}, way


def test_comments_and_character_data_between_what_is_signed(world: World, genuine: bytes) -> None:
    value = genuine[genuine.index(b"<DigestValue>") + 13 : genuine.index(b"</DigestValue>")]
    ways = {
        "a digest in two": (value, value[:9] + b"<!-- -->" + value[9:]),
        "a digest of which the first half is another": (value, b"AAAA<!-- -->" + value),
        "an algorithm behind a comment": (b"<SignatureMethod", b"<!-- --><SignatureMethod"),
        "an element in a text": (b">worker<", b"><!-- -->hacker<![CDATA[]]><"),
        "character data": (b">worker<", b"><![CDATA[hacker]]><"),
    }
    for way, (old, new) in ways.items():
        verdict = judge(world, edited(genuine, old, new))
        assert not verdict.accepted or verdict.require().title == "worker", way
    same = judge(world, edited(genuine, b">worker<", b"><![CDATA[wor]]>ker<"))
    assert same.require().title == "worker"


def test_an_entity_that_brings_a_file_of_the_head(
    world: World, genuine: bytes, tmp_path: Path
) -> None:
    secret = tmp_path / "secret"
    secret.write_text("hidden")
    inclusion = (
        f'<xi:include xmlns:xi="http://www.w3.org/2001/XInclude" href="{secret}" parse="text"/>'
    )
    declared = f'<!DOCTYPE x [<!ENTITY e SYSTEM "{secret}">]>'
    ways = {
        "an entity": declared.encode() + edited(genuine, b">worker<", b">&e;<"),
        "an entity nobody declared": edited(genuine, b">worker<", b">&e;<"),
        "an inclusion": edited(genuine, b">worker<", b">" + inclusion.encode() + b"<"),
        "a DTD from elsewhere": f'<!DOCTYPE x SYSTEM "{secret}">'.encode() + genuine,
        "a style sheet": edited(
            genuine, b"<rdf:Description", b'<?xml-stylesheet href="x"?><rdf:Description'
        ),
    }
    for way, content in ways.items():
        verdict = judge(world, content)
        assert not verdict.accepted, way
        assert "hidden" not in str(verdict), way


def test_an_entry_that_is_a_list_to_nobody(world: World, genuine: bytes) -> None:
    """An entry's signature says nothing of a list, nor a list's of an entry."""
    assert not judge(world, world.signed()).accepted
    inside = edited(genuine, b"</KeyInfo>", b"</KeyInfo>" + b"<Object>" + base64.b64encode(
        world.signed()) + b"</Object>")  # fmt: skip
    assert judge(world, inside).require().title == "worker"
