"""The endorser who cheats: a genuine certificate, and lists that claim more than it gives him.

And his friend at a certification authority, who certifies whatever name he asks for.
"""

from __future__ import annotations

import base64
import json
import quopri
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from cryptography import x509
from cryptography.hazmat.primitives.asymmetric import rsa
from cryptography.x509.oid import NameOID

from distrib.trust.chain import TrustMaterial, check_chain
from distrib.trust.directory import load_trust_directory
from distrib.trust.names import same_name, slash_form
from distrib.trust.policyfiles import parse_policy
from distrib.trust.testpki import Authority, Issued
from distrib.trust.verify import AuthorisedEndorser, Expectation, verify
from tests.attacks.forging import (
    attributes_for,
    forged_certificate,
    key_pair,
    name_der,
    renamed,
    shell,
    signature_part,
    signed_data,
    signer_info,
)
from tests.trust.conftest import IMAGE_ID, LIST_ID, NOW, World, codes, make_crl

JANE, CA = "/O=Experiment/CN=Jane Endorser", "/O=Experiment/CN=Experiment CA"
ORG, COMMON = "2.5.4.10", "2.5.4.3"
UTF8, PRINTABLE, T61, BMP, UNIVERSAL = 0x0C, 0x13, 0x14, 0x1E, 0x1C


def sealed(content: bytes, who: Issued, *more: x509.Certificate) -> bytes:
    """Signed by hand: our own signer would help him with nothing of this."""
    info = signer_info(who, attributes_for(content))
    return shell(content, signature_part(signed_data(info, certificates=[who.certificate, *more])))


def judge(
    world: World, message: bytes, trust: TrustMaterial | None = None, **more: Any
) -> list[str]:
    expected = Expectation(endorsers=(AuthorisedEndorser(JANE, CA),), identifier=LIST_ID, **more)
    verdict = verify(message, trust=trust or world.trust, expectation=expected, now=NOW)
    return codes(verdict.reasons)


def document(world: World) -> dict[str, Any]:
    loaded: dict[str, Any] = json.loads(world.content())
    return loaded


def image(loaded: dict[str, Any]) -> dict[str, Any]:
    found: dict[str, Any] = loaded["hv:imagelist"]["hv:images"][0]["hv:image"]
    return found


def test_what_he_signs_honestly_is_taken(world: World) -> None:
    assert judge(world, sealed(world.content(), world.endorser)) == []


# -- what is not a list to everybody


def test_a_list_that_is_one_to_old_readers_and_another_to_new_ones(world: World) -> None:
    both = document(world)
    bare = dict(both["hv:imagelist"]) | {"hv:version": "9"}
    for key in ("hv:images", "hv:version", "dc:identifier"):
        message = sealed(json.dumps(both | {key: bare[key]}).encode(), world.endorser)
        assert judge(world, message) == ["field-invalid"], key
    strange = sealed(json.dumps(both | {"hv:remark": "x"}).encode(), world.endorser)
    assert judge(world, strange) == []


def test_content_that_some_readers_decode_and_others_do_not(world: World) -> None:
    plain = world.content()
    ways = {
        b"Content-Transfer-Encoding: base64\r\n\r\n": base64.encodebytes(plain),
        b"Content-Transfer-Encoding: quoted-printable\r\n\r\n": quopri.encodestring(plain),
        # What is read here is the same list; what a mail reader shows has another size.
        b"Content-Type: text/plain\r\nContent-Transfer-Encoding: Quoted-Printable\r\n\r\n": plain,
        b'Content-Type: multipart/mixed; boundary="x"\r\n\r\n': plain,
        b"Content-Type: message/rfc822\r\n\r\n": plain,
        b"Content-Type: text/plain\r\nContent-Type: text/html\r\n\r\n": plain,
    }
    for headers, body in ways.items():
        assert judge(world, sealed(headers + body, world.endorser)) == ["message-malformed"], (
            headers
        )
    usual = b"Content-Type: text/plain\r\nContent-Transfer-Encoding: 7bit\r\n\r\n"
    assert judge(world, sealed(usual + plain, world.endorser)) == []


def test_json_that_two_readers_take_differently(world: World) -> None:
    plain = world.content()
    version, size = b'"hv:version": "1.2.0"', b'"hv:size": 67108864'
    assert version in plain
    assert size in plain
    ways = {
        "a key twice": plain.replace(version, version + b', "hv:version": "9"'),
        "a key twice, once escaped": plain.replace(version, version + b', "hv:versio\\u006e": "9"'),
        "a size that is not a number": plain.replace(size, b'"hv:size": NaN'),
        "a size beyond all floats": plain.replace(size, b'"hv:size": 1e400'),
        "a size of 5000 digits": plain.replace(size, b'"hv:size": ' + b"9" * 5000),
        "a size of 64 bits and one": plain.replace(size, b'"hv:size": 18446744073709551617'),
        "half a size": plain.replace(size, b'"hv:size": 67108864.5'),
        "a size that is true": plain.replace(size, b'"hv:size": true'),
        "a size below nothing": plain.replace(size, b'"hv:size": -67108864'),
        "half a character": plain.replace(b'"Experiment images"', b'"\\ud83d"'),
        "UTF-16": plain.decode().encode("utf-16"),
        "UTF-32": plain.decode().encode("utf-32-be"),
        "a byte order mark": b"\xef\xbb\xbf" + plain,
        "overlong UTF-8": plain.replace(b"worker.raw", b"worker\xc0\xafraw"),
        "a comment": plain + b"// and more",
        "two documents": plain + plain,
        "a NUL at the end": plain + b"\x00",
    }
    for way, content in ways.items():
        assert content != plain, way
        found = judge(world, sealed(content, world.endorser))
        assert set(found) & {"message-malformed", "field-invalid"}, way


# -- other people's images


def test_the_image_of_another_subscription_however_its_uuid_is_written(world: World) -> None:
    for spelled in (IMAGE_ID, IMAGE_ID.upper(), IMAGE_ID.title()):
        loaded = document(world)
        image(loaded)["dc:identifier"] = spelled
        message = sealed(json.dumps(loaded).encode(), world.endorser)
        for owned in (IMAGE_ID, IMAGE_ID.upper()):
            found = judge(world, message, foreign_uuids=frozenset({owned}))
            assert found == ["uuid-foreign"], (spelled, owned)


@pytest.mark.parametrize(
    "spelled",
    [
        f"{{{IMAGE_ID}}}",
        f"urn:uuid:{IMAGE_ID}",
        IMAGE_ID.replace("-", ""),
        f" {IMAGE_ID}",
        f"{IMAGE_ID}\n",
        f"{IMAGE_ID}\u200b",
        IMAGE_ID.replace("7", "\uff17"),
        IMAGE_ID.replace("a", "\u0430"),
        IMAGE_ID.replace("-", "\u2010"),
    ],
    ids=ascii,
)
def test_forms_of_a_uuid_that_would_be_another_key(world: World, spelled: str) -> None:
    loaded = document(world)
    image(loaded)["dc:identifier"] = spelled
    message = sealed(json.dumps(loaded).encode(), world.endorser)
    assert judge(world, message, foreign_uuids=frozenset({IMAGE_ID})) == ["uuid-invalid"]


def test_one_image_twice_with_its_letters_in_another_case(world: World) -> None:
    loaded = document(world)
    entries = loaded["hv:imagelist"]["hv:images"]
    again = {"hv:image": dict(image(loaded)) | {"dc:identifier": IMAGE_ID.upper()}}
    entries.append(again)
    found = judge(world, sealed(json.dumps(loaded).encode(), world.endorser))
    assert found == ["uuid-duplicate"]


def test_the_list_of_another_experiment_under_his_own_signature(world: World) -> None:
    theirs = replace(world.image_list(), identifier=LIST_ID.replace("0d", "0e"))
    assert judge(world, world.signed(theirs)) == ["identifier-mismatch"]


# -- names that his friend certifies


def certified(world: World, *names: x509.NameAttribute | set[x509.NameAttribute]) -> Issued:
    """A certificate of the experiment's own CA for a name."""
    subject = x509.Name(
        [
            x509.RelativeDistinguishedName(each if isinstance(each, set) else {each})
            for each in names
        ]
    )
    return _issued(world, subject)


def _issued(world: World, subject: x509.Name, der: bytes | None = None) -> Issued:
    key, root = key_pair(), world.experiment
    assert isinstance(root.key, rsa.RSAPrivateKey)
    certificate = forged_certificate(subject, root.certificate.subject, key, root.key)
    if der is not None:
        certificate = x509.load_der_x509_certificate(renamed(certificate, der, root.key))
    return Issued(certificate, key, Path(), Path())


def cn(value: str) -> x509.NameAttribute:
    return x509.NameAttribute(NameOID.COMMON_NAME, value)


def organisation(value: str) -> x509.NameAttribute:
    return x509.NameAttribute(NameOID.ORGANIZATION_NAME, value)


NEAR = {
    "a blank more": (organisation("Experiment"), cn("Jane  Endorser")),
    "a blank behind": (organisation("Experiment"), cn("Jane Endorser ")),
    "another case": (organisation("EXPERIMENT"), cn("jane endorser")),
    "no-break space": (organisation("Experiment"), cn("Jane\u00a0Endorser")),
    "zero width": (organisation("Experiment"), cn("Jane\u200b Endorser")),
    "Cyrillic": (organisation("Experiment"), cn("J\u0430ne Endorser")),
    "something behind a NUL": (organisation("Experiment"), cn("Jane Endorser\x00.example.org")),
    "all in the CN": (cn("x/O=Experiment/CN=Jane Endorser"),),
    "all in the O": (organisation("Experiment/CN=Jane Endorser"),),
    "all in the O, with a plus": (organisation("Experiment+CN=Jane Endorser"),),
    "an escaped letter": (organisation("Experiment"), cn("Jane \\x45ndorser")),
    "an escaped slash": (organisation("Experiment\\x2FCN=Jane Endorser"),),
    "the other way round": (cn("Jane Endorser"), organisation("Experiment")),
    "one CN more": (organisation("Experiment"), cn("Jane Endorser"), cn("1234")),
}


@pytest.mark.parametrize("near", NEAR)
def test_a_name_that_only_looks_like_the_endorsers(world: World, near: str) -> None:
    friend = certified(world, *NEAR[near])
    shown = slash_form(friend.certificate.subject)
    # Whoever authorises what he was shown authorises that one, and not Jane.
    assert same_name(shown, friend.certificate.subject)
    assert not same_name(shown, world.endorser.certificate.subject)
    assert shown != JANE
    found = judge(world, sealed(world.content(), friend))
    assert found == ["endorser-not-authorised", "signer-not-endorser"]


def test_the_letters_count_and_not_how_they_are_encoded(world: World) -> None:
    """A CA that certifies one name twice has two certificates of one person: that is its word."""
    encodings = {
        UTF8: b"Jane Endorser",
        PRINTABLE: b"Jane Endorser",
        T61: b"Jane Endorser",
        BMP: "Jane Endorser".encode("utf-16-be"),
        UNIVERSAL: "Jane Endorser".encode("utf-32-be"),
    }
    plain = world.endorser.certificate.subject
    for tag, value in encodings.items():
        der = name_der([(ORG, PRINTABLE, b"Experiment")], [(COMMON, tag, value)])
        again = _issued(world, plain, der)
        assert judge(world, sealed(world.content(), again)) == [], hex(tag)


def test_a_name_in_an_encoding_that_nobody_can_tell_is_not_read(world: World) -> None:
    """T.61 above ASCII is Latin-1 to some, Teletex to others, and nothing at all to most."""
    for tag, value in ((T61, b"J\xe4ne"), (UTF8, b"J\xe4ne"), (BMP, b"Jan"), (PRINTABLE, b"\xff")):
        der = name_der([(ORG, PRINTABLE, b"Experiment")], [(COMMON, tag, value)])
        root = world.experiment
        assert isinstance(root.key, rsa.RSAPrivateKey)
        odd = renamed(world.endorser.certificate, der, root.key)
        info = signer_info(world.endorser, attributes_for(world.content()), stated=odd)
        signature = signature_part(signed_data(info, certificates=[odd]))
        assert judge(world, shell(world.content(), signature)) == ["message-malformed"]


POLICY = """TO Issuer "/O=Experiment/CN=Experiment CA" PERMIT Subject "/O=Experiment/.*"
TO Issuer "/O=Experiment/CN=Experiment CA" DENY Subject "/O=Experiment/CN=John Other.*"
"""

DENIED = {
    "plain": (organisation("Experiment"), cn("John Other")),
    "another case": (organisation("Experiment"), cn("JOHN other")),
    "blanks more": (organisation("Experiment"), cn("John   Other")),
    "a blank before": (organisation("Experiment"), cn(" John Other")),
    "a blank behind the O": (organisation("Experiment "), cn("John Other")),
    "in one RDN with the O": ({organisation("Experiment"), cn("John Other")},),
}
OUTSIDE = {
    "the O in the CN": (cn("x/O=Experiment/CN=Jane"),),
    "a CN that begins like the O": (cn("/O=Experiment/CN=Jane"),),
    "an O that is written as bytes": (organisation("\\x45xperiment"), cn("Jane")),
    "another case of the O": (organisation("experiment"), cn("Jane")),
    "a longer O": (organisation("Experiment2"), cn("Jane")),
    "something before the O": (x509.NameAttribute(NameOID.COUNTRY_NAME, "XX"),
                               organisation("Experiment"), cn("Jane")),
}  # fmt: skip


@pytest.mark.parametrize("way", [*DENIED, *OUTSIDE])
def test_a_name_that_its_ca_may_not_give_however_it_is_spelled(world: World, way: str) -> None:
    rules = parse_policy("experiment.namespaces", POLICY.encode())
    assert not rules.fault
    trust = replace(world.trust, policies=(rules,))
    assert check_chain(world.endorser.certificate, trust=trust, now=NOW) == ()
    friend = certified(world, *(DENIED | OUTSIDE)[way])
    found = codes(check_chain(friend.certificate, trust=trust, now=NOW))
    assert found == ["namespace-not-permitted"]


# -- a second authority that the site trusts, for somebody else


@pytest.fixture(scope="module")
def rival(tmp_path_factory: pytest.TempPathFactory) -> Authority:
    return Authority.create(tmp_path_factory.mktemp("rival"), "Rival", now=NOW)


def trusting(world: World, rival: Authority) -> TrustMaterial:
    also = load_trust_directory(rival.trust_directory)
    return replace(
        world.trust, anchors=world.trust.anchors + also.anchors, crls=world.trust.crls + also.crls
    )


def test_an_authority_below_a_trusted_one_takes_the_name_of_another(
    world: World, rival: Authority
) -> None:
    """The path holds; only the name that people go by is somebody else's."""
    assert isinstance(rival.key, rsa.RSAPrivateKey)
    root, jane = world.experiment.certificate.subject, world.endorser.certificate.subject
    middle_key, leaf_key = key_pair(), key_pair()
    middle = forged_certificate(
        root, rival.certificate.subject, middle_key, rival.key, authority=True
    )
    leaf = forged_certificate(jane, root, leaf_key, middle_key)
    message = sealed(world.content(), Issued(leaf, leaf_key, Path(), Path()), middle)
    trust = trusting(world, rival).with_crls(make_crl(root, middle_key))
    assert judge(world, message, trust) == ["chain-untrusted"]


def test_a_trusted_authority_whose_name_differs_in_case_only(world: World) -> None:
    """OpenSSL overlooks case when it looks for an issuer; who is authorised is spelled exactly."""
    key, leaf_key = key_pair(), key_pair()
    shouting = x509.Name([organisation("EXPERIMENT"), cn("Experiment  ca")])
    anchor = forged_certificate(shouting, shouting, key, key, authority=True)
    jane, root = world.endorser.certificate.subject, world.experiment.certificate.subject
    leaf = forged_certificate(jane, root, leaf_key, key)
    message = sealed(world.content(), Issued(leaf, leaf_key, Path(), Path()))
    trust = TrustMaterial(anchors=(anchor,), crls=(make_crl(shouting, key),))
    assert judge(world, message, trust) == ["chain-untrusted"]
    honest = forged_certificate(jane, shouting, leaf_key, key)
    assert check_chain(honest, trust=trust, now=NOW) == ()


def test_a_namesake_certified_by_another_authority(world: World, rival: Authority) -> None:
    assert isinstance(rival.key, rsa.RSAPrivateKey)
    key = key_pair()
    jane = world.endorser.certificate.subject
    leaf = forged_certificate(jane, rival.certificate.subject, key, rival.key)
    message = sealed(world.content(), Issued(leaf, key, Path(), Path()))
    found = judge(world, message, trusting(world, rival))
    assert found == ["endorser-not-authorised", "signer-not-endorser"]
