"""``distrib node``: the inventory of worker nodes."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import click

from distrib.cli.client import connected, path_of
from distrib.cli.output import json_option, print_fields, print_json, print_line, print_table
from distrib.errors import NotFound
from distrib.printable import bytes_text, percent


@click.group("node")
def node() -> None:
    """The inventory of worker nodes."""


@node.command("add")
@click.argument("name")
@click.option("--address", required=True, help="IP address by which its peers reach it.")
@click.option("--rack", default="", help="For selectors and for the relay plan.")
@click.option("--label", "labels", multiple=True, metavar="KEY=VALUE", help="For selectors.")
@click.option(
    "--host-key",
    "host_keys",
    multiple=True,
    metavar="KEY|FILE.pub",
    help="Of its sshd, for pieces over SSH: no other is believed.",
)
@json_option
def add(
    *,
    name: str,
    address: str,
    rack: str,
    labels: tuple[str, ...],
    host_keys: tuple[str, ...],
    as_json: bool,
) -> None:
    """Add a node, or replace its entry. NAME is the CN of its certificate."""
    pairs = {}
    for label in labels:
        key, equals, value = label.partition("=")
        if not equals or not key or not value:
            raise click.UsageError(f"--label {label!r} is not KEY=VALUE")
        pairs[key] = value
    with connected() as client:
        entry = {"address": address, "rack": rack, "labels": pairs}
        keys = [_host_key(text) for text in host_keys]
        row = client.put(path_of("nodes", name), entry | {"host_keys": keys})
    if as_json:
        print_json(row)
    else:
        print_line(f"node {row['name']} at {row['address']}")


@node.command("list")
@json_option
def list_command(*, as_json: bool) -> None:
    """Every node, and what it holds by its newest report."""
    with connected() as client:
        document = client.get("/nodes")
    if as_json:
        print_json(document)
        return
    print_table(
        ("NODE", "ADDRESS", "RACK", "ONLINE", "READY", "LABELS"),
        [
            (
                row["name"],
                row["address"],
                row["rack"] or "-",
                "yes" if row.get("online") else "no",
                sum(1 for entry in _held(row) if entry["state"] in {"ready", "leased"}),
                [f"{key}={value}" for key, value in sorted(row["labels"].items())] or "-",
            )
            for row in document["nodes"]
        ],
        empty="no nodes",
    )


@node.command("show")
@click.argument("name")
@json_option
def show(*, name: str, as_json: bool) -> None:
    """One node, and the images that it reports."""
    with connected() as client:
        row = client.get(path_of("nodes", name))
    if as_json:
        print_json(row)
        return
    presence = row.get("presence") or {}
    report = row.get("report") or {}
    print_fields(
        (
            ("node", row["name"]),
            ("address", row["address"]),
            ("rack", row["rack"]),
            ("labels", [f"{key}={value}" for key, value in sorted(row["labels"].items())]),
            ("online", "yes" if row.get("online") else "no"),
            ("agent", presence.get("agent_version")),
            ("cache", bytes_text(presence["cache_bytes"]) if presence.get("cache_bytes") else None),
            ("site list", report.get("site_list_version")),
            ("reported", report.get("sent_at")),
        )
    )
    if _held(row):
        print_table(
            ("IMAGE", "STATE", "DONE", "REASON"),
            [
                (
                    f"{entry['identifier']}@{entry['version']}",
                    entry["state"],
                    f"{_done(entry)} %",
                    entry.get("reason") or "-",
                )
                for entry in _held(row)
            ],
            empty="",
        )


@node.command("forget")
@click.argument("name")
@json_option
def forget(*, name: str, as_json: bool) -> None:
    """Take a node off the inventory."""
    with connected() as client:
        document = client.delete(path_of("nodes", name))
    if as_json:
        print_json(document)
    else:
        print_line(f"node {name} forgotten")


def _host_key(given: str) -> str:
    """A host key as it is, or the one in a .pub file; without its comment."""
    text = given if " " in given.strip() else _read(Path(given))
    words = text.split()
    if len(words) < 2:
        raise click.UsageError(f"--host-key {given!r} is no public key, and no file with one")
    return " ".join(words[:2])


def _read(file: Path) -> str:
    try:
        return file.read_text("utf-8", errors="replace")
    except OSError as error:
        raise NotFound(f"{file}: {error.strerror}", hint="name a .pub file") from None


def _held(row: dict[str, Any]) -> list[dict[str, Any]]:
    report = row.get("report") or {}
    held: list[dict[str, Any]] = report.get("images", [])
    return held


def _done(entry: dict[str, Any]) -> int:
    complete = entry["state"] in {"ready", "leased"}
    return percent(entry.get("bytes_done", 0), entry.get("bytes_total", 0), complete=complete)
