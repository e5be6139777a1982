"""What ``distrib list sign`` makes, held against vmcatcher's rules as others implemented them.

Nothing of distrib's reader is used: the ``openssl`` command verifies and names the signer, and the
rules (hepix-virtualisation: vmcatcher, vmcatcher_subscribe/msgcheck.py; hepixvmitrust,
vmitrustlib.py; vmcaster, README.md) are written out here.
"""

from __future__ import annotations

import json
import re
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner
from cryptography import x509
from cryptography.hazmat.primitives.asymmetric import rsa
from cryptography.hazmat.primitives.serialization import Encoding, NoEncryption, PrivateFormat

from distrib.cli.lists import lists
from distrib.errors import ConfigInvalid
from distrib.trust.endorse import stamp_list
from distrib.trust.testpki import Authority, Role

from .conftest import IMAGE_ID, LIST_ID, NOW, SHA512, OpenSsl, World, make_certificate

LIST_FIELDS = {
    "dc:date:created", "dc:date:expires", "dc:description", "dc:identifier", "dc:source",
    "dc:title", "hv:uri", "hv:version", "hv:endorser", "hv:images",
}  # fmt: skip
ENDORSER_FIELDS = {"dc:creator", "hv:ca", "hv:dn", "hv:email"}
IMAGE_FIELDS = {
    "dc:description", "dc:identifier", "dc:title", "hv:hypervisor", "hv:size", "hv:uri",
    "hv:version", "sl:arch", "sl:checksum:sha512", "sl:comments", "sl:os", "sl:osversion",
}  # fmt: skip
DRAFT: dict[str, Any] = {
    "dc:identifier": LIST_ID,
    "hv:endorser": {"hv:x509": {"hv:dn": "/CN=old"}, "ad:beside": 1},
    "hv:images": [
        {
            "hv:image": {
                "dc:identifier": IMAGE_ID,
                "dc:title": "worker",
                "hv:version": "1",
                "hv:uri": "https://images.example.org/worker.raw",
                "hv:size": 67108864,
                "sl:checksum:sha512": SHA512,
                "ad:mpuri": "https://appdb.example.org/1",
            },
            "ad:note": "kept",
        }
    ],
}


def vmcatcher(signed: Path, trust: Path, openssl: OpenSsl, *, subscription: str) -> dict[str, Any]:
    """The list, if vmcatcher would take it; the failed rule as AssertionError."""
    certificate = signed.with_suffix(".signer")
    content = openssl(
        "cms", "-verify", "-CApath", trust, "-crl_check_all", "-purpose", "any",
        "-in", signed, "-signer", certificate,
    )  # fmt: skip
    assert certificate.read_text().count("BEGIN CERTIFICATE") == 1, "exactly one signer"
    names = openssl("x509", "-noout", "-subject", "-issuer", "-nameopt", "compat", "-in", certificate)  # noqa: E501  # fmt: skip
    subject, issuer = (line.partition("=")[2].strip() for line in names.decode().splitlines())
    document: dict[str, Any] = json.loads(content)
    listed = document["hv:imagelist"]
    assert set(listed) >= LIST_FIELDS
    endorser = listed["hv:endorser"]["hv:x509"]
    assert set(endorser) >= ENDORSER_FIELDS
    assert (endorser["hv:dn"], endorser["hv:ca"]) == (subject, issuer), "error 12"
    assert listed["dc:identifier"] == subscription, "error 31"
    created, expires = (
        datetime.strptime(listed[key], "%Y-%m-%dT%H:%M:%SZ").replace(tzinfo=UTC)
        for key in ("dc:date:created", "dc:date:expires")
    )
    assert created <= datetime.now(UTC), "error 33"
    assert expires > datetime.now(UTC), "error 34"
    for entry in listed["hv:images"]:
        image = entry["hv:image"]
        assert set(image) >= IMAGE_FIELDS
        assert int(image["hv:size"]) > 0
        assert re.fullmatch("[0-9a-f]{128}", image["sl:checksum:sha512"])
    pretty = json.dumps(document, sort_keys=True, indent=4)
    assert content.decode().replace("\r\n", "\n").rstrip("\n") == pretty
    return listed


@pytest.fixture
def authority(tmp_path: Path) -> Authority:
    return Authority.create(tmp_path / "ca", "Experiment", now=datetime.now(UTC))


def sign(draft: Path, authority: Authority, *more: str) -> Path:
    issued = authority.issue(Role.ENDORSER, "Jane Endorser", now=datetime.now(UTC))
    output = draft.with_suffix(".signed")
    arguments = ["sign", draft, "--cert", issued.certificate_path, "--key", issued.key_path]
    done = CliRunner().invoke(lists, [*map(str, arguments), "-o", str(output), *more])
    assert done.exit_code == 0, (done.output, done.exception)
    return output


@pytest.mark.parametrize("digest", ["sha512", "sha256"])
def test_vmcatcher_takes_what_is_signed_here(
    tmp_path: Path, authority: Authority, openssl: OpenSsl, digest: str
) -> None:
    draft = tmp_path / "list.json"
    draft.write_text(json.dumps({"hv:imagelist": DRAFT, "beside": [1, {"a": None}]}))
    previous = ""
    for version in ("0.0.0", "0.0.1", "0.0.2"):
        signed = sign(draft, authority, "--bump", "--digest", digest)
        listed = vmcatcher(signed, authority.trust_directory, openssl, subscription=LIST_ID)
        assert listed["hv:version"] == version
        assert listed["dc:date:created"] >= previous
        previous = listed["dc:date:created"]
    span = [
        datetime.strptime(listed[key], "%Y-%m-%dT%H:%M:%SZ")
        for key in ("dc:date:created", "dc:date:expires")
    ]
    assert span[1] - span[0] == timedelta(days=28)
    # What distrib does not know goes through.
    assert listed["hv:endorser"]["ad:beside"] == 1
    assert listed["hv:images"][0]["ad:note"] == "kept"
    assert listed["hv:images"][0]["hv:image"]["ad:mpuri"] == "https://appdb.example.org/1"
    assert json.loads(draft.read_text())["beside"] == [1, {"a": None}]


def test_the_lifetime_is_the_endorsers_to_set(
    tmp_path: Path, authority: Authority, openssl: OpenSsl
) -> None:
    draft = tmp_path / "list.json"
    draft.write_text(json.dumps(DRAFT | {"hv:version": "7"}))
    signed = sign(draft, authority, "--days", "3")
    listed = vmcatcher(signed, authority.trust_directory, openssl, subscription=LIST_ID)
    assert listed["hv:version"] == "7"
    created, expires = listed["dc:date:created"], listed["dc:date:expires"]
    form = "%Y-%m-%dT%H:%M:%SZ"
    days = datetime.strptime(expires, form) - datetime.strptime(created, form)
    assert days == timedelta(days=3)


def test_this_reading_of_the_rules_can_refuse(
    tmp_path: Path, authority: Authority, openssl: OpenSsl
) -> None:
    draft = tmp_path / "list.json"
    draft.write_text(json.dumps(DRAFT | {"hv:version": "1"}))
    signed = sign(draft, authority)
    with pytest.raises(AssertionError, match="31"):
        vmcatcher(signed, authority.trust_directory, openssl, subscription=IMAGE_ID)


def test_a_certificate_without_digital_signature_signs_nothing(
    world: World, tmp_path: Path
) -> None:
    usage = x509.KeyUsage(
        digital_signature=False, key_encipherment=True, content_commitment=False,
        data_encipherment=False, key_agreement=False, key_cert_sign=False, crl_sign=False,
        encipher_only=False, decipher_only=False,
    )  # fmt: skip
    key = rsa.generate_private_key(public_exponent=65537, key_size=2048)
    certificate = make_certificate("Host", key, world.experiment, extensions=(usage,))
    (tmp_path / "host.pem").write_bytes(certificate.public_bytes(Encoding.PEM))
    (tmp_path / "host.key").write_bytes(
        key.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, NoEncryption())
    )
    (tmp_path / "list.json").write_text(json.dumps(DRAFT | {"hv:version": "1"}))
    done = CliRunner().invoke(
        lists,
        ["sign", str(tmp_path / "list.json"), "--cert", str(tmp_path / "host.pem"),
         "--key", str(tmp_path / "host.key"), "-o", str(tmp_path / "o")],
    )  # fmt: skip
    assert isinstance(done.exception, ConfigInvalid)
    assert "digitalSignature" in str(done.exception)
    assert not (tmp_path / "o").exists()


def test_names_are_the_certificates_whatever_the_draft_says(world: World) -> None:
    stamped = stamp_list(
        json.dumps(DRAFT | {"hv:version": "1"}).encode(), world.endorser.certificate, now=NOW
    )
    stated = json.loads(stamped)["hv:imagelist"]["hv:endorser"]["hv:x509"]
    assert stated["hv:dn"] == "/O=Experiment/CN=Jane Endorser"
    assert stated["hv:ca"] == "/O=Experiment/CN=Experiment CA"
