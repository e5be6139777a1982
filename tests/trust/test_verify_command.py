"""``distrib list verify``: lists and entries, from files, standard input and https."""

from __future__ import annotations

import json
import ssl
import threading
import unicodedata
from collections.abc import Iterator
from dataclasses import dataclass, field, replace
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner, Result

from distrib.cli.lists import lists
from distrib.errors import DistribError, NetworkError, NotFound
from distrib.trust.fields import format_time
from distrib.trust.reasons import REMEDIES, ReasonCode
from distrib.trust.signature import MAX_MESSAGE_BYTES
from distrib.trust.testpki import Role

from .conftest import IMAGE_ID, LIST_ID, NOW, World
from .marketplace_world import entry_xml, sign_entry
from .test_marketplace import HOUR
from .test_marketplace import signed as signed_entry

DATA = Path(__file__).parents[1] / "data"
AT = ("--at", format_time(NOW))


def run(*arguments: object, stdin: bytes | None = None) -> Result:
    result = CliRunner().invoke(lists, [str(argument) for argument in arguments], input=stdin)
    if isinstance(result.exception, DistribError):
        raise result.exception
    assert result.exception is None or isinstance(result.exception, SystemExit)
    return result


def verify(source: object, world: World, *more: object, stdin: bytes | None = None) -> Result:
    trust = world.experiment.trust_directory
    return run("verify", source, "--trust", trust, *AT, *more, stdin=stdin)


def told(result: Result) -> dict[str, Any]:
    document: dict[str, Any] = json.loads(result.stdout)
    assert set(document) >= {"accepted", "reasons", "list", "kind"}
    assert all(set(reason) == {"code", "message", "hint"} for reason in document["reasons"])
    assert result.exit_code == (0 if document["accepted"] else 3)
    return document


def codes(result: Result) -> set[str]:
    return {reason["code"] for reason in told(result)["reasons"]}


def test_a_list_from_a_file_and_from_standard_input(world: World, tmp_path: Path) -> None:
    path = tmp_path / "list.signed"
    path.write_bytes(world.signed())
    for source, stdin in ((path, None), ("-", world.signed())):
        document = told(verify(source, world, "--json", stdin=stdin))
        assert document["accepted"]
        assert document["kind"] == "image-list"
        assert document["list"]["identifier"] == LIST_ID
        assert document["list"]["images"][0]["identifier"] == IMAGE_ID
        assert document["signer"]["dn"] == "/O=Experiment/CN=Jane Endorser"


def test_an_entry_is_told_from_a_list_by_itself(world: World, tmp_path: Path) -> None:
    path = tmp_path / "entry"
    path.write_bytes(signed_entry(world))
    document = told(verify(path, world, "--json"))
    assert document["accepted"]
    assert document["kind"] == "marketplace-entry"
    image = document["list"]["images"][0]
    assert image["identifier"] == document["list"]["identifier"]
    assert (image["size_bytes"], len(image["sha512"])) == (9, 128)
    plain = verify(path, world)
    assert plain.exit_code == 0
    assert "accepted" in plain.stdout


def test_what_is_expected_of_a_list(world: World, tmp_path: Path) -> None:
    path = tmp_path / "list.signed"
    path.write_bytes(world.signed())

    def found(*more: object) -> set[str]:
        return codes(verify(path, world, "--json", *more))

    assert found("--identifier", LIST_ID, "--last-version", "1.1.9") == set()
    assert found("--identifier", IMAGE_ID) == {"identifier-mismatch"}
    assert found("--last-version", "1.10") == {"version-down"}
    assert found("--policies", "require") == {"policy-missing"}
    bare = tmp_path / "trust"
    bare.mkdir()
    (bare / "ca.pem").write_bytes((world.experiment.directory / "ca.pem").read_bytes())
    without = run("verify", path, "--trust", bare, *AT, "--json")
    assert codes(without) == {"crl-missing"}


def test_what_is_expected_of_an_entry(world: World, tmp_path: Path) -> None:
    path = tmp_path / "entry.xml"
    path.write_bytes(signed_entry(world, digest="sha1"))

    def found(*more: object) -> set[str]:
        return codes(verify(path, world, "--json", *more))

    allow = ("--allow-sha1-endorser", "/O=Experiment/CN=Jane Endorser")
    assert found() == {"signature-sha1"}
    assert found(*allow) == set()
    assert found(*allow, "--identifier", "A" * 27) == {"identifier-mismatch"}
    assert found(*allow, "--last-version", format_time(NOW)) == {"version-down"}
    assert found(*allow, "--endorser", "jane@example.org") == {"endorser-not-authorised"}
    right = ("--endorser", "CN=Jane Endorser,O=Experiment", "--ca", "CN=Experiment CA,O=Experiment")
    assert found(*allow, *right) == set()
    assert verify(path, world, "--last-version", "1.0").exit_code == 2


def test_a_site_allows_an_endorser_sha1_by_a_setting(
    world: World, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path, settings = tmp_path / "entry.xml", tmp_path / "client.toml"
    path.write_bytes(signed_entry(world, digest="sha1"))
    monkeypatch.setenv("DISTRIB_CONFIG", str(settings))
    settings.write_text('sha1_endorsers = ["/O=Experiment/CN=John Endorser"]\n')
    assert codes(verify(path, world, "--json")) == {"signature-sha1"}
    settings.write_text('sha1_endorsers = ["/O=Experiment/CN=Jane Endorser"]\n')
    assert codes(verify(path, world, "--json")) == set()
    monkeypatch.delenv("DISTRIB_CONFIG")
    monkeypatch.setenv("DISTRIB_SHA1_ENDORSERS", '["CN=Jane Endorser,O=Experiment"]')
    assert codes(verify(path, world, "--json")) == set()


def test_every_reason_says_what_to_do(world: World, tmp_path: Path) -> None:
    assert set(REMEDIES) == set(ReasonCode)
    assert all(hint and "\n" not in hint for hint in REMEDIES.values())
    path = tmp_path / "list.signed"
    path.write_bytes(world.signed()[:100])
    shown = verify(path, world)
    assert "message-malformed: " in shown.stderr
    assert f"({REMEDIES[ReasonCode.MESSAGE_MALFORMED]})" in shown.stderr


def test_a_list_is_not_asked_for_by_an_e_mail_address(world: World, tmp_path: Path) -> None:
    path = tmp_path / "list.signed"
    path.write_bytes(world.signed())
    assert verify(path, world, "--endorser", "jane@example.org").exit_code == 2


FIELD = {
    "imagelists/hepix-2011-sha1-expired-cert.smime": {
        "digest-weak", "chain-untrusted", "certificate-expired", "list-expired",
    },
    "imagelists/appdb-style-sha256.smime": {"signer-not-endorser"},
    "marketplace/valid-full-signature.xml": {
        "signature-sha1", "chain-untrusted", "certificate-expired", "digest-weak", "list-expired",
        "deprecated",
    },
    "marketplace/invalid-no-endorser.xml": {"signer-count", "field-missing"},
}  # fmt: skip


@pytest.mark.parametrize("name", FIELD)
def test_documents_of_the_field(name: str) -> None:
    trust = DATA / "imagelists" / "trust"
    found = run("verify", DATA / name, "--trust", trust, "--crls", "if-present", "--json")
    assert codes(found) == FIELD[name]
    plain = run("verify", DATA / name, "--trust", trust, "--crls", "if-present")
    assert plain.exit_code == 3
    assert all(code in plain.stderr for code in FIELD[name])


HOSTILE = "\x1b]0;owned\x07 \u202egnp.exe\u2066 \u200b\u009b31m \ue000 end"


def assert_printable(text: str) -> None:
    unsafe = {"Cc", "Cf", "Cs", "Co", "Cn", "Zl", "Zp"}
    assert {c for c in text if c != "\n" and unicodedata.category(c) in unsafe} == set()


def test_titles_cannot_speak_to_the_terminal(world: World, tmp_path: Path) -> None:
    """A list may hold what a terminal would act on only where no rule refuses it: not printed."""
    title = "".join(char for char in HOSTILE if unicodedata.category(char) != "Cc")
    image = replace(world.image_list().images[0], title=title)
    listed = replace(world.image_list(), title=title, images=(image,))
    path = tmp_path / "evil\x1b[2J\u202e.signed"
    path.write_bytes(world.signed(listed))
    accepted = verify(path, world)
    assert accepted.exit_code == 0
    assert_printable(accepted.stdout)
    assert json.loads(verify(path, world, "--json").stdout)["list"]["title"] == title


def test_control_characters_in_a_list_or_its_names_are_refused_and_not_shown(
    world: World, tmp_path: Path
) -> None:
    endorser = replace(world.image_list().endorser, dn=f"/CN={HOSTILE}", email=HOSTILE)
    path = tmp_path / "list.signed"
    path.write_bytes(world.signed(replace(world.image_list(), title=HOSTILE, endorser=endorser)))
    refused = verify(path, world)
    assert refused.exit_code == 3
    assert "field-invalid" in refused.stderr
    assert_printable(refused.output)


def test_a_signer_with_a_hostile_name(world: World, tmp_path: Path) -> None:
    hostile = world.experiment.issue(Role.ENDORSER, HOSTILE, now=NOW)
    path = tmp_path / "list.signed"
    path.write_bytes(world.signed(world.image_list(), by=hostile))
    refused = verify(path, world)
    assert codes(verify(path, world, "--json")) == {"signer-not-endorser"}
    assert_printable(refused.output)


def test_a_hostile_entry(world: World, tmp_path: Path) -> None:
    more = "<slterms:deprecated>\u202egnp.exe\u009b31m</slterms:deprecated>"
    text = entry_xml(NOW - HOUR, email="j\u202e@x", more=more.replace("\u009b", ""))
    path = tmp_path / "entry"
    key: Any = world.endorser.key
    path.write_bytes(sign_entry(text, world.endorser.certificate, key))
    refused = verify(path, world)
    assert "deprecated" in refused.stderr
    assert_printable(refused.output)


@dataclass
class Web:
    """An https server of the site; ``served`` is what it gives, by path."""

    url: str
    ca: Path
    served: dict[str, bytes] = field(default_factory=dict)


@pytest.fixture(scope="module")
def web(world: World) -> Iterator[Web]:
    server_certificate = world.site.issue(Role.SERVER, now=NOW, hosts=["localhost"], days=36500)
    served: dict[str, bytes] = {}

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            body = served.get(self.path)
            if self.path.startswith("/away"):
                self.send_response(302)
                self.send_header("Location", "http://localhost:9/list")
                self.end_headers()
                return
            self.send_response(200 if body is not None or self.path == "/endless" else 404)
            self.end_headers()
            if self.path == "/endless":
                with_end = ssl.SSLError, ConnectionError
                try:
                    while True:
                        self.wfile.write(b"x" * 65536)
                except with_end:
                    return
            self.wfile.write(body or b"")

        def log_message(self, format: str, *args: object) -> None:
            """Quiet."""

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(server_certificate.certificate_path, server_certificate.key_path)
    server.socket = context.wrap_socket(server.socket, server_side=True)
    thread = threading.Thread(target=server.serve_forever)
    thread.start()
    url = f"https://localhost:{server.server_address[1]}"
    yield Web(url, world.site.directory / "ca.pem", served)
    server.shutdown()
    thread.join()
    server.server_close()


def test_a_list_and_an_entry_by_url(world: World, web: Web) -> None:
    web.served.update({"/list": world.signed(), "/entry": signed_entry(world)})
    for path, kind in (("/list", "image-list"), ("/entry", "marketplace-entry")):
        document = told(verify(web.url + path, world, "--ca-file", web.ca, "--json"))
        assert (document["accepted"], document["kind"]) == (True, kind)


def test_urls_that_lead_nowhere_good(world: World, web: Web) -> None:
    with pytest.raises(NetworkError, match="CERTIFICATE_VERIFY_FAILED"):
        verify(web.url + "/list", world)
    with pytest.raises(NotFound):
        verify(web.url + "/none", world, "--ca-file", web.ca)
    with pytest.raises(DistribError, match="https"):
        verify(web.url + "/away", world, "--ca-file", web.ca)
    with pytest.raises(DistribError, match="https"):
        verify(web.url.replace("https", "http") + "/list", world)


def test_an_endless_answer_is_cut_off(world: World, web: Web) -> None:
    found = verify(web.url + "/endless", world, "--ca-file", web.ca, "--json")
    assert codes(found) == {"too-large"}
    assert str(MAX_MESSAGE_BYTES + 1) in json.loads(found.stdout)["reasons"][0]["message"]
