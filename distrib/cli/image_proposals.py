"""``distrib image propose`` and ``withdraw``: a user's own images."""

from __future__ import annotations

import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import click

from distrib.cli.client import ApiClient, connected, path_of, remote_error
from distrib.cli.image_file import FILE, sha512_of, size_of
from distrib.cli.image_intake import check_lines
from distrib.cli.output import json_option, print_json, print_line, print_table
from distrib.cli.progress import progress
from distrib.errors import Conflict, NetworkError, NotFound, TimedOut
from distrib.printable import bytes_text

_LOOK_S = 0.5
_TRIES = 8
_WAIT_S = 0.5


@click.command("propose")
@click.argument("file", type=FILE)
@click.option("--title", required=True, help="What it is, in one line.")
@click.option("--for", "user", metavar="USER", help="Whose image it is (admins; else your own).")
@click.option("--format", "form", help="e.g. qcow2; else what the bytes say.")
@click.option("--wait/--no-wait", default=True, show_default=True, help="Until it was checked.")
@click.option("--timeout", "timeout_s", type=float, help="Wait no longer than these seconds.")
@json_option
def propose(
    *,
    file: Path,
    title: str,
    user: str | None,
    form: str | None,
    wait: bool,
    timeout_s: float | None,
    as_json: bool,
) -> None:
    """Bring the image FILE, for yourself alone. Given again, it goes on where it was broken off."""
    size_bytes = size_of(file)
    with progress(f"hashing {file.name}", size_bytes, silent=as_json) as advance:
        sha512 = sha512_of(file, advance)
    body = {"title": title, "size_bytes": size_bytes, "sha512": sha512, "format": form}
    if user is not None:
        body["user"] = user
    with connected() as client:
        row = client.post("/proposals", body, timeout_s=120)
        if row["state"] == "expected" and row["received_bytes"] < size_bytes:
            _send(client, row, file, size_bytes, silent=as_json)
        path = path_of("proposals", row["identifier"])
        row = _wait(client, path, timeout_s=timeout_s) if wait else client.get(path)
    if as_json:
        print_json(row)
        return
    print_line(f"{row['image']} {row['title']}: {row['state']}")
    if row["state"] == "approved":
        print_line(f"for {_audience(row)}: distrib-agent lease {row['identifier']}")
    for told in check_lines(row, missed_only=True):
        print_line(told)
    if row["awaits"] == "admin":
        print_line("an admin has to approve it")


@click.command("withdraw")
@click.argument("identifier", metavar="UUID")
@json_option
def withdraw(*, identifier: str, as_json: bool) -> None:
    """Take an image that was proposed off the site, and its bytes off the head."""
    with connected() as client:
        document = client.delete(path_of("proposals", identifier.partition("@")[0]))
    if as_json:
        print_json(document)
    else:
        print_line(f"{document['withdrawn']} withdrawn")


def print_own(*, as_json: bool) -> None:
    """``distrib image list --mine``."""
    with connected() as client:
        document = client.get("/proposals")
    if as_json:
        print_json(document)
        return
    print_table(
        ("IMAGE", "STATE", "SIZE", "CAME", "FOR", "TITLE", "FAULT"),
        [
            (
                row["image"],
                row["state"],
                bytes_text(row["endorsed"]["size_bytes"]),
                bytes_text(row["received_bytes"]),
                _audience(row),
                row["title"],
                (row["fault"] or {}).get("message") or row["reason"] or "-",
            )
            for row in document["images"]
        ],
        empty="no images: distrib image propose brings one",
    )


def _audience(row: dict[str, Any]) -> str:
    audience = row["audience"]
    return "everybody" if audience == "all" else ", ".join(audience)


def _send(
    client: ApiClient, row: dict[str, Any], file: Path, size_bytes: int, *, silent: bool
) -> None:
    """Part after part, from where the head says; a lost connection is tried again."""
    path = path_of("proposals", row["identifier"], "content")
    part_bytes, done, failed = row["part_max_bytes"], row["received_bytes"], 0
    with progress(f"sending {file.name}", size_bytes, silent=silent) as advance:
        while done < size_bytes:
            try:
                part = _part(file, done, part_bytes)
                answer = client.upload(f"{path}?offset={done}", iter([part]), size_bytes=len(part))
                done, failed = answer["received_bytes"], 0
                advance(done)
            except Conflict as error:
                received = error.ids.get("received_bytes")
                if not isinstance(received, int) or received == done or failed >= _TRIES:
                    raise
                # A part had arrived, and its answer was lost.
                done, failed = received, failed + 1
            except NetworkError:
                failed += 1
                if failed >= _TRIES:
                    raise
                time.sleep(_WAIT_S * 2**failed)


def _part(file: Path, offset: int, size_bytes: int) -> bytes:
    try:
        with file.open("rb") as stream:
            stream.seek(offset)
            part = stream.read(size_bytes)
    except OSError as error:
        raise NotFound(f"{file}: {error.strerror}", hint="check the path") from None
    if not part:
        raise NotFound(f"{file}: it ends at {offset} bytes", hint="it has changed meanwhile")
    return part


def _wait(client: ApiClient, path: str, *, timeout_s: float | None) -> dict[str, Any]:
    deadline = None if timeout_s is None else time.monotonic() + timeout_s
    for row in _looks(client, path):
        fault = row["fault"]
        if fault and "again_at" not in fault:
            raise remote_error(fault)
        if not _goes_on(row):
            return row
        if deadline is not None and time.monotonic() >= deadline:
            raise TimedOut(
                f"image {row['image']} is not checked after {timeout_s:g} s",
                hint="it goes on: distrib image list --mine",
                image=row["image"],
            )
    raise AssertionError


def _looks(client: ApiClient, path: str) -> Iterator[dict[str, Any]]:
    while True:
        yield client.get(path)
        time.sleep(_LOOK_S)


def _goes_on(row: dict[str, Any]) -> bool:
    # The file was sent: while it moves on, the row may be older than the folder.
    return row["state"] == "expected" or row["awaits"] in {"checks", "admission"}
