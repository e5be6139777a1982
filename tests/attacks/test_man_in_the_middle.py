"""The man in the middle: he holds genuine messages and no key, and puts them together anew.

Whatever he does to a message, it is refused, or it says what its endorser signed.
"""

from __future__ import annotations

import base64
import hashlib
import quopri
from dataclasses import replace

import pytest

from distrib.trust import mime
from distrib.trust.signature import open_smime
from distrib.trust.verify import AuthorisedEndorser, Expectation, Verdict, verify
from tests.attacks.forging import (
    BOUNDARY,
    attribute,
    attributes_for,
    shell,
    signature_part,
    signed_data,
    signer_info,
)
from tests.trust.conftest import LIST_ID, NOW, World, codes

LINE = f"--{BOUNDARY}".encode()


def judge(world: World, message: bytes) -> Verdict:
    """As a site does that lets the endorser sign this list."""
    known = AuthorisedEndorser("/O=Experiment/CN=Jane Endorser", "/O=Experiment/CN=Experiment CA")
    expected = Expectation(endorsers=(known,), identifier=LIST_ID)
    return verify(message, trust=world.trust, expectation=expected, now=NOW)


@pytest.fixture(scope="module")
def content(world: World) -> bytes:
    return mime.crlf(world.content())


@pytest.fixture(scope="module")
def der(world: World, content: bytes) -> bytes:
    """A genuine signature of the endorser."""
    info = signer_info(world.endorser, attributes_for(content))
    return signed_data(info, certificates=[world.endorser.certificate])


@pytest.fixture(scope="module")
def other(content: bytes) -> bytes:
    """What he would like to be taken for the list."""
    return content.replace(b"worker.raw", b"hacker.raw")


def test_what_is_made_in_this_workshop_would_be_taken_if_it_were_genuine(
    world: World, content: bytes, der: bytes
) -> None:
    assert judge(world, shell(content, signature_part(der))).accepted


def test_the_content_of_one_list_with_the_signature_of_another(
    world: World, other: bytes, der: bytes
) -> None:
    assert codes(judge(world, shell(other, signature_part(der))).reasons) == ["signature-invalid"]


def test_the_signers_of_two_lists_in_one_signature(
    world: World, content: bytes, other: bytes
) -> None:
    infos = [signer_info(world.endorser, attributes_for(each)) for each in (content, other)]
    for order in (infos, infos[::-1]):
        both = signed_data(*order, certificates=[world.endorser.certificate])
        for said in (content, other):
            refused = judge(world, shell(said, signature_part(both)))
            assert codes(refused.reasons) == ["signer-count"]


def test_the_attributes_of_one_list_under_the_signature_of_another(
    world: World, content: bytes, other: bytes
) -> None:
    info = signer_info(world.endorser, attributes_for(content))
    info["signed_attrs"] = attributes_for(other)
    der = signed_data(info, certificates=[world.endorser.certificate])
    refused = judge(world, shell(other, signature_part(der)))
    assert codes(refused.reasons) == ["signature-invalid"]


def test_signed_attributes_served_as_the_content_that_was_signed(
    world: World, content: bytes
) -> None:
    """RFC 5652's weakness: a signature over attributes is one over their bytes as content."""
    genuine = signer_info(world.endorser, attributes_for(content))
    attributes = b"\x31" + genuine["signed_attrs"].dump()[1:]
    bare = signer_info(world.endorser, None, content=attributes)
    assert bare["signature"].native == genuine["signature"].native
    der = signed_data(bare, certificates=[world.endorser.certificate])
    refused = judge(world, shell(attributes, signature_part(der)))
    assert "message-malformed" in codes(refused.reasons)
    assert not refused.accepted


def test_attributes_that_leave_a_way_out(world: World, content: bytes, other: bytes) -> None:
    """Each is well signed; no two readers must disagree about what it says."""
    right, wrong = (hashlib.sha256(each).digest() for each in (content, other))
    plain, digest = attribute("content_type", "data"), attribute("message_digest", right)
    ways = {
        "another type": [attribute("content_type", "signed_data"), digest],
        "no type": [digest],
        "no digest": [plain],
        "two digests": [plain, digest, attribute("message_digest", wrong)],
        "two digests in one": [plain, attribute("message_digest", right, wrong)],
        "two types": [plain, attribute("content_type", "signed_data"), digest],
        "nothing": [],
    }
    for way, attributes in ways.items():
        info = signer_info(world.endorser, attributes)
        der = signed_data(info, certificates=[world.endorser.certificate])
        refused = judge(world, shell(content, signature_part(der)))
        assert codes(refused.reasons) == ["message-malformed"], way


def test_a_digest_of_another_kind_than_is_stated(world: World, content: bytes) -> None:
    sha1 = attributes_for(content, "sha1")
    right = attributes_for(content)
    md5 = attributes_for(content, "md5")
    jane = world.endorser
    right = attributes_for(content)
    md5 = attributes_for(content, "md5")
    jane = world.endorser
    cases = [
        (signer_info(jane, sha1, digest="sha256"), "signature-invalid"),
        (signer_info(jane, sha1, digest="sha256", signed_with="sha1"), "signature-invalid"),
        (signer_info(jane, right, digest="sha256", signed_with="sha1"), "signature-invalid"),
        (signer_info(jane, sha1, digest="sha1"), "digest-weak"),
        (signer_info(jane, md5, digest="md5"), "digest-weak"),
    ]
    for info, code in cases:
        der = signed_data(info, certificates=[world.endorser.certificate])
        assert code in codes(judge(world, shell(content, signature_part(der))).reasons)


def test_a_signature_over_something_else_than_plain_data(world: World, content: bytes) -> None:
    info = signer_info(world.endorser, attributes_for(content))
    der = signed_data(info, certificates=[world.endorser.certificate], over="enveloped_data")
    refused = judge(world, shell(content, signature_part(der)))
    assert codes(refused.reasons) == ["message-malformed"]


def test_tricks_with_the_shell_never_change_what_is_read(
    world: World, content: bytes, other: bytes, der: bytes
) -> None:
    sealed = signature_part(der)
    nested = (
        b'Content-Type: multipart/mixed; boundary="in"\r\n\r\n--in\r\n\r\n'
        + other + b"\r\n--in--\r\n"
    )  # fmt: skip
    plain_type = b"Content-Type: application/json\r\n\r\n"
    encoded = b"Content-Transfer-Encoding: base64\r\n\r\n" + base64.encodebytes(other)
    printable = b"Content-Transfer-Encoding: quoted-printable\r\n\r\n" + quopri.encodestring(other)
    inner = f'Content-Type: multipart/signed; boundary="{BOUNDARY}"\r\n'.encode()
    ways = {
        "another part before": shell(other, content, sealed),
        "another part between": shell(content, other, sealed),
        "another part behind": shell(content, sealed, other),
        "the content twice": shell(content, content, sealed),
        "two signatures": shell(content, sealed, sealed),
        "the parts turned round": shell(sealed, content),
        "a part within the part": shell(nested, sealed),
        "headers for the content": shell(plain_type + content, sealed),
        "a boundary in the content": shell(content + b"\r\n" + LINE + b"\r\n" + other, sealed),
        "an end in the content": shell(other + b"\r\n" + LINE + b"--\r\n" + content, sealed),
        "base64 of another": shell(encoded, sealed),
        "quoted-printable of another": shell(printable, sealed),
        "a list in the preamble": shell(content, sealed, preamble=other + b"\r\n"),
        "a part in the preamble": shell(content, sealed, preamble=LINE + b"\r\n" + other + b"\r\n"),
        "a list behind the end": shell(content, sealed, epilogue=other),
        "a part behind the end": shell(content, sealed, epilogue=LINE + b"\r\n" + other),
        "another message behind": shell(content, sealed, epilogue=shell(other, sealed)),
        "another message before": shell(other, sealed) + shell(content, sealed),
        "two content types": shell(content, sealed, more_headers=plain_type[:-2]),
        "two boundaries": shell(content, sealed, content_type=(
            'multipart/signed; protocol="application/pkcs7-signature"; '
            f'boundary="x"; boundary="{BOUNDARY}"'
        )),
        "a type that is none": shell(content, sealed, content_type="multipart/signed"),
        "a boundary of nothing": shell(content, sealed, content_type=(
            'multipart/signed; protocol="application/pkcs7-signature"; boundary=""'
        )),
        "a header in a header": shell(content, sealed, more_headers=b"X: y\r\n\t" + inner),
        "encoding of the whole": shell(
            content, sealed, more_headers=b"Content-Transfer-Encoding: base64\r\n"
        ),
        "no line before the parts": shell(content, sealed).replace(b"\r\n\r\n--", b"\r\n--", 1),
        "bare CR": shell(content, sealed).replace(b"\r\n", b"\r"),
        "blanks behind the boundary": shell(content, sealed).replace(LINE, LINE + b" \t"),
        "LF": shell(content, sealed).replace(b"\r\n", b"\n"),
        "CR CR LF": shell(content, sealed).replace(b"\r\n", b"\r\r\n"),
        "NUL": shell(content, sealed).replace(b"worker", b"wor\x00ker"),
    }  # fmt: skip
    taken = set()
    for way, message in ways.items():
        verdict = judge(world, message)
        if verdict.accepted:
            assert verdict.document == content, way
            taken.add(way)
        else:
            assert verdict.reasons, way
    # These leave alone what was signed: who only reads what was signed may take them.
    assert taken <= {
        "a list in the preamble",
        "a list behind the end",
        "another message behind",
        "a header in a header",
        "encoding of the whole",
        "blanks behind the boundary",
        "LF",
    }


def test_a_message_whose_unsigned_parts_were_touched_does_not_pass_for_a_new_list(
    world: World, content: bytes, der: bytes
) -> None:
    """A site that has the list holds the bytes that it has, and says that others came."""
    genuine = shell(content, signature_part(der))
    seen = judge(world, genuine)
    assert seen.image_list is not None
    expected = Expectation(
        last_version=seen.image_list.version, last_sha512=seen.message_sha512, identifier=LIST_ID
    )
    touched = shell(content, signature_part(der), epilogue=b"more\r\n")
    verdict = verify(touched, trust=world.trust, expectation=expected, now=NOW)
    assert codes(verdict.reasons) == ["version-same-other-bytes"]


def test_an_older_list_is_not_newer_for_being_spelled_so(world: World) -> None:
    def after(last: str, version: str) -> list[str]:
        message = world.signed(replace(world.image_list(), version=version))
        expected = Expectation(last_version=last, last_sha512="0" * 128)
        return codes(verify(message, trust=world.trust, expectation=expected, now=NOW).reasons)

    for version in ("1.9", "1.09", "1,9", "1-9", "1/9", "01.9.99", "1", "0"):
        assert after("1.10", version) == ["version-down"], version
    for version in ("1.10", "1.010", "01.10", "1,10", "1-10"):
        assert after("1.10", version) == ["version-same-other-bytes"], version


def test_certificates_that_were_added_to_a_message_vouch_for_nothing(
    world: World, content: bytes
) -> None:
    info = signer_info(world.other_endorser, attributes_for(content))
    crowd = [
        world.endorser.certificate,
        world.experiment.certificate,
        world.site.certificate,
        world.other_endorser.certificate,
    ]
    refused = judge(world, shell(content, signature_part(signed_data(info, certificates=crowd))))
    assert codes(refused.reasons) == ["endorser-not-authorised", "signer-not-endorser"]


def test_a_signature_that_points_to_the_endorsers_certificate_is_still_another_keys(
    world: World, content: bytes
) -> None:
    info = signer_info(
        world.other_endorser, attributes_for(content), stated=world.endorser.certificate
    )
    der = signed_data(info, certificates=[world.endorser.certificate])
    assert open_smime(shell(content, signature_part(der))).signer == world.endorser.certificate
    refused = judge(world, shell(content, signature_part(der)))
    assert codes(refused.reasons) == ["signature-invalid"]
