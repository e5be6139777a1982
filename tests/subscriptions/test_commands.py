"""``distrib list subscribe | poll | show | unsubscribe`` and the API behind them."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Iterator
from datetime import timedelta
from pathlib import Path
from typing import Any

import pytest

from distrib.cli.main import main
from distrib.db.models import Role
from tests.head.stories import LIST, Endorser, Head, entry, image_bytes, serve
from tests.subscriptions.server import ListServer

ONE = "7cb7a2d5-0f0e-4f43-9a11-3a9f5e0f0001"
TWO = "7cb7a2d5-0f0e-4f43-9a11-3a9f5e0f0002"
IMAGE = entry(image_bytes(1), identifier=ONE)

Run = Callable[..., tuple[int, str, str]]


@pytest.fixture
def served(head: Head) -> Iterator[Head]:
    """The head, answering over TLS."""
    with serve(head):
        yield head


@pytest.fixture
def run(
    served: Head,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> Run:
    """Runs ``distrib ...`` with a token of that role: status, output, errors."""

    def run_one(*arguments: object, role: Role = Role.ADMIN) -> tuple[int, str, str]:
        config = tmp_path / "client.toml"
        config.write_text(
            f'url = "{served.url}"\nca = "{served.ca_file}"\ntoken = "{served.token(role)}"\n'
        )
        monkeypatch.setenv("DISTRIB_CONFIG", str(config))
        capsys.readouterr()
        with pytest.raises(SystemExit) as ended:
            main([str(argument) for argument in arguments])
        out, err = capsys.readouterr()
        return int(ended.value.code or 0), out, err

    return run_one


@pytest.fixture
def subscribe(run: Run, server: ListServer, endorser: Endorser) -> Callable[..., Any]:
    """``distrib list subscribe`` to the server's list."""

    def follow(*more: object, url: str = "") -> tuple[int, str, str]:
        names = ("--endorser", endorser.dn, "--ca", endorser.ca, "--ca-file", server.ca_file)
        return run("list", "subscribe", url or server.url, *names, *more)

    return follow


def test_a_list_is_followed_from_the_command_line(
    run: Run, subscribe: Callable[..., Any], server: ListServer, endorser: Endorser
) -> None:
    signed = endorser.sign(IMAGE, version="1")
    server.serve(signed)
    status, out, err = subscribe("--interval", 600)
    assert (status, err) == (0, "")
    assert out == f"subscription 1: {server.url}, polled every 600 s\n"
    status, out, err = run("list", "poll", server.url)
    assert (status, err) == (0, "")
    assert out == f"subscription 1 {server.url}: accepted, version 1\n"
    status, out, _ = run("list", "show")
    assert status == 0
    assert out.splitlines()[0].split() == [
        "ID",
        "URL",
        "LIST",
        "VERSION",
        "AGE",
        "LAST",
        "POLL",
        "IMAGES",
    ]
    assert "1 announced" in out
    status, out, _ = run("list", "show", LIST, "--json")
    shown = json.loads(out)
    assert (status, shown["list"]["sha512"]) == (0, hashlib.sha512(signed).hexdigest())
    assert (shown["outcome"]["code"], shown["stale"]) == ("accepted", False)
    assert [(image["image"], image["state"]) for image in shown["images"]] == [
        (f"{ONE}@1.0.0", "announced")
    ]
    # The page of the API shows just these keys.
    page = (Path(__file__).parents[2] / "docs" / "formats" / "api.md").read_text("utf-8")
    example = json.loads(page.split("## Subscription\n```json\n")[1].split("```")[0])
    assert set(example) | {"images"} == set(shown)
    for part in ("outcome", "list"):
        assert set(example[part]) == set(shown[part])
    assert run("list", "unsubscribe", server.url)[:2] == (0, "subscription 1 removed\n")
    assert json.loads(run("list", "show", "--json")[1]) == {"subscriptions": []}


def test_a_list_that_has_grown_too_old_is_shown_as_such(
    run: Run, subscribe: Callable[..., Any], served: Head
) -> None:
    subscribe("--alarm-age", 3600)
    assert "TOO OLD" not in run("list", "show")[1]
    served.clock.ahead = timedelta(hours=2)
    run("list", "poll", 1)
    assert "never, for 120 min TOO OLD" in run("list", "show")[1]
    assert json.loads(run("list", "show", 1, "--json")[1])["stale"] is True


def test_a_refused_list_is_exit_3_with_every_reason(
    run: Run, subscribe: Callable[..., Any], server: ListServer, successor: Endorser
) -> None:
    subscribe("--identifier", ONE)
    server.serve(successor.sign(IMAGE, version="1"))
    status, out, err = run("list", "poll", 1)
    assert (status, out) == (3, f"subscription 1 {server.url}: trust-refused\n")
    assert [line.split(":")[0].strip() for line in err.splitlines()] == [
        "endorser-not-authorised",
        "identifier-mismatch",
    ]
    status, out, _ = run("list", "poll", 1, "--json")
    assert status == 3
    assert [reason["code"] for reason in json.loads(out)["outcome"]["reasons"]] == [
        "endorser-not-authorised",
        "identifier-mismatch",
    ]
    assert "identifier-mismatch: the list is" in run("list", "show", 1)[1]


def test_all_lists_are_polled_and_what_went_wrong_is_told(
    run: Run, subscribe: Callable[..., Any], server: ListServer, endorser: Endorser
) -> None:
    subscribe(url=f"{server.base}/gone")
    assert run("list", "poll", "--all")[0] == 4
    server.serve(endorser.sign(IMAGE, version="1"))
    subscribe()
    status, out, err = run("list", "poll", "--all")
    assert status == 8
    assert [line.split(": ")[1] for line in out.splitlines()] == [
        "not-found",
        "accepted, version 1",
    ]
    assert "HTTP 404" in err
    assert len(json.loads(run("list", "poll", "--all", "--json")[1])["subscriptions"]) == 2


def test_the_password_comes_from_the_environment_or_a_file_and_is_not_shown(
    run: Run,
    subscribe: Callable[..., Any],
    server: ListServer,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    server.serve(b"no list", auth="token:x-oauth-basic")
    monkeypatch.setenv("DISTRIB_PASSWORD", "x-oauth-basic")
    assert subscribe("--user", "token")[0] == 0
    # It was let in: what it got is refused for what it is.
    assert run("list", "poll", 1)[0] == 3
    outputs = [run("list", "show", 1, *more)[1] for more in ((), ("--json",))]
    outputs.append(run("audit", "--json")[1])
    assert all("token" in out and "x-oauth-basic" not in out for out in outputs)
    monkeypatch.delenv("DISTRIB_PASSWORD")
    run("list", "unsubscribe", 1)
    status, _, err = subscribe("--user", "token")
    assert (status, "no terminal to ask for it (--password-file" in err) == (2, True)
    file = tmp_path / "password"
    file.write_text("wrong\n")
    assert subscribe("--user", "token", "--password-file", file)[0] == 0
    assert run("list", "poll", 1)[0] == 9
    assert subscribe("--password-file", file)[0] == 2


def test_what_is_wrong_with_a_subscription_is_said_in_one_line(
    run: Run, subscribe: Callable[..., Any], server: ListServer, endorser: Endorser
) -> None:
    for more, url, status in (
        ((), "http://localhost/list", 2),
        (("--interval", 1), "", 2),
        (("--identifier", "no-uuid"), "", 2),
    ):
        found, out, err = subscribe(*more, url=url)
        assert (found, out, err.count("\n")) == (status, "", 1), err
    for command in (("poll", "7"), ("show", "7"), ("unsubscribe", "https://localhost/none")):
        found, _, err = run("list", *command)
        assert (found, err.count("\n")) == (4, 1)
    assert run("list", "poll")[0] == 2
    subscribe()
    found, _, err = subscribe()
    assert found == 2
    assert "subscription 1 has that URL" in err


def test_who_may_what(
    run: Run, served: Head, subscribe: Callable[..., Any], server: ListServer, endorser: Endorser
) -> None:
    signed = endorser.sign(IMAGE, version="1")
    server.serve(signed)
    assert subscribe()[0] == 0
    assert run("list", "poll", 1, role=Role.VIEWER)[0] == 9
    assert run("list", "poll", 1, role=Role.OPERATOR)[0] == 0
    assert run("list", "unsubscribe", 1, role=Role.OPERATOR)[0] == 9
    assert run("list", "show", 1, role=Role.VIEWER)[0] == 0
    sha512 = hashlib.sha512(signed).hexdigest()
    with served.http(served.token(Role.VIEWER)) as http:
        answer = http.get(f"/lists/{sha512}")
        assert (answer.content, answer.headers["content-type"]) == (signed, "multipart/signed")
        assert http.get(f"/lists/{'0' * 128}").status_code == 404
        assert http.get("/lists/..%2Fdistrib.db").status_code in {404, 422}
        body = {"url": server.url, "dn": endorser.dn, "ca": endorser.ca}
        assert http.post("/subscriptions", json=body).status_code == 403
        assert http.get("/lists/" + sha512, headers={"Authorization": ""}).status_code == 401


def test_an_endorser_is_replaced_from_the_command_line(
    run: Run,
    subscribe: Callable[..., Any],
    server: ListServer,
    endorser: Endorser,
    successor: Endorser,
) -> None:
    server.serve(endorser.sign(IMAGE, version="1"))
    subscribe()
    run("list", "poll", 1)
    assert f"subscription 1  {LIST}  {endorser.dn}" in run("endorser", "list")[1]
    names = ("--dn", successor.dn, "--ca", successor.ca)
    assert run("endorser", "add", *names, "--replace")[0] == 2
    assert run("endorser", "add", *names, "--list", LIST, "--replace")[0] == 0
    listed = run("endorser", "list")[1]
    assert endorser.dn not in listed
    assert listed.count(successor.dn) == 2
    server.serve(Endorser(successor.issued).sign(IMAGE, version="2"))
    assert run("list", "poll", 1)[0] == 0
