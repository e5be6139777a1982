"""``distrib image history`` and ``where-running``: what became of an image."""

from __future__ import annotations

from typing import Any

import click

from distrib.cli.client import connected, path_of
from distrib.cli.output import json_option, print_json, print_line, print_table


@click.command("history")
@click.argument("ref", metavar="IMAGE")
@json_option
def history(*, ref: str, as_json: bool) -> None:
    """Everything that happened to an image, oldest first: lists, checks, approvals, rollouts."""
    with connected() as client:
        document = client.get(path_of("images", ref, "history"))
    if as_json:
        print_json(document)
        return
    names = f" ({', '.join(document['aliases'])})" if document["aliases"] else ""
    print_line(f"{document['identifier']}{names}")
    print_table(
        ("TIME", "VERSION", "WHAT", "WHO", "WHY"),
        [
            (row["at"], row["version"] or "-", row["what"], row["actor"] or "-", row["text"])
            for row in document["history"]
        ],
        empty="nothing",
    )


@click.command("where-running")
@click.argument("ref", metavar="IMAGE")
@json_option
def where_running(*, ref: str, as_json: bool) -> None:
    """Who uses an image on which node, denied ones too, as the nodes last said."""
    with connected() as client:
        document = client.get(path_of("images", ref, "where-running"))
    if as_json:
        print_json(document)
        return
    rows = [row for use in document["uses"] for row in _rows(use)]
    titles = ("NODE", "VERSION", "STATE", "USER", "HOLDER", "SINCE", "LEASE")
    print_table(titles, rows, empty="in use nowhere")


def print_uses(uses: list[dict[str, Any]], image: dict[str, Any]) -> None:
    """What is being ended, by node, user and job."""
    named = {"version": image["version"], "state": image["state"]}
    rows = [row for use in uses for row in _rows(named | use)]
    titles = ("NODE", "VERSION", "STATE", "USER", "HOLDER", "SINCE", "LEASE")
    print_table(titles, rows, empty="in use nowhere; whoever returns with it is told to end it")


def _rows(use: dict[str, Any]) -> list[tuple[object, ...]]:
    node = use["node"] if use["online"] else f"{use['node']} (offline)"
    rows: list[tuple[object, ...]] = [
        (
            node,
            use["version"],
            use["state"],
            holder["user"],
            _holder_text(holder),
            holder.get("since"),
            holder["lease"],
        )
        for holder in use["holders"]
    ]
    untold = use["leases"] - len(use["holders"])
    if untold > 0:
        rows.append((node, use["version"], use["state"], f"{untold} more", None, None, None))
    return rows


def _holder_text(holder: dict[str, Any]) -> str:
    match holder["kind"]:
        case "process":
            return f"process {holder['pid']}"
        case "job":
            return f"job {holder['job']}"
        case _:
            return f"until {holder['until']}"
