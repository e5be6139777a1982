"""``distrib endorser``: who may sign which image list."""

from __future__ import annotations

import click

from distrib.cli.client import connected, path_of
from distrib.cli.output import json_option, print_json, print_line, print_table
from distrib.errors import Conflict


@click.group("endorser")
def endorser() -> None:
    """Who may sign which image list."""


@endorser.command("add")
@click.option("--dn", required=True, help="Subject of the endorser's certificate.")
@click.option("--ca", required=True, help="Its issuer.")
@click.option("--list", "list_identifier", metavar="UUID", help="For this list only.")
@click.option(
    "--replace", is_flag=True, help="In the place of everybody who is named for that list."
)
@json_option
def add(*, dn: str, ca: str, list_identifier: str | None, replace: bool, as_json: bool) -> None:
    """Let somebody sign image lists for this site.

    With --replace nobody else may sign the list any more, also not whom its subscription names;
    what was accepted before stays.
    """
    if replace and list_identifier is None:
        raise click.UsageError("--replace needs --list")
    body = {"dn": dn, "ca": ca, "list": list_identifier, "replace": replace}
    with connected() as client:
        try:
            row = client.post("/endorsers", body)
            already = ""
        except Conflict as error:
            same = error.ids.get("endorser")
            found = [one for one in client.get("/endorsers")["endorsers"] if one["id"] == same]
            if not found:
                raise
            row, already = found[0], " already"
    if as_json:
        print_json(row)
    else:
        print_line(f"endorser {row['id']}{already}: {row['dn']} for {row['list'] or 'any list'}")


@endorser.command("list")
@json_option
def list_command(*, as_json: bool) -> None:
    """Every entry."""
    with connected() as client:
        document = client.get("/endorsers")
    if as_json:
        print_json(document)
        return
    rows = [(row["id"], row["list"] or "any", row) for row in document["endorsers"]]
    rows += [
        (f"subscription {row['subscription']}", row["list"] or "its first", row)
        for row in document.get("subscriptions", [])
    ]
    print_table(
        ("ID", "LIST", "ENDORSER", "CERTIFIED BY"),
        [(name, image_list, row["dn"], row["ca"]) for name, image_list, row in rows],
        empty="no endorsers: no list is accepted",
    )


@endorser.command("remove")
@click.argument("endorser_id", metavar="ID", type=int)
@json_option
def remove(*, endorser_id: int, as_json: bool) -> None:
    """Accept no more lists of this endorser; what was approved stays."""
    with connected() as client:
        document = client.delete(path_of("endorsers", endorser_id))
    if as_json:
        print_json(document)
    else:
        print_line(f"endorser {endorser_id} removed")
