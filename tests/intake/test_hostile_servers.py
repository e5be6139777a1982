"""Servers and URLs that mean no good: each costs one image its download, and no other one."""

from __future__ import annotations

import pytest

from distrib.catalogue import download
from tests.intake.stories import Site
from tests.subscriptions.server import head

CONTENT = bytes(range(256)) * 4096


def test_a_server_that_drips_is_given_up(site: Site, monkeypatch: pytest.MonkeyPatch) -> None:
    site.settings["attempts"] = 1
    monkeypatch.setattr(download, "BATCH_S", 0.5)
    site.server.answers["/worker"] = lambda _request: site.server.drip(
        head(200, ("Content-Length", str(len(CONTENT))))
    )
    site.announce(CONTENT)
    assert site.collect().fault["code"] == "timed-out"


def test_a_server_that_drips_its_headers_is_given_up(
    site: Site, monkeypatch: pytest.MonkeyPatch
) -> None:
    site.settings["attempts"] = 1
    monkeypatch.setattr(download, "ANSWER_S", 3.0)
    site.server.answers["/worker"] = lambda _request: site.server.drip(b"HTTP/1.1 200 OK\r\nX: ")
    site.announce(CONTENT)
    fault = site.collect().fault
    assert fault["code"] == "timed-out"
    assert "no answer in 3 s" in fault["message"]


@pytest.mark.parametrize(
    "uri",
    ["https://localhost:99999999/x", "https://[::1/x", "https://a\u00ad./x", "file://[/x", "x"],
)
def test_a_url_that_leads_nowhere_ends_that_image_only(site: Site, uri: str) -> None:
    site.settings["attempts"] = 1
    site.announce(CONTENT, uri=uri)
    fault = site.collect().fault
    assert fault["code"] in {"config-invalid", "unreachable"}, fault


@pytest.mark.parametrize(
    "where",
    [b"https://localhost:99999999/", b"https://[::1/", b"https://\xff\xfe/", b"https://a..b/"],
)
def test_a_redirect_to_nowhere_ends_that_image_only(site: Site, where: bytes) -> None:
    site.settings["attempts"] = 1
    answer = b"HTTP/1.1 302 X\r\nSet-Cookie: a=\xe2\x80\xae\r\nLocation: " + where + b"\r\n\r\n"
    site.server.answers["/worker"] = lambda _request: iter([answer])
    site.announce(CONTENT)
    assert site.collect().fault["code"] == "unreachable"


def test_a_fault_of_ours_ends_one_image_only(site: Site, monkeypatch: pytest.MonkeyPatch) -> None:
    async def broken(*_: object, **_more: object) -> None:
        raise ZeroDivisionError("a mistake")

    site.settings["attempts"] = 1
    monkeypatch.setattr(download.Download, "fetch", broken)
    site.announce(CONTENT)
    assert site.collect().fault["code"] == "bug"
