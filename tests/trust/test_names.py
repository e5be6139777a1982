"""Distinguished names in their several spellings."""

from __future__ import annotations

import pytest
from cryptography import x509
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.serialization import Encoding
from cryptography.x509.oid import NameOID
from hypothesis import given
from hypothesis import strategies as st

from distrib.trust.names import DistinguishedName, same_name, slash_form

from .conftest import NOW, OpenSsl

GRID = x509.Name(
    [
        x509.NameAttribute(NameOID.DOMAIN_COMPONENT, "org"),
        x509.NameAttribute(NameOID.ORGANIZATION_NAME, "Grid, Inc."),
        x509.NameAttribute(NameOID.COMMON_NAME, "host/wn1.example.org"),
        x509.NameAttribute(NameOID.EMAIL_ADDRESS, "a@example.org"),
        x509.NameAttribute(NameOID.USER_ID, "7"),
    ]
)


@pytest.mark.parametrize(
    "text",
    [
        "/DC=org/O=Grid, Inc./CN=host/wn1.example.org/emailAddress=a@example.org/UID=7",
        "/dc=org/O=Grid, Inc./CN=host/wn1.example.org/E=a@example.org/userId=7",
        "/DC=org/O=Grid, Inc./CN=host/wn1.example.org/Email=a@example.org/USERID=7",
        r"/DC=org/O=Grid, Inc./CN=host\/wn1.example.org/emailAddress=a@example.org/UID=7",
        "/DC=org/2.5.4.10=Grid, Inc./CN=host/wn1.example.org/Email=a@example.org/UID=7",
        r"UID=7,E=a@example.org,CN=host/wn1.example.org,O=Grid\, Inc.,DC=org",
        r"UID=7, emailAddress=a@example.org, CN=host/wn1.example.org, O=Grid\2C Inc., DC=org",
    ],
)
def test_every_spelling_is_the_same_name(text: str) -> None:
    assert same_name(text, GRID)
    assert DistinguishedName.parse(text).slash() == slash_form(GRID)


@pytest.mark.parametrize(
    "text",
    [
        "/DC=org/O=Grid, Inc./CN=host/wn1.example.org/emailAddress=a@example.org",
        "/DC=org/O=Grid, Inc./CN=host/wn2.example.org/emailAddress=a@example.org/UID=7",
        "/O=Grid, Inc./DC=org/CN=host/wn1.example.org/emailAddress=a@example.org/UID=7",
        "/DC=org/O=grid, inc./CN=host/wn1.example.org/emailAddress=a@example.org/UID=7",
        "",
        "/",
        "nonsense",
        "/CN",
        "FOO=bar",
        "x" * 5000,
    ],
)
def test_anything_else_is_another_name(text: str) -> None:
    assert not same_name(text, GRID)


def test_a_value_that_reads_like_attributes_is_not_taken_for_them() -> None:
    """A CA that lets people choose their CN must not let them choose their O."""
    hostile = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, "x/O=Grid/CN=Jane")])
    assert not same_name("/CN=x/O=Grid/CN=Jane", hostile)
    assert same_name(slash_form(hostile), hostile)


@given(st.lists(st.tuples(st.sampled_from(["CN", "O", "DC", "emailAddress"]), st.text(min_size=1)), min_size=1, max_size=4))  # noqa: E501  # fmt: skip
def test_forms_are_read_back(pairs: list[tuple[str, str]]) -> None:
    name = DistinguishedName(tuple((kind, value.strip() or "x") for kind, value in pairs))
    assert DistinguishedName.parse(name.rfc4514()) == name
    assert DistinguishedName.parse(name.slash()) == name
    exact = DistinguishedName(tuple(pairs))
    assert DistinguishedName.parse(exact.slash()) == exact


@given(st.text())
def test_no_text_crashes_the_reader(text: str) -> None:
    same_name(text, GRID)


@pytest.mark.parametrize(
    "name", [GRID, x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, "Zoë")])]
)
def test_the_slash_form_is_openssls(name: x509.Name, openssl: OpenSsl) -> None:
    key = ec.generate_private_key(ec.SECP256R1())
    certificate = (
        x509.CertificateBuilder().subject_name(name).issuer_name(name)
        .public_key(key.public_key()).serial_number(1)
        .not_valid_before(NOW).not_valid_after(NOW)
        .sign(key, hashes.SHA256())
    )  # fmt: skip
    printed = openssl(
        "x509", "-noout", "-subject", "-nameopt", "compat",
        stdin=certificate.public_bytes(Encoding.PEM),
    )  # fmt: skip
    shown = printed.decode().strip().removeprefix("subject=")
    assert same_name(shown, name)
    assert shown.replace("\\/", "/") == slash_form(name)
