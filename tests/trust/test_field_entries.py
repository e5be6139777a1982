"""Marketplace entries that others wrote (tests/data/marketplace/README.md)."""

from __future__ import annotations

from datetime import UTC, datetime
from pathlib import Path

import pytest

from distrib.trust.directory import load_trust_directory
from distrib.trust.marketplace import EntryExpectation, EntryVerdict, verify_entry
from distrib.trust.xmldsig import open_signed
from distrib.trust.xmltext import load_xml

DATA = Path(__file__).parents[1] / "data"
ENTRIES = DATA / "marketplace"
NOW = datetime(2026, 3, 1, 12, 0, tzinfo=UTC)

EXPECTED = {
    "valid-minimal": {"signer-count", "digest-weak"},
    "valid-minimal-leading-zero-sha1": {"signer-count", "digest-weak"},
    "valid-full-signature": {
        "signature-sha1", "chain-untrusted", "certificate-expired", "digest-weak", "list-expired",
        "deprecated",
    },
    "valid-ca-signed": {
        "signature-sha1", "chain-untrusted", "certificate-expired", "digest-weak", "list-expired",
    },
    "partial-multiple-signatures": {"signer-count", "list-expired", "deprecated", "digest-weak"},
    "autogen-endorsement-done": {"signer-count", "field-missing"},
    "invalid-bad-about-id": {"signer-count", "field-invalid"},
    "invalid-inconsistent-checksum": {"signer-count", "field-invalid"},
    "invalid-no-endorser": {"signer-count", "field-missing"},
    "invalid-valid-date-1": {"signer-count", "field-invalid"},
}  # fmt: skip
NAMED = {
    "invalid-bad-about-id": "rdf:about",
    "invalid-inconsistent-checksum": "slreq:checksum",
    "invalid-no-endorser": "slreq:endorser",
    "invalid-valid-date-1": "dcterms:valid",
}


def judge(name: str, expectation: EntryExpectation | None = None) -> EntryVerdict:
    return verify_entry(
        (ENTRIES / f"{name}.xml").read_bytes(),
        trust=load_trust_directory(DATA / "imagelists" / "trust"),
        expectation=expectation or EntryExpectation(),
        now=NOW,
    )


def test_every_file_is_judged() -> None:
    assert {path.stem for path in ENTRIES.glob("*.xml")} == set(EXPECTED)


@pytest.mark.parametrize("name", EXPECTED)
def test_what_is_said_of_it(name: str) -> None:
    verdict = judge(name)
    assert {reason.code.value for reason in verdict.reasons} == EXPECTED[name]
    assert not verdict.accepted


@pytest.mark.parametrize("name", [name for name in EXPECTED if name.startswith("valid-")])
def test_valid_ones_are_well_formed(name: str) -> None:
    entry = judge(name).entry
    assert entry is not None
    assert entry.endorser.email.endswith("@example.org")


@pytest.mark.parametrize("name", NAMED)
def test_invalid_ones_are_refused_with_the_field_named(name: str) -> None:
    told = [r.message for r in judge(name).reasons if r.code.value.startswith("field-")]
    assert len(told) == 1
    assert NAMED[name] in told[0]


@pytest.mark.parametrize("name", ["valid-full-signature", "valid-ca-signed"])
def test_signed_ones_verify_by_digest_and_signature(name: str) -> None:
    """Their SignedInfo inherits namespaces and xml:base from the root."""
    content = (ENTRIES / f"{name}.xml").read_bytes()
    opened = open_signed(load_xml(content))
    assert opened.reasons == ()
    assert opened.sha1
    for old, new in ((b"ttylinux", b"ttylinuy"), (b'http://mp.stratuslab.eu/"', b'http://x/"')):
        touched = open_signed(load_xml(content.replace(old, new)))
        assert [r.code.value for r in touched.reasons] == ["signature-invalid"]


def test_leave_to_sign_with_sha_1_is_leave_for_nothing_else() -> None:
    allowed = EntryExpectation(sha1_endorsers=frozenset({"jane.tester@example.org"}))
    verdict = judge("valid-full-signature", allowed)
    said = {reason.code.value for reason in verdict.reasons}
    assert said == EXPECTED["valid-full-signature"] - {"signature-sha1"}


def test_what_a_full_entry_says() -> None:
    entry = judge("valid-full-signature").entry
    assert entry is not None
    assert (entry.title, entry.os, entry.arch) == ("linux-with-my-apps", "ttylinux", "i486")
    assert entry.deprecated == "security issue with app"
    extra = dict(entry.extra)
    assert extra["{http://example.org/}other-info"] == "additional metadata"
    assert extra["slterms:icmp"] == "8"


def test_a_leading_zero_too_many_is_the_same_checksum() -> None:
    one, other = judge("valid-minimal").entry, judge("valid-minimal-leading-zero-sha1").entry
    assert one is not None
    assert other is not None
    assert one.checksums == other.checksums
