"""Fetching a list from servers that are slow, lie, redirect or never end."""

from __future__ import annotations

import asyncio
import gzip
import os
import socket
from collections.abc import Callable, Iterable
from pathlib import Path

import pytest

from distrib.catalogue.fetching import Fetcher, Origin, check_url
from distrib.errors import (
    ConfigInvalid,
    Forbidden,
    NetworkError,
    NotFound,
    TimedOut,
    TrustRefused,
)
from distrib.trust.testpki import Demo
from tests.subscriptions.server import ListServer, Request, free_port, head, list_server

LIMIT_BYTES = 100_000
MESSAGE = b"list " * 1000


@pytest.fixture
def fetch(server: ListServer) -> Callable[..., object]:
    """Fetches the server's list within small limits."""

    async def run(url: str = "", **more: object):
        fetcher = Fetcher(limit_s=1.0, limit_bytes=LIMIT_BYTES)
        origin = Origin(url or server.url, ca_file=server.ca_file, **more)
        return await fetcher.fetch(origin)

    return run


async def test_the_message_comes_with_its_etag_and_then_not_again(fetch, server) -> None:
    server.serve(MESSAGE)
    first = await fetch()
    assert first.message == MESSAGE
    again = await fetch(etag=first.etag)
    assert (again.message, again.etag) == (None, first.etag)
    assert server.requests[0].headers["accept-encoding"] == "identity"


async def test_user_and_password_are_sent_at_once(fetch, server) -> None:
    server.serve(MESSAGE, auth="token:x-oauth-basic")
    assert (await fetch(auth=("token", "x-oauth-basic"))).message == MESSAGE
    assert len(server.requests) == 1
    with pytest.raises(Forbidden, match="HTTP 401"):
        await fetch(auth=("token", "wrong"))


@pytest.mark.parametrize(
    ("status", "error"),
    [(404, NotFound), (403, Forbidden), (500, NetworkError), (206, NetworkError)],
)
async def test_other_answers_have_their_errors(fetch, server, status, error) -> None:
    server.answers["/image.list"] = lambda _: [head(status, ("Content-Length", "3")), b"abc"]
    with pytest.raises(error, match=f"HTTP {status}"):
        await fetch()


async def test_a_server_of_another_ca_is_not_believed(fetch, server, pki: Demo) -> None:
    server.serve(MESSAGE)
    with pytest.raises(NetworkError, match="CERTIFICATE_VERIFY_FAILED"):
        await Fetcher().fetch(Origin(server.url, ca_file=pki.experiment.directory / "ca.pem"))
    assert server.requests == []
    with pytest.raises(ConfigInvalid):
        await Fetcher().fetch(Origin(server.url, ca_file=Path("/nonexistent.pem")))


async def test_nobody_answers(fetch) -> None:
    with pytest.raises(NetworkError):
        await fetch(f"https://localhost:{free_port()}/image.list")


def chunked(data: bytes) -> bytes:
    return f"{len(data):x}\r\n".encode() + data + b"\r\n"


@pytest.mark.parametrize("how", ["declared", "chunked", "until it closes"])
async def test_what_is_too_large_is_refused_while_it_comes(
    fetch, server: ListServer, how: str
) -> None:
    flood = b"x" * 10_000

    def answer(_: Request) -> Iterable[bytes]:
        if how == "declared":
            return server.flood(head(200, ("Content-Length", str(LIMIT_BYTES + 1))), flood)
        if how == "chunked":
            return server.flood(head(200, ("Transfer-Encoding", "chunked")), chunked(flood))
        return server.flood(head(200), flood)

    server.answers["/image.list"] = answer
    with pytest.raises(TrustRefused) as refused:
        await fetch()
    assert [reason["code"] for reason in refused.value.reasons] == ["too-large"]


async def test_a_length_that_is_too_small_bounds_what_is_read(fetch, server) -> None:
    server.answers["/image.list"] = lambda _: [head(200, ("Content-Length", "10")), MESSAGE]
    assert (await fetch()).message == MESSAGE[:10]


async def test_a_message_that_breaks_off_is_no_message(fetch, server) -> None:
    server.answers["/image.list"] = lambda _: [head(200, ("Content-Length", "9999")), MESSAGE]
    with pytest.raises(NetworkError):
        await fetch()
    server.answers["/image.list"] = lambda _: [
        head(200, ("Transfer-Encoding", "chunked")),
        chunked(MESSAGE),
    ]
    with pytest.raises(NetworkError):
        await fetch()


@pytest.mark.parametrize("header", ["Content-Encoding", "Transfer-Encoding"])
async def test_what_is_compressed_on_the_way_is_not_unpacked(fetch, server, header: str) -> None:
    bomb = gzip.compress(b"0" * 50_000_000)
    assert len(bomb) < LIMIT_BYTES
    length = [("Content-Length", str(len(bomb)))] if header == "Content-Encoding" else []
    value = "gzip" if header == "Content-Encoding" else "gzip, chunked"
    server.answers["/image.list"] = lambda _: [head(200, (header, value), *length), bomb]
    with pytest.raises(NetworkError):
        await fetch()


@pytest.mark.parametrize("where", ["head", "body", "handshake"])
async def test_a_server_that_drips_is_given_up_in_time(
    fetch, server: ListServer, where: str
) -> None:
    first = b"HTTP/1.1 200 OK\r\nX: " if where == "head" else head(200, ("Content-Length", "9999"))
    server.answers["/image.list"] = lambda _: server.drip(first)
    started = asyncio.get_running_loop().time()
    with socket.create_server(("127.0.0.1", 0)) as silent:
        address = f"https://localhost:{silent.getsockname()[1]}/"
        with pytest.raises(TimedOut):
            await fetch(address if where == "handshake" else "")
    assert asyncio.get_running_loop().time() - started < 3


def redirect(where: str) -> Callable[[Request], Iterable[bytes]]:
    return lambda _: [head(302, ("Location", where), ("Content-Length", "0"))]


async def test_a_redirect_leads_on_with_the_password_only_at_the_same_host(
    fetch, server: ListServer, pki: Demo
) -> None:
    with list_server(pki) as other:
        other.serve(MESSAGE)
        other.answers["/back"] = redirect(f"{server.base}/end")
        server.serve(MESSAGE, "/end")
        server.answers["/image.list"] = redirect("/near")
        server.answers["/near"] = redirect(other.url)
        server.answers["/there-and-back"] = redirect(f"{other.base}/back")
        auth = ("token", "secret")
        assert (await fetch(auth=auth)).message == MESSAGE
        assert [one.credentials for one in server.requests] == ["token:secret"] * 2
        assert [one.credentials for one in other.requests] == [""]
        # Who was sent away does not come back with it: the way was another's choice.
        assert (await fetch(f"{server.base}/there-and-back", auth=auth)).message == MESSAGE
        assert server.requests[-1].path == "/end"
        assert server.requests[-1].credentials == ""


async def test_a_redirect_into_the_clear_is_not_followed(fetch, server: ListServer) -> None:
    connected = asyncio.Event()

    async def plain(_reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        connected.set()
        writer.close()

    listening = await asyncio.start_server(plain, "127.0.0.1", 0)
    port = listening.sockets[0].getsockname()[1]
    for where in (
        f"http://localhost:{port}/image.list",
        "file:///etc/passwd",
        server.base.replace("https://", "https://user:secret@"),
    ):
        server.answers["/image.list"] = redirect(where)
        with pytest.raises(NetworkError) as refused:
            await fetch(auth=("token", "x"))
        assert "secret" not in refused.value.message
    assert not connected.is_set()
    listening.close()
    await listening.wait_closed()


async def test_redirects_in_a_circle_end(fetch, server: ListServer) -> None:
    server.answers["/image.list"] = redirect("/image.list")
    with pytest.raises(NetworkError, match="more than 5 redirects"):
        await fetch()


async def test_the_body_of_a_redirect_is_not_read(fetch, server: ListServer) -> None:
    server.serve(MESSAGE, "/end")
    server.answers["/image.list"] = lambda _: server.flood(
        head(302, ("Location", "/end"), ("Transfer-Encoding", "chunked")), chunked(b"x" * 10_000)
    )
    assert (await fetch()).message == MESSAGE


async def test_a_file_of_the_head_is_read_within_bounds(tmp_path: Path) -> None:
    fetcher = Fetcher(limit_s=5, limit_bytes=LIMIT_BYTES)
    file = tmp_path / "a list.smime"
    file.write_bytes(MESSAGE)
    url = f"file://{tmp_path}/a%20list.smime"
    check_url(url)
    assert (await fetcher.fetch(Origin(url))).message == MESSAGE
    file.write_bytes(b"x" * (LIMIT_BYTES + 1))
    with pytest.raises(TrustRefused):
        await fetcher.fetch(Origin(url))
    os.mkfifo(tmp_path / "pipe")
    for name, error in (("pipe", ConfigInvalid), ("", ConfigInvalid), ("none", NotFound)):
        with pytest.raises(error):
            await fetcher.fetch(Origin(f"file://{tmp_path}/{name}"))


@pytest.mark.parametrize(
    "url",
    [
        "http://localhost/image.list",
        "ftp://localhost/image.list",
        "https://user:password@localhost/image.list",
        "https:///image.list",
        "file://elsewhere/image.list",
        "file:image.list",
        "file:///a%00b",
        "image.list",
        "",
    ],
)
def test_other_urls_are_refused_before_anything_is_done(url: str) -> None:
    with pytest.raises(ConfigInvalid) as refused:
        check_url(url)
    assert "password" not in refused.value.message
