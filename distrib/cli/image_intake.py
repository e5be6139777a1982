"""``distrib image take`` and ``distrib image checks``."""

from __future__ import annotations

import time
from typing import Any

import click

from distrib.cli.client import LONG_S, ApiClient, connected, path_of, remote_error
from distrib.cli.output import json_option, print_json, print_line, print_table
from distrib.cli.progress import progress
from distrib.errors import TimedOut

_LOOK_S = 1.0
_PASS = "pass"  # noqa: S105 - no password


@click.command("take")
@click.argument("ref", metavar="IMAGE")
@click.option("--wait", is_flag=True, help="Until it is in quarantine, or cannot be had.")
@click.option("--timeout", "timeout_s", type=float, help="Wait no longer than these seconds.")
@json_option
def take(*, ref: str, wait: bool, timeout_s: float | None, as_json: bool) -> None:
    """Let the head fetch an announced IMAGE from where its list says."""
    with connected() as client:
        row = client.post(path_of("images", ref, "take"), {})
        if wait:
            row = _wait(client, row, timeout_s=timeout_s, silent=as_json)
    if as_json:
        print_json(row)
        return
    print_line(f"{row['image']} {row['title']}: {row['state']}")
    for told in check_lines(row, missed_only=True):
        print_line(told)


@click.command("checks")
@click.argument("ref", metavar="IMAGE")
@click.option("--again", is_flag=True, help="Run them again, on an image in quarantine.")
@json_option
def checks(*, ref: str, again: bool, as_json: bool) -> None:
    """What the site's checks say of IMAGE; docs/formats/checks.md describes each."""
    path = path_of("images", ref, "checks")
    with connected() as client:
        document = client.post(path, {}, timeout_s=LONG_S) if again else client.get(path)
    if as_json:
        print_json(document)
        return
    required = set(document["required"])
    print_table(
        ("CHECK", "OUTCOME", "REQUIRED", "WHAT"),
        [
            (one["name"], one["outcome"], "yes" if one["name"] in required else "no", one["text"])
            for one in document["checks"]
        ],
        empty=f"{document['image']} is {document['state']}: not checked yet",
    )


def check_lines(row: dict[str, Any], *, missed_only: bool = False) -> list[str]:
    """One line a check."""
    return [
        f"check {one['name']}: {one['outcome']}: {one['text']}"
        for one in row.get("checks", ())
        if not (missed_only and one["outcome"] == _PASS)
    ]


def _wait(
    client: ApiClient, row: dict[str, Any], *, timeout_s: float | None, silent: bool
) -> dict[str, Any]:
    deadline = None if timeout_s is None else time.monotonic() + timeout_s
    total_bytes = row["endorsed"]["size_bytes"]
    with progress(f"fetching {row['title']}", total_bytes, silent=silent) as advance:
        while row["state"] == "expected":
            fault = row["fault"]
            if fault and "again_at" not in fault:
                raise remote_error(fault)
            if deadline is not None and time.monotonic() >= deadline:
                raise TimedOut(
                    f"image {row['image']} is not here after {timeout_s:g} s",
                    hint="it goes on: distrib image show says how far it is",
                    image=row["image"],
                )
            time.sleep(_LOOK_S)
            row = client.get(path_of("images", row["image"]))
            advance(row["fetched_bytes"])
    return row
