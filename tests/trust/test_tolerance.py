"""What lists of the field do differently, and is taken all the same; and what is kept of it."""

from __future__ import annotations

import json
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from typing import Any

import pytest
from cryptography import x509
from cryptography.hazmat.primitives.asymmetric import rsa
from cryptography.x509.oid import NameOID
from hypothesis import given
from hypothesis import strategies as st

from distrib.trust import mime
from distrib.trust.imagelist import Endorser, parse_image_list, render_image_list
from distrib.trust.jsontext import JsonRefused, load_json, render_json
from distrib.trust.signature import sign_smime
from distrib.trust.verify import Expectation, verify

from .conftest import NOW, World, codes, make_certificate


def edited(world: World, **changes: object) -> dict[str, Any]:
    """The plain list as a dictionary, with other keys."""
    document: dict[str, Any] = json.loads(world.content())["hv:imagelist"]
    document.update({key.replace("__", ":"): value for key, value in changes.items()})
    return document


def found(world: World, document: object, *, now: datetime = NOW) -> list[str]:
    content = json.dumps(document).encode()
    message = sign_smime(content, world.endorser.certificate, world.endorser.key)
    verdict = verify(message, trust=world.trust, expectation=Expectation(), now=now)
    return codes(verdict.reasons)


def test_the_older_bare_form_of_the_root(world: World) -> None:
    assert found(world, edited(world)) == []
    assert found(world, {"hv:imagelist": edited(world)}) == []


@pytest.mark.parametrize(
    ("dn", "ca"),
    [
        ("/O=Experiment/CN=Jane Endorser", "/O=Experiment/CN=Experiment CA"),
        ("CN=Jane Endorser,O=Experiment", "CN=Experiment CA,O=Experiment"),
        ("/o=Experiment/commonName=Jane Endorser", "CN=Experiment CA, O=Experiment"),
    ],
)
def test_the_endorser_may_be_stated_in_slash_form_or_rfc_4514(
    world: World, dn: str, ca: str
) -> None:
    stated = {"hv:x509": {"hv:dn": dn, "hv:ca": ca}}
    assert found(world, edited(world, hv__endorser=stated)) == []


@pytest.mark.parametrize("kind", ["emailAddress", "Email", "E", "email"])
def test_a_signer_with_an_address_and_a_slash_in_the_name(world: World, kind: str) -> None:
    key = rsa.generate_private_key(public_exponent=65537, key_size=2048)
    name = x509.Name(
        [
            x509.NameAttribute(NameOID.COMMON_NAME, "robot/lists.example.org"),
            x509.NameAttribute(NameOID.EMAIL_ADDRESS, "a@example.org"),
        ]
    )
    robot = make_certificate("", key, world.experiment, subject=name)
    endorser = Endorser(
        f"/CN=robot/lists.example.org/{kind}=a@example.org", "/O=Experiment/CN=Experiment CA"
    )
    content = render_image_list(replace(world.image_list(), endorser=endorser))
    verdict = verify(
        sign_smime(content, robot, key), trust=world.trust, expectation=Expectation(), now=NOW
    )
    assert codes(verdict.reasons) == []


def test_the_clock_may_be_off_by_five_minutes_and_by_no_more(world: World) -> None:
    """Said of ``dc:date:created`` alone: what has expired has expired."""
    ahead = NOW + timedelta(seconds=299)
    assert found(world, edited(world, dc__date__created=f"{ahead:%Y-%m-%dT%H:%M:%SZ}")) == []
    ahead += timedelta(seconds=2)
    late = edited(world, dc__date__created=f"{ahead:%Y-%m-%dT%H:%M:%SZ}")
    assert found(world, late) == ["list-not-yet-valid"]
    over = edited(world, dc__date__expires=f"{NOW - timedelta(seconds=1):%Y-%m-%dT%H:%M:%SZ}")
    assert found(world, over) == ["list-expired"]


def test_no_expiry_is_written_as_2499(world: World) -> None:
    forever = edited(world, dc__date__expires="2499-12-31T22:00:00Z")
    assert found(world, forever) == []
    assert found(world, forever, now=datetime(2026, 6, 1, tzinfo=UTC)) == ["crl-expired"]


def test_numbers_may_be_texts_and_versions_numbers(world: World) -> None:
    document = edited(world, hv__version=7)
    image = document["hv:images"][0]["hv:image"]
    image.update({"hv:size": "67108864", "hv:version": 3})
    parsed = parse_image_list(json.dumps(document).encode())
    assert (parsed.version, parsed.images[0].version) == ("7", "3")
    assert parsed.images[0].size_bytes == 67108864


@pytest.mark.parametrize(
    "size", [0, -1, 1.5, "1.5", "", "1e3", "9" * 100, 2**63, True, None, "\u0661"]
)
def test_other_sizes_are_refused(world: World, size: object) -> None:
    document = edited(world)
    document["hv:images"][0]["hv:image"]["hv:size"] = size
    assert set(found(world, document)) <= {"field-invalid", "field-missing"}
    assert found(world, document)


@pytest.mark.parametrize("digits", [4000, 100_000])
def test_numbers_beyond_all_use_are_refused(world: World, digits: int) -> None:
    """Python refuses to convert numbers of more than 4300 digits, by an exception."""
    number = "9" * digits
    for key in ("hv:version", "dc:identifier", "ad:swid"):
        document = json.dumps(edited(world) | {key: "NUMBER"}).replace('"NUMBER"', number)
        message = sign_smime(document.encode(), world.endorser.certificate, world.endorser.key)
        verdict = verify(message, trust=world.trust, expectation=Expectation(), now=NOW)
        if digits > 4300:
            assert codes(verdict.reasons) == ["message-malformed"]
        elif key != "ad:swid":
            assert verdict.reasons


UNKNOWN: dict[str, Any] = {
    "ad:vo": "some.vo",
    "ad:num_of_images": "1",
    "ad:user:fullname": "Zo\u00eb \U0001f600",
    "x:numbers": [0, -1, 1.5, 1e300, 10**30, 0.1],
    "x:nested": {"a": {"b": [None, True, False, "", {}]}},
    "": "an empty key",
}


def test_keys_that_nobody_knows_are_kept_everywhere(world: World) -> None:
    document = {"hv:imagelist": edited(world) | UNKNOWN, **UNKNOWN}
    listed = document["hv:imagelist"]
    listed["hv:endorser"].update(UNKNOWN)
    listed["hv:endorser"]["hv:x509"].update(UNKNOWN)
    listed["hv:images"][0].update(UNKNOWN)
    listed["hv:images"][0]["hv:image"].update(UNKNOWN)
    parsed = parse_image_list(json.dumps(document).encode())
    rendered = render_image_list(parsed)
    assert json.loads(rendered) == document
    assert parse_image_list(rendered) == parsed


JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False, allow_infinity=False)
    | st.text(st.characters(exclude_categories=["Cs"])),
    lambda inner: st.lists(inner, max_size=3)
    | st.dictionaries(st.text(st.characters(exclude_categories=["Cs"])), inner, max_size=3),
    max_leaves=10,
)  # fmt: skip


@given(JSON)
def test_json_is_written_and_read_back(value: Any) -> None:
    assert load_json(render_json(value)) == value


@given(st.integers(1, 60))
def test_depth_is_counted_exactly(depth: int) -> None:
    content = b"[" * depth + b'"]]]]{{{{\\""' + b"]" * depth
    if depth <= 32:
        assert load_json(content) is not None
    else:
        with pytest.raises(JsonRefused, match="deeper"):
            load_json(content)


# A carriage return at the end is half of a line break: with the next byte it is the boundary's.
@given(st.binary(max_size=200).map(lambda data: data.rstrip(b"\r")), st.binary(max_size=200))
def test_a_message_is_taken_apart_as_it_was_put_together(content: bytes, der: bytes) -> None:
    message = mime.join_signed(content, der, boundary="-----part", micalg="sha-512")
    parts = mime.split_signed(message)
    assert (parts.content, parts.signature) == (content, der)


@given(st.binary(max_size=300))
def test_no_bytes_crash_the_splitter(message: bytes) -> None:
    with pytest.raises(mime.MimeInvalid):
        mime.split_signed(message)
