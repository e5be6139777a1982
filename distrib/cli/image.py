"""``distrib image``: what the site takes in, approves, denies and calls by names of its own."""

from __future__ import annotations

import base64
from pathlib import Path
from typing import Any

import click

from distrib.cli.client import LONG_S, ApiClient, connected, path_of
from distrib.cli.image_file import FILE, chunks_of, sha512_of, size_of
from distrib.cli.image_intake import check_lines, checks, take
from distrib.cli.image_proposals import print_own, propose, withdraw
from distrib.cli.image_wants import want, wants
from distrib.cli.output import json_option, print_fields, print_json, print_line, print_table
from distrib.cli.progress import progress
from distrib.cli.provenance import history, print_uses, where_running
from distrib.errors import ImageError, NotFound
from distrib.printable import bytes_text

_LIST_MAX_BYTES = 12 << 20


@click.group("image")
def image() -> None:
    """Images of the site: add, approve, deny, name."""


image.add_command(history)
image.add_command(where_running)
image.add_command(take)
image.add_command(checks)
image.add_command(propose)
image.add_command(withdraw)
image.add_command(want)
image.add_command(wants)


@image.command("add")
@click.argument("file", type=FILE)
@click.option("--list", "list_file", type=FILE, required=True, help="The signed image list.")
@click.option("--title", help="Which image of the list: its title …")
@click.option("--version", help="… and version; else it is found by the file's SHA-512.")
@click.option("--alias", "aliases", multiple=True, help="The site's name for it.")
@click.option("--approve/--no-approve", default=True, show_default=True, help="Let it run here.")
@click.option("--force", default="", metavar="REASON", help="Why, although checks failed.")
@json_option
def add(
    *,
    file: Path,
    list_file: Path,
    title: str | None,
    version: str | None,
    aliases: tuple[str, ...],
    approve: bool,
    force: str,
    as_json: bool,
) -> None:
    """Take the image FILE in, as the signed list LIST endorses it, and approve it."""
    if aliases and not approve:
        raise click.UsageError("--alias takes an approval: leave --no-approve away")
    _check_aliases(aliases)
    signed = _signed_list(list_file)
    size_bytes = size_of(file)
    choice: dict[str, Any] = {"size_bytes": size_bytes, "title": title, "version": version}
    if title is None and version is None:
        with progress(f"hashing {file.name}", size_bytes, silent=as_json) as advance:
            choice["sha512"] = sha512_of(file, advance)
    with connected() as client:
        body = {"list": base64.b64encode(signed).decode()} | choice
        found = client.post("/images", body, timeout_s=120)
        if found["state"] == "expected":
            found = _send(client, found["image"], file, size_bytes, silent=as_json)
        if approve and (aliases or found["state"] != "approved"):
            found = client.post(
                path_of("images", found["image"], "approve"),
                {"aliases": list(aliases), "force": force},
                timeout_s=LONG_S,
            )
    _print_image(found, as_json=as_json)


@image.command("list")
@click.option("--mine", is_flag=True, help="Only what you have proposed; for tokens of users.")
@json_option
def list_command(*, mine: bool, as_json: bool) -> None:
    """Every image version that the site knows."""
    if mine:
        print_own(as_json=as_json)
        return
    with connected() as client:
        document = client.get("/images")
    if as_json:
        print_json(document)
        return
    print_table(
        ("IMAGE", "STATE", "SIZE", "ALIASES", "TITLE"),
        [
            (
                row["image"],
                row["state"],
                bytes_text(row["endorsed"]["size_bytes"]),
                row["aliases"] or "-",
                row["title"],
            )
            for row in document["images"]
        ],
        empty="no images",
    )


@image.command("show")
@click.argument("ref", metavar="IMAGE")
@json_option
def show(*, ref: str, as_json: bool) -> None:
    """One image: ALIAS or UUID, optionally @VERSION."""
    with connected() as client:
        document = client.get(path_of("images", ref))
    _print_image(document, as_json=as_json, full=True)


@image.command("approve")
@click.argument("ref", metavar="IMAGE")
@click.option("--alias", "aliases", multiple=True, help="The site's name for it.")
@click.option("--user", "users", multiple=True, help="Only these users may lease it.")
@click.option(
    "--everybody",
    "--for-all",
    is_flag=True,
    help="Every user may lease it (the default, but for what a user proposed).",
)
@click.option("--reason", default="", help="For the audit log.")
@click.option("--force", default="", metavar="REASON", help="Why, although checks failed.")
@json_option
def approve_command(
    *,
    ref: str,
    aliases: tuple[str, ...],
    users: tuple[str, ...],
    everybody: bool,
    reason: str,
    force: str,
    as_json: bool,
) -> None:
    """Let a quarantined image run here: its torrent is made, the site list signed."""
    if users and everybody:
        raise click.UsageError("--user and --everybody exclude each other")
    body: dict[str, Any] = {"aliases": list(aliases), "reason": reason, "force": force}
    if users or everybody:
        body["audience"] = list(users) or "all"
    with connected() as client:
        document = client.post(path_of("images", ref, "approve"), body, timeout_s=LONG_S)
    _print_image(document, as_json=as_json)


@image.command("deny")
@click.argument("ref", metavar="IMAGE")
@click.option("--reason", required=True, help="For the audit log.")
@click.option("--kill", is_flag=True, help="End what runs from it, now and where a node returns.")
@json_option
def deny(*, ref: str, reason: str, kill: bool, as_json: bool) -> None:
    """Take an image version off the site list at once. What runs goes on, but with --kill."""
    body = {"reason": reason, "kill": kill} if kill else {"reason": reason}
    with connected() as client:
        document = client.post(path_of("images", ref, "deny"), body)
    _print_image(document, as_json=as_json)
    if kill and not as_json:
        print_uses(document["uses"], document)


@image.command("undeny")
@click.argument("ref", metavar="IMAGE")
@click.option("--reason", required=True, help="For the audit log.")
@json_option
def undeny(*, ref: str, reason: str, as_json: bool) -> None:
    """Take a denial back, where the endorser still lists the image: it is again what it was."""
    with connected() as client:
        document = client.post(path_of("images", ref, "undeny"), {"reason": reason})
    _print_image(document, as_json=as_json)


@image.command("alias")
@click.argument("alias")
@click.argument("ref", metavar="IMAGE")
@json_option
def alias_command(*, alias: str, ref: str, as_json: bool) -> None:
    """Let ALIAS mean IMAGE (UUID or another alias); it may have meant another one before."""
    if "@" in ref:
        raise click.UsageError("an alias is for all versions of an image: leave @VERSION away")
    with connected() as client:
        document = client.put(path_of("aliases", alias), {"identifier": ref})
    if as_json:
        print_json(document)
    else:
        print_line(f"{document['alias']} is {document['identifier']}")


def _print_image(row: dict[str, Any], *, as_json: bool, full: bool = False) -> None:
    if as_json:
        print_json(row)
        return
    if not full:
        names = f" ({', '.join(row['aliases'])})" if row["aliases"] else ""
        print_line(f"{row['image']}{names} {row['title']}: {row['state']}")
        if row["infohash"] and row["state"] == "approved":
            print_line(f"info-hash {row['infohash']}")
        for told in check_lines(row, missed_only=True):
            print_line(told)
        return
    audience = row["audience"]
    others = [f"{other['version']} ({other['state']})" for other in row.get("versions", ())]
    print_fields(
        (
            ("image", row["image"]),
            ("title", row["title"]),
            ("aliases", row["aliases"]),
            ("state", f"{row['state']} since {row['since']}"),
            ("reason", row["reason"]),
            ("until", row["until"]),
            ("versions", others),
            ("audience", "everybody" if audience == "all" else audience),
            ("size", bytes_text(row["endorsed"]["size_bytes"])),
            ("SHA-512", row["endorsed"]["sha512"]),
            ("raw size", bytes_text(row["size_bytes"]) if row["size_bytes"] else None),
            ("raw SHA-512", row["sha512"]),
            ("fetched from", row.get("source")),
            ("last fault", (row.get("fault") or {}).get("message")),
            ("info-hash", row["infohash"]),
            ("pieces of", bytes_text(row["piece_bytes"]) if row["piece_bytes"] else None),
            ("list", f"{row['origin']['list']} version {row['origin']['list_version']}"),
            ("proposed by", row.get("proposed_by")),
            ("endorser", row["origin"]["endorser_dn"]),
            ("certified by", row["origin"]["endorser_ca"]),
        )
    )
    for told in check_lines(row):
        print_line(told)


def _send(
    client: ApiClient, name: str, file: Path, size_bytes: int, *, silent: bool
) -> dict[str, Any]:
    with progress(f"sending {file.name}", size_bytes, silent=silent) as advance:
        answer: dict[str, Any] = client.upload(
            path_of("images", name, "content"), chunks_of(file, advance), size_bytes=size_bytes
        )
    return answer


def _check_aliases(aliases: tuple[str, ...]) -> None:
    from distrib.trust.siteimage import check_alias  # noqa: PLC0415

    for alias in aliases:
        check_alias(alias)


def _signed_list(file: Path) -> bytes:
    """The list's bytes, before a large file is hashed and sent for a list that is none."""
    from distrib.trust.imagelist import ImageListInvalid, parse_image_list  # noqa: PLC0415
    from distrib.trust.reasons import refusal  # noqa: PLC0415
    from distrib.trust.signature import open_smime  # noqa: PLC0415

    message = _list_bytes(file)
    opened = open_smime(message)
    reasons = opened.reasons
    if not reasons:
        try:
            parse_image_list(opened.document)
        except ImageListInvalid as error:
            reasons = error.found
    if reasons:
        raise refusal(f"{file}", reasons, hint="--list takes the list as the endorser signed it")
    return message


def _list_bytes(file: Path) -> bytes:
    try:
        with file.open("rb") as stream:
            message = stream.read(_LIST_MAX_BYTES + 1)
    except OSError as error:
        raise NotFound(f"{file}: {error.strerror}", hint="check --list") from None
    if len(message) > _LIST_MAX_BYTES:
        raise ImageError(
            f"{file}: more than {_LIST_MAX_BYTES} bytes", hint="this is no signed image list"
        )
    return message
