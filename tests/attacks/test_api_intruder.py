"""The intruder at the API: a viewer's token, no token, and requests that nobody should send.

Each answer is a refusal in the documented form. None is a bug (500), and nothing has changed.
"""

from __future__ import annotations

import json
import socket
import ssl
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import httpx
import pytest

from distrib.api.app import create_app
from distrib.catalogue.intake import ImageChoice
from distrib.db.models import Role
from distrib.db.session import sqlite_url
from tests.head.conftest import cluster
from tests.head.postgresql import Cluster
from tests.head.stories import LIST, WORKER, Endorser, Head, entry, image_bytes

__all__ = ["cluster"]

PREFIX = "/api/v1"


#: What one database takes for a text makes the other fail.
on_both = pytest.mark.parametrize("database_url", ["sqlite", "postgresql"], indirect=True)


@pytest.fixture
def database_url(request: pytest.FixtureRequest) -> Callable[[Path], str]:
    """SQLite's, unless a story asks for both."""
    if getattr(request, "param", "sqlite") == "sqlite":
        return lambda directory: sqlite_url(directory / "distrib.db")
    running: Cluster = request.getfixturevalue("cluster")
    made: dict[Path, str] = {}
    return lambda directory: made.setdefault(directory, running.database())


@pytest.fixture
def paths(served: Head) -> list[tuple[str, str]]:
    """Every call that there is."""
    found = create_app(served.services).openapi()["paths"]
    return [(method.upper(), path) for path, methods in found.items() for method in methods]


@pytest.fixture
def untouched(served: Head, endorser: Endorser) -> Iterator[None]:
    """An image that is there before, and as it was after."""
    served.token(Role.VIEWER)
    with served.http() as http:
        signed = endorser.sign(entry(image_bytes()))
        served.catalogue.intake.announce(
            signed, ImageChoice(size_bytes=len(image_bytes())), actor="test"
        )
        before = http.get("/images").json(), http.get("/endorsers").json(), served.actions()
    yield
    with served.http() as http:
        after = http.get("/images").json(), http.get("/endorsers").json(), served.actions()
    assert after == before


def _choice() -> Any:
    from distrib.catalogue.intake import ImageChoice

    return ImageChoice(size_bytes=len(image_bytes()))


def assert_refused(answer: httpx.Response, what: object) -> None:
    assert 400 <= answer.status_code < 500, (what, answer.status_code, answer.text[:300])
    error = answer.json()["error"]
    assert error["code"] not in {"bug", ""}, what
    assert "Traceback" not in answer.text


@pytest.mark.usefixtures("untouched")
def test_a_viewer_reads_and_changes_nothing(served: Head, paths: list[tuple[str, str]]) -> None:
    """Whatever call it is: the table of roles in tests/head/test_access.py names a few."""
    names = {"ref": WORKER, "name": "wn001", "alias": "x", "number": "1", "rollout": "r-1"}
    with served.http(served.token(Role.VIEWER)) as http:
        tried = 0
        for method, path in paths:
            if method == "GET":
                continue
            filled = path
            for name, value in names.items():
                filled = filled.replace(f"{{{name}}}", value)
            filled = "".join("1" if part.startswith("{") else part
                             for part in _split(filled))  # fmt: skip
            answer = http.request(method, served.url + filled, json={"reason": "x"})
            assert answer.status_code == 403, (method, filled, answer.text)
            tried += 1
        assert tried >= 20


def _split(path: str) -> list[str]:
    return path.replace("{", "\n{").replace("}", "}\n").split("\n")


CLIMBING = [
    "..%2f..%2f..%2fetc%2fpasswd",
    "%2e%2e/%2e%2e/tokens",
    "..",
    "%2e%2e",
    "..%5c..%5c",
    "%00",
    "a%00b",
    "%ff%fe",
    "%ed%a0%80",
    "%c0%af",
    "%1b[31m",
    "%0d%0aX-Injected:%20yes",
    "'%20OR%201=1--",
    "%22;DROP%20TABLE%20images;--",
    "x" * 3000,
    "%F0%9F%92%A9",
    f"{WORKER}@%00",
    f"{WORKER}@..%2f..%2fx",
    f"{WORKER}@{'9' * 3000}",
    "-1",
    "9" * 40,
    "1e9",
    "99999999999999999999",
]


@on_both
@pytest.mark.usefixtures("untouched")
def test_names_in_a_path_lead_nowhere(served: Head, paths: list[tuple[str, str]]) -> None:
    with served.http() as http:
        # Rollouts are a stand-in here; a content is a stream, and bounds itself.
        named = [
            (method, path)
            for method, path in paths
            if "{" in path and not path.endswith("/content") and "/rollouts/" not in path
        ]
        for index, (method, path) in enumerate(named):
            # Each name at a few of the calls; those that a database may choke on at all of them.
            for name in {*CLIMBING[index % 12 :: 12], "a%00b", "9" * 40}:
                filled = "".join(name if part.startswith("{") else part for part in _split(path))
                # As it is: httpx would tidy up the dots.
                url = httpx.URL(served.url)
                answer = http.send(
                    http.build_request(
                        method, url.copy_with(raw_path=filled.encode()), json={"reason": "x"}
                    )
                )
                if path.endswith("/history") and answer.status_code == 200:
                    # Of a version that there never was.
                    assert answer.json()["history"] == []
                    continue
                assert_refused(answer, (method, filled))
                assert "x-injected" not in answer.headers


TEXTS = ["\x00", "\udfff\ud800", "x" * 20_000]


@on_both
@pytest.mark.usefixtures("untouched")
def test_texts_that_no_database_keeps(served: Head) -> None:
    """NUL is text to SQLite and none to PostgreSQL; half a surrogate is none to either."""
    calls: list[tuple[str, str, Callable[[str], dict[str, Any]]]] = [
        ("POST", f"/images/{WORKER}x/deny", lambda text: {"reason": text}),
        ("PUT", "/aliases/worker", lambda text: {"identifier": text}),
        ("PUT", "/nodes/wn001", lambda text: {"address": text}),
        ("PUT", "/nodes/wn001", lambda text: {"address": "127.0.0.2", "rack": text + "\x00 "}),
        ("PUT", "/nodes/wn001", lambda text: {"address": "::1", "labels": {text + "\x00": "a"}}),
        ("PUT", "/nodes/wn001", lambda text: {"address": "::1", "labels": {"a": text + "\x00"}}),
        ("POST", "/endorsers", lambda text: {"dn": text, "ca": "/CN=x", "list": LIST}),
        ("POST", "/endorsers", lambda text: {"dn": f"/CN={text}\x00", "ca": "/CN=x", "list": LIST}),
        ("POST", "/endorsers", lambda text: {"dn": "/CN=x", "ca": "/CN=x", "list": text + "\x00"}),
        ("POST", "/tokens", lambda text: {"name": text + "\x00", "role": "viewer"}),
        ("POST", "/tokens", lambda text: {"name": "x", "role": text}),
        ("POST", "/subscriptions", lambda text: {
            "url": f"https://localhost/{text}\x00", "dn": "/CN=x", "ca": "/CN=y"}),
    ]  # fmt: skip
    with served.http() as http:
        for method, path, body in calls:
            for text in TEXTS:
                content = json.dumps(body(text)).encode()
                headers = {"Content-Type": "application/json"}
                answer = http.request(method, path, content=content, headers=headers)
                assert_refused(answer, (method, path, text[:20]))
        for query in ("before=%00", "x=%00", "before=x", "limit=-1", "limit=99999999999999999999"):
            assert_refused(http.get(f"/audit?{query}"), query)


@pytest.mark.usefixtures("untouched")
def test_bodies_that_are_none(served: Head) -> None:
    bodies = [
        b"", b"null", b"[]", b"{" * 1000, b"[" * 100_000, b'{"reason": "x"' , b"\xff\xfe", b"NaN",
        b'{"reason": NaN}', b'{"reason": {"a": 1}}', b'{"reason": "x", "force": "y"}',
        b'{"reason": 1e999}', b'{"reason":' + b"1" * 5000 + b"}",
    ]  # fmt: skip
    with served.http() as http:
        for body in bodies:
            for kind in ("application/json", "multipart/form-data; boundary=x"):
                answer = http.post(
                    f"/images/{WORKER}/deny", content=body, headers={"Content-Type": kind}
                )
                assert_refused(answer, (body[:20], kind))


def test_a_header_that_names_the_length_of_another_body(served: Head) -> None:
    """Two lengths, or one beside chunks, are how a request is hidden in another."""
    token = served.token(Role.VIEWER)
    hidden = b"POST /api/v1/tokens HTTP/1.1\r\nHost: x\r\n\r\n"
    ways = [
        b"Content-Length: 0\r\nContent-Length: 50\r\n",
        b"Content-Length: 5\r\nTransfer-Encoding: chunked\r\n",
        b"Content-Length: -1\r\n",
        b"Content-Length: 99999999999999999999999\r\n",
        b"Transfer-Encoding: xchunked\r\n",
    ]
    tls = ssl.create_default_context(cafile=str(served.ca_file))
    port = httpx.URL(served.url).port
    for way in ways:
        with (
            socket.create_connection(("localhost", port or 0), timeout=10) as plain,
            tls.wrap_socket(plain, server_hostname="localhost") as line,
        ):
            line.sendall(
                f"POST {PREFIX}/rollouts HTTP/1.1\r\nHost: localhost\r\n"
                f"Authorization: Bearer {token}\r\nConnection: close\r\n".encode()
                + way + b"\r\n" + hidden
            )  # fmt: skip
            answer = b""
            while data := line.recv(65536):
                answer += data
        assert answer.startswith((b"HTTP/1.1 400", b"HTTP/1.1 403", b"HTTP/1.1 413")), (way, answer)
        assert answer.count(b"HTTP/1.1 ") == 1, way
