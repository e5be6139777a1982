"""``distrib token``: who may use the API, and for what."""

from __future__ import annotations

import click

from distrib.cli.client import connected, path_of
from distrib.cli.output import json_option, print_json, print_line, print_table
from distrib.errors import NotFound


@click.group("token")
def token() -> None:
    """Tokens of the API."""


@token.command("create")
@click.argument("name")
@click.option(
    "--role", type=click.Choice(["viewer", "user", "batch", "operator", "admin"]), required=True
)
@click.option("--days", type=click.FloatRange(min=0, min_open=True), help="Until it expires.")
@json_option
def create(*, name: str, role: str, days: float | None, as_json: bool) -> None:
    """A new token; it is shown this once. One of role user is called as the user is on nodes."""
    body = {"name": name, "role": role, "expires_s": days * 86400 if days else None}
    with connected() as client:
        row = client.post("/tokens", body)
    if as_json:
        print_json(row)
    else:
        print_line(row["token"])


@token.command("list")
@json_option
def list_command(*, as_json: bool) -> None:
    """Every token, without its secret."""
    with connected() as client:
        document = client.get("/tokens")
    if as_json:
        print_json(document)
        return
    print_table(
        ("ID", "NAME", "ROLE", "CREATED", "BY", "EXPIRES"),
        [
            (
                row["id"],
                row["name"],
                row["role"],
                row["created_at"],
                row["created_by"],
                row["expires_at"] or "never",
            )
            for row in document["tokens"]
        ],
        empty="no tokens",
    )


@token.command("revoke")
@click.argument("name_or_id", metavar="NAME|ID")
@json_option
def revoke(*, name_or_id: str, as_json: bool) -> None:
    """Make a token worth nothing."""
    with connected() as client:
        rows = client.get("/tokens")["tokens"]
        found = [row for row in rows if name_or_id in (row["name"], str(row["id"]))]
        if not found:
            raise NotFound(f"no token {name_or_id!r}", hint="distrib token list")
        document = client.delete(path_of("tokens", found[0]["id"]))
    if as_json:
        print_json(document)
    else:
        print_line(f"token {found[0]['name']} revoked")
