"""``distrib audit``: who did what, and when."""

from __future__ import annotations

import json

import click

from distrib.cli.client import connected
from distrib.cli.output import json_option, print_json, print_table

_HIDDEN = {"sha512", "list_sha512"}


@click.command("audit")
@click.option("--limit", type=click.IntRange(1, 1000), default=50, show_default=True)
@click.option("--before", type=click.IntRange(1), metavar="ID", help="Page on from there.")
@json_option
def audit(*, limit: int, before: int | None, as_json: bool) -> None:
    """The audit log, newest first."""
    query = {"limit": limit} | ({"before": before} if before is not None else {})
    with connected() as client:
        document = client.get("/audit", **query)
    if as_json:
        print_json(document)
        return
    print_table(
        ("ID", "AT", "ACTOR", "ACTION", "SUBJECT", "DETAIL"),
        [
            (row["id"], row["at"], row["actor"], row["action"], row["subject"], _detail(row))
            for row in document["audit"]
        ],
        empty="nothing yet",
    )


def _detail(row: dict[str, dict[str, object]]) -> str:
    shown = {
        key: value
        for key, value in row["detail"].items()
        if value not in (None, "", [], {}) and key not in _HIDDEN
    }
    return " ".join(
        f"{key}={value if isinstance(value, str) else json.dumps(value)}"
        for key, value in shown.items()
    )
