"""``distrib list sign``, ``list verify`` and ``testpki``, as an endorser and a site use them."""

from __future__ import annotations

import contextlib
import json
import os
import pty
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner, Result
from cryptography.hazmat.primitives.serialization import (
    BestAvailableEncryption,
    Encoding,
    PrivateFormat,
    load_pem_private_key,
)

from distrib.cli.lists import lists
from distrib.cli.testpki import testpki as pki_group
from distrib.errors import ConfigInvalid, DistribError, NotFound
from distrib.trust.endorse import next_version
from distrib.trust.imagelist import ImageListInvalid
from distrib.trust.testpki import Authority

from .conftest import IMAGE_ID, LIST_ID, SHA512, OpenSsl

DATA = Path(__file__).parents[1] / "data" / "imagelists"


def run(group: Any, *arguments: object, stdin: str | None = None) -> Result:
    result = CliRunner().invoke(group, [str(argument) for argument in arguments], input=stdin)
    if isinstance(result.exception, DistribError):
        raise result.exception
    return result


@pytest.fixture(scope="module")
def pki(tmp_path_factory: pytest.TempPathFactory) -> Path:
    directory = tmp_path_factory.mktemp("demo")
    result = run(pki_group, "init", directory, "--site", "Site", "--node", "wn001", "--json")
    assert result.exit_code == 0
    made = json.loads(result.stdout)
    assert len(made["certificates"]) == 7
    return directory / "experiment"


@pytest.fixture
def draft(tmp_path: Path) -> Path:
    """What an endorser writes by hand: no dates, no names."""
    image = {
        "dc:identifier": IMAGE_ID,
        "dc:title": "worker",
        "hv:version": "1",
        "hv:uri": "https://images.example.org/worker.raw",
        "hv:size": 67108864,
        "sl:checksum:sha512": SHA512,
    }
    path = tmp_path / "list.json"
    document = {
        "dc:identifier": LIST_ID,
        "dc:title": "Images",
        "hv:version": "0.9",
        "hv:endorser": {"hv:x509": {"hv:dn": "/CN=wrong", "hv:email": "jane@example.org"}},
        "hv:images": [{"hv:image": image}],
        "ad:vo": "some.vo",
    }
    path.write_text(json.dumps(document))
    return path


def sign(draft: Path, pki: Path, *more: object) -> tuple[Path, Result]:
    output = draft.with_suffix(".signed")
    credentials = [
        "--cert",
        pki / "certs" / "Endorser.pem",
        "--key",
        pki / "certs" / "Endorser.key",
    ]
    return output, run(lists, "sign", draft, *credentials, "-o", output, *more)


def test_sign_then_verify(draft: Path, pki: Path, openssl: OpenSsl) -> None:
    before = draft.read_bytes()
    signed, result = sign(draft, pki, "--json")
    assert result.exit_code == 0, result.output
    assert json.loads(result.stdout)["list"]["version"] == "0.9"
    assert draft.read_bytes() == before
    content = json.loads(openssl("cms", "-verify", "-CApath", pki / "trust", "-purpose", "any", "-in", signed))  # noqa: E501  # fmt: skip
    stated = content["hv:imagelist"]["hv:endorser"]["hv:x509"]
    assert stated == {
        "hv:dn": "/O=Experiment/CN=Endorser",
        "hv:ca": "/O=Experiment/CN=Experiment CA",
        "hv:email": "jane@example.org",
        "dc:creator": "",
    }
    assert content["hv:imagelist"]["ad:vo"] == "some.vo"
    verified = run(
        lists, "verify", signed, "--trust", pki / "trust", "--json",
        "--endorser", stated["hv:dn"], "--ca", stated["hv:ca"],
    )  # fmt: skip
    assert verified.exit_code == 0
    told = json.loads(verified.stdout)
    assert (told["accepted"], told["reasons"]) == (True, [])
    assert told["list"]["images"][0]["identifier"] == IMAGE_ID


def test_refusal_ends_with_3_and_every_reason(draft: Path, pki: Path) -> None:
    signed, _ = sign(draft, pki)
    signed.write_bytes(signed.read_bytes().replace(b"worker.raw", b"hacker.raw"))
    arguments = ["verify", signed, "--trust", pki / "trust", "--at", "2099-01-01T00:00:00Z"]
    expected = {"signature-invalid", "certificate-expired", "crl-expired", "list-expired"}
    as_json = run(lists, *arguments, "--json")
    assert as_json.exit_code == 3
    told = json.loads(as_json.stdout)
    assert not told["accepted"]
    assert expected <= {reason["code"] for reason in told["reasons"]}
    plain = run(lists, *arguments)
    assert plain.exit_code == 3
    assert "refused" in plain.stdout
    assert all(code in plain.stderr for code in expected)


def test_the_wrong_endorser_is_named(draft: Path, pki: Path) -> None:
    signed, _ = sign(draft, pki)
    result = run(
        lists, "verify", signed, "--trust", pki / "trust",
        "--endorser", "/O=Experiment/CN=Other", "--ca", "/O=Experiment/CN=Experiment CA",
    )  # fmt: skip
    assert result.exit_code == 3
    assert "endorser-not-authorised" in result.stderr


def test_bump_writes_the_version_back(draft: Path, pki: Path) -> None:
    for expected in ("0.10", "0.11"):
        _, result = sign(draft, pki, "--bump")
        assert f"version {expected}" in result.stdout
        assert json.loads(draft.read_text())["hv:imagelist"]["hv:version"] == expected


def test_the_next_version() -> None:
    assert next_version(None) == "0.0.0"
    assert next_version("0.0.0") == "0.0.1"
    assert next_version("1.9") == "1.10"
    assert next_version("2015-06-18") == "2015-06-19"
    assert next_version(7) == "8"
    assert next_version("1.beta") == "1.beta.1"


def test_a_list_that_verifiers_would_refuse_is_not_signed(draft: Path, pki: Path) -> None:
    document = json.loads(draft.read_text())
    document["hv:images"] *= 2
    draft.write_text(json.dumps(document))
    with pytest.raises(ImageListInvalid, match="uuid-duplicate"):
        sign(draft, pki)
    document["hv:images"] = [{}]
    draft.write_text(json.dumps(document))
    with pytest.raises(ImageListInvalid, match="field-missing"):
        sign(draft, pki)
    draft.write_text("{")
    with pytest.raises(ImageListInvalid, match="message-malformed"):
        sign(draft, pki)
    assert not draft.with_suffix(".signed").exists()


def test_a_key_with_a_passphrase(
    draft: Path, pki: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    locked = lock(pki, tmp_path)
    arguments = ["sign", draft, "--cert", pki / "certs" / "Endorser.pem", "--key", locked, "-o", tmp_path / "o"]  # noqa: E501  # fmt: skip
    with pytest.raises(ConfigInvalid, match="no terminal") as refused:
        run(lists, *arguments)
    assert "DISTRIB_KEY_PASSPHRASE" in refused.value.hint
    for number, (secret, good) in enumerate([("secret\n", True), ("wrong", False)]):
        file = tmp_path / f"passphrase{number}"
        file.write_text(secret)
        if good:
            assert run(lists, *arguments, "--passphrase-file", file).exit_code == 0
            continue
        with pytest.raises(ConfigInvalid, match="passphrase is another"):
            run(lists, *arguments, "--passphrase-file", file)
    monkeypatch.setenv("DISTRIB_KEY_PASSPHRASE", "secret")
    assert run(lists, *arguments).exit_code == 0
    with pytest.raises(NotFound, match="nowhere"):
        run(lists, *arguments, "--passphrase-file", tmp_path / "nowhere")


def test_a_passphrase_is_asked_for_on_a_terminal(draft: Path, pki: Path, tmp_path: Path) -> None:
    """And is not shown there."""
    arguments = ["sign", draft, "--cert", pki / "certs" / "Endorser.pem",
                 "--key", lock(pki, tmp_path), "-o", tmp_path / "o"]  # fmt: skip
    command = [sys.executable, "-m", "distrib.cli.main", "list", *map(str, arguments)]
    main, terminal = pty.openpty()
    child = subprocess.Popen(
        ["setsid", "--ctty", "--wait", *command], stdin=terminal, stdout=terminal, stderr=terminal
    )
    os.close(terminal)
    shown = b""
    while b"Passphrase of the key" not in shown:
        shown += os.read(main, 1000)
    os.write(main, b"secret\n")
    with contextlib.suppress(OSError):
        while chunk := os.read(main, 1000):
            shown += chunk
    assert child.wait(30) == 0
    assert b"secret" not in shown
    os.close(main)


def test_the_key_must_be_the_certificates(draft: Path, pki: Path, tmp_path: Path) -> None:
    other = pki.parent / "site" / "certs" / "catalogue.key"
    with pytest.raises(ConfigInvalid, match="does not belong"):
        run(lists, "sign", draft, "--cert", pki / "certs" / "Endorser.pem", "--key", other,
            "-o", tmp_path / "o")  # fmt: skip
    assert not (tmp_path / "o").exists()


def lock(pki: Path, directory: Path) -> Path:
    """The endorser's key, under the passphrase ``secret``."""
    key = load_pem_private_key((pki / "certs" / "Endorser.key").read_bytes(), None)
    locked = directory / "locked.key"
    locked.write_bytes(
        key.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, BestAvailableEncryption(b"secret"))
    )
    return locked


def test_usage(draft: Path, pki: Path, tmp_path: Path) -> None:
    trust = ["--trust", pki / "trust"]
    assert run(lists, "verify", draft, *trust, "--endorser", "/CN=x").exit_code == 2
    assert run(lists, "verify", draft, *trust, "--at", "yesterday").exit_code == 2
    with pytest.raises(NotFound):
        run(lists, "verify", tmp_path / "nowhere", *trust)
    with pytest.raises(ConfigInvalid):
        run(lists, "verify", draft, "--trust", tmp_path / "nowhere")


def test_lists_of_the_field() -> None:
    appdb = DATA / "appdb-style-sha256.smime"
    result = run(
        lists, "verify", appdb, "--trust", DATA / "trust", "--crls", "if-present", "--json"
    )
    assert result.exit_code == 3
    codes = {reason["code"] for reason in json.loads(result.stdout)["reasons"]}
    assert codes == {"signer-not-endorser"}


def test_a_revoked_endorser(tmp_path: Path, draft: Path) -> None:
    run(pki_group, "init", tmp_path / "pki")
    experiment = tmp_path / "pki" / "experiment"
    signed, _ = sign(draft, experiment)
    verify = ["verify", signed, "--trust", experiment / "trust"]
    assert run(lists, *verify).exit_code == 0
    assert run(pki_group, "revoke", experiment, "Endorser").exit_code == 0
    refused = run(lists, *verify)
    assert refused.exit_code == 3
    assert "certificate-revoked" in refused.stderr
    with pytest.raises(NotFound):
        run(pki_group, "revoke", experiment, "Nobody")


def test_issue(pki: Path) -> None:
    site = pki.parent / "site"
    result = run(pki_group, "issue", site, "--role", "node", "--name", "wn002", "--json")
    assert Path(json.loads(result.stdout)["certificate"]) == Authority.load(site).certificate_path("wn002")  # noqa: E501  # fmt: skip
    with pytest.raises(ConfigInvalid, match="controller"):
        run(pki_group, "issue", site, "--role", "node", "--name", "controller")


def test_verify_as_a_site_list(pki: Path, draft: Path) -> None:
    signed, _ = sign(draft, pki)
    result = run(lists, "verify", signed, "--trust", pki / "trust", "--site-list")
    assert result.exit_code == 3
    assert "role-missing" in result.stderr
