"""``distrib list subscribe | unsubscribe | poll | show``: lists that this site follows."""

from __future__ import annotations

import os
import sys
from pathlib import Path
from typing import Any

import click

from distrib.cli.client import ApiClient, connected, path_of
from distrib.cli.output import json_option, print_fields, print_json, print_line, print_table
from distrib.errors import ConfigInvalid, ExitStatus, NotFound, OperatorError
from distrib.printable import printable

#: The head gives a poll 300 s.
_POLL_S = 330.0
PASSWORD_VARIABLE = "DISTRIB_PASSWORD"  # noqa: S105 - the name of a variable


@click.command("subscribe")
@click.argument("url")
@click.option("--endorser", metavar="DN", required=True, help="Who signs the list.")
@click.option("--ca", metavar="DN", required=True, help="Who certified the endorser.")
@click.option("--identifier", metavar="UUID", help="Which list it must be; else the first that is.")
@click.option(
    "--take",
    type=click.Choice(["none", "known", "all"]),
    default="known",
    show_default=True,
    help="What is taken in unasked: nothing, new versions of images that the site has, everything.",
)
@click.option("--user", metavar="NAME", help=f"For the server; the password: ${PASSWORD_VARIABLE}.")
@click.option(
    "--password-file",
    type=click.Path(path_type=Path, dir_okay=False),
    help="A file that holds the password alone.",
)
@click.option("--ca-file", metavar="PATH", help="CA of the server (PEM), a path on the head.")
@click.option("--interval", "interval_s", type=click.IntRange(min=10), help="Seconds. [3600]")
@click.option("--alarm-age", "alarm_age_s", type=click.IntRange(min=10), help="Seconds. [86400]")
@json_option
def subscribe(
    *,
    url: str,
    endorser: str,
    ca: str,
    identifier: str | None,
    take: str,
    user: str | None,
    password_file: Path | None,
    ca_file: str | None,
    interval_s: int | None,
    alarm_age_s: int | None,
    as_json: bool,
) -> None:
    """Follow the image list at URL: https, or file:///PATH on the head."""
    body = {
        "url": url,
        "dn": endorser,
        "ca": ca,
        "identifier": identifier,
        "take": take,
        "username": user,
        "password": _password(user, password_file),
        "ca_file": ca_file,
        "interval_s": interval_s,
        "alarm_age_s": alarm_age_s,
    }
    with connected() as client:
        row = client.post(
            "/subscriptions", {key: value for key, value in body.items() if value is not None}
        )
    if as_json:
        print_json(row)
    else:
        print_line(f"subscription {row['id']}: {row['url']}, polled every {row['interval_s']} s")


@click.command("unsubscribe")
@click.argument("subscription", metavar="URL|ID")
@json_option
def unsubscribe(*, subscription: str, as_json: bool) -> None:
    """Follow a list no more. Images that were taken in stay."""
    with connected() as client:
        number = _number(client, subscription)
        document = client.delete(path_of("subscriptions", number))
    if as_json:
        print_json(document)
    else:
        print_line(f"subscription {number} removed")


@click.command("poll")
@click.argument("subscription", metavar="[URL|ID]", required=False)
@click.option("--all", "everything", is_flag=True, help="Every subscription, one after another.")
@json_option
def poll(*, subscription: str | None, everything: bool, as_json: bool) -> None:
    """Fetch a list now: exit 0, or that of what went wrong; 8 if only some went wrong."""
    if (subscription is None) != everything:
        raise click.UsageError("name a subscription, or --all")
    rows = []
    with connected() as client:
        numbers = _numbers(client) if subscription is None else [_number(client, subscription)]
        for number in numbers:
            row = client.post(path_of("subscriptions", number, "poll"), {}, timeout_s=_POLL_S)
            rows.append(row)
            if not as_json:
                _print_outcome(row)
    if as_json:
        print_json({"subscriptions": rows} if everything else rows[0])
    sys.exit(_status([int(row["outcome"]["exit"]) for row in rows]))


@click.command("show")
@click.argument("subscription", metavar="[URL|ID]", required=False)
@json_option
def show(*, subscription: str | None, as_json: bool) -> None:
    """Every subscription; or one, with how its last poll ended and its images."""
    with connected() as client:
        if subscription is None:
            document = client.get("/subscriptions")
        else:
            document = client.get(path_of("subscriptions", _number(client, subscription)))
    if as_json:
        print_json(document)
    elif subscription is None:
        _print_all(document["subscriptions"])
    else:
        _print_one(document)


def _print_all(rows: list[dict[str, Any]]) -> None:
    print_table(
        ("ID", "URL", "LIST", "VERSION", "AGE", "LAST POLL", "IMAGES"),
        [
            (
                row["id"],
                row["url"],
                row["identifier"] or "-",
                (row["list"] or {}).get("version", "-"),
                _age(row),
                (row["outcome"] or {}).get("code", "not yet"),
                [f"{count} {state}" for state, count in sorted(row["counts"].items())] or "-",
            )
            for row in rows
        ],
        empty="no subscriptions",
    )


def _print_one(row: dict[str, Any]) -> None:
    found, outcome = row["list"] or {}, row["outcome"] or {}
    expired = " (expired: its images are off the site list)" if found.get("expired") else ""
    print_fields(
        (
            ("subscription", row["id"]),
            ("url", row["url"]),
            ("list", row["identifier"]),
            ("endorser", row["dn"]),
            ("certified by", row["ca"]),
            ("takes", row["take"]),
            ("user", row["username"]),
            ("server's CA", row["ca_file"]),
            ("interval", f"{row['interval_s']} s, next {row['next_at']}"),
            ("version", found.get("version")),
            ("expires", f"{found['expires']}{expired}" if found else None),
            ("sha512", found.get("sha512")),
            ("age", _age(row)),
            ("last poll", f"{row['polled_at']}: {outcome['code']}" if outcome else "not yet"),
            ("failures", row["failures"] or None),
        )
    )
    _print_reasons(outcome)
    if row["images"]:
        print_table(
            ("IMAGE", "TITLE", "STATE", "SINCE", "REASON"),
            [
                (
                    image["image"],
                    image["title"],
                    f"{image['state']}, lapsed" if image["lapsed_at"] else image["state"],
                    image["since"],
                    image["reason"] or "-",
                )
                for image in row["images"]
            ],
            empty="",
        )


def _print_outcome(row: dict[str, Any]) -> None:
    outcome = row["outcome"]
    version = (row["list"] or {}).get("version")
    known = f", version {version}" if version else ""
    print_line(f"subscription {row['id']} {row['url']}: {outcome['code']}{known}")
    _print_reasons(outcome, err=True)


def _print_reasons(outcome: dict[str, Any], *, err: bool = False) -> None:
    reasons = outcome.get("reasons") or []
    lines = [f"{one['code']}: {one['message']}{_hint(one)}" for one in reasons]
    if not lines and outcome.get("message"):
        lines = [outcome["message"] + _hint(outcome)]
    lines += [
        f"{one['image']} {one['code']}: {one['message']}" for one in outcome.get("remarks", [])
    ]
    for line in lines:
        click.echo(printable(f"  {line}"), err=err)


def _hint(told: dict[str, Any]) -> str:
    return f" ({told['hint']})" if told.get("hint") else ""


def _age(row: dict[str, Any]) -> str:
    seconds = int(row["age_s"])
    text = f"{seconds} s" if seconds < 600 else f"{seconds // 60} min"
    text = text if seconds < 36000 else f"{seconds // 3600} h"
    if row["fresh_at"] is None:
        text = f"never, for {text}"
    return f"{text} TOO OLD" if row["stale"] else text


def _status(found: list[int]) -> int:
    bad = {status for status in found if status}
    if not bad:
        return int(ExitStatus.DONE)
    return bad.pop() if len(bad) == 1 and all(found) else int(ExitStatus.PARTIAL)


def _numbers(client: ApiClient) -> list[int]:
    return [int(row["id"]) for row in client.get("/subscriptions")["subscriptions"]]


def _number(client: ApiClient, name: str) -> int:
    if name.isascii() and name.isdigit():
        return int(name)
    for row in client.get("/subscriptions")["subscriptions"]:
        if name in {row["url"], row["identifier"]}:
            return int(row["id"])
    raise NotFound(f"no subscription to {name[:200]}", hint="distrib list show names them all")


def _password(user: str | None, file: Path | None) -> str | None:
    if user is None:
        if file is not None:
            raise OperatorError("--password-file without --user", hint="give both, or none")
        return None
    if file is not None:
        try:
            return file.read_text(encoding="utf-8").rstrip("\r\n")
        except (OSError, UnicodeDecodeError) as error:
            raise ConfigInvalid(f"{file}: {error}", hint="a file with the password alone") from None
    if os.environ.get(PASSWORD_VARIABLE):
        return os.environ[PASSWORD_VARIABLE]
    if not sys.stdin.isatty():
        raise OperatorError(
            f"no password for {user}, and no terminal to ask for it",
            hint=f"--password-file, or {PASSWORD_VARIABLE} in the environment",
        )
    return str(click.prompt(f"Password of {user}", hide_input=True, err=True))
