"""Lists that others wrote (tests/data/imagelists/README.md says what must be said of them)."""

from __future__ import annotations

from datetime import UTC, datetime
from pathlib import Path

import pytest

from distrib.trust.directory import load_trust_directory
from distrib.trust.imagelist import parse_image_list
from distrib.trust.signature import open_smime
from distrib.trust.verify import Expectation, Verdict, verify

from .conftest import OpenSsl, codes

DATA = Path(__file__).parents[1] / "data" / "imagelists"
HEPIX = (DATA / "hepix-2011-sha1-expired-cert.smime").read_bytes()
APPDB = (DATA / "appdb-style-sha256.smime").read_bytes()
NOW = datetime(2026, 3, 1, 12, 0, tzinfo=UTC)


def judge(message: bytes, now: datetime = NOW) -> Verdict:
    trust = load_trust_directory(DATA / "trust")
    return verify(message, trust=trust, expectation=Expectation(), now=now, crls="if-present")


def test_a_genuine_list_of_2011_is_refused_for_each_of_its_faults() -> None:
    verdict = judge(HEPIX)
    assert codes(verdict.reasons) == [
        "certificate-expired",
        "chain-untrusted",
        "digest-weak",
        "list-expired",
    ]
    assert verdict.signer_dn == "/C=DE/O=GermanGrid/OU=DESY/CN=Owen Synge"
    assert verdict.signer_ca == "/C=DE/O=GermanGrid/CN=GridKa-CA"


def test_in_its_own_day_only_its_means_and_its_unknown_ca_speak_against_it() -> None:
    day = datetime(2011, 3, 20, tzinfo=UTC)
    assert codes(judge(HEPIX, day).reasons) == [
        "certificate-expired",
        "chain-untrusted",
        "digest-weak",
    ]


def test_its_json_is_well_formed() -> None:
    image_list = parse_image_list(open_smime(HEPIX).document)
    assert image_list.identifier == "4e186b44-2c64-40ea-97d5-e9e5c0bce059"
    assert image_list.images[0].size_bytes == 2147483648
    assert image_list.endorser.email == "owen.synge@desy.de"


def test_the_appdb_lists_signature_and_chain_hold_but_its_endorser_is_not_its_signer() -> None:
    opened = open_smime(APPDB)
    assert opened.verified
    assert opened.digest_algorithm == "sha256"
    verdict = judge(APPDB)
    assert codes(verdict.reasons) == ["signer-not-endorser"]
    assert verdict.image_list is not None
    assert not verdict.accepted


def test_appdbs_sizes_are_texts_and_its_own_keys_are_kept() -> None:
    opened = open_smime(APPDB)
    assert b'"hv:size": "121243136"' in opened.document
    image = parse_image_list(opened.document).images[0]
    assert image.size_bytes == 121243136
    assert image.expires == datetime(2499, 12, 31, 22, 0, tzinfo=UTC)
    assert str(image.extra["ad:mpuri"]).startswith("https://appdb.")


@pytest.mark.parametrize("message", [HEPIX, APPDB], ids=["hepix", "appdb"])
def test_the_content_is_what_openssl_takes_for_signed(message: bytes, openssl: OpenSsl) -> None:
    assert openssl("cms", "-verify", "-noverify", stdin=message) == open_smime(message).content
