"""``distrib event``: what event handlers were told, and how that went."""

from __future__ import annotations

from typing import Any

import click

from distrib.cli.client import connected, path_of
from distrib.cli.output import json_option, print_fields, print_json, print_line, print_table


@click.group("event")
def event() -> None:
    """Events for handlers: what they were told, how that went."""


@event.command("list")
@click.option("--type", "event_type", metavar="TYPE", help="e.g. AvailablePostfix")
@click.option("--state", type=click.Choice(["queued", "done", "given-up"]))
@click.option("--handler", metavar="NAME")
@click.option("--image", metavar="UUID[@VERSION]")
@click.option("--limit", type=click.IntRange(1, 1000), default=50, show_default=True)
@click.option("--before", type=click.IntRange(1), metavar="ID", help="Page on from there.")
@json_option
def list_(*, event_type: str | None, limit: int, as_json: bool, **query: Any) -> None:
    """Events, newest first."""
    given = query | {"type": event_type, "limit": limit}
    with connected() as client:
        document = client.get(
            "/events", **{name: value for name, value in given.items() if value is not None}
        )
    if as_json:
        print_json(document)
        return
    print_table(
        ("ID", "AT", "TYPE", "SUBJECT", "HANDLERS"),
        [
            (row["id"], row["at"], row["type"], row["subject"], _handlers(row))
            for row in document["events"]
        ],
        empty="no events",
    )


@event.command("show")
@click.argument("number", metavar="ID", type=click.IntRange(1))
@json_option
def show(*, number: int, as_json: bool) -> None:
    """One event with its variables and what handlers said."""
    with connected() as client:
        document = client.get(path_of("events", number))
    _print(document, as_json=as_json)


@event.command("retry")
@click.argument("number", metavar="ID", type=click.IntRange(1))
@click.option("--handler", metavar="NAME", help="This handler only.")
@json_option
def retry(*, number: int, handler: str | None, as_json: bool) -> None:
    """Queue again what was given up; what waits is tried at once."""
    body = {"handler": handler} if handler is not None else {}
    with connected() as client:
        document = client.post(path_of("events", number, "retry"), body)
    _print(document, as_json=as_json)


@event.command("replay")
@click.argument("handler", metavar="HANDLER")
@json_option
def replay(*, handler: str, as_json: bool) -> None:
    """Tell one handler of everything that is approved now, e.g. one that is new."""
    with connected() as client:
        document = client.post(path_of("events", "replay", handler), {})
    if as_json:
        print_json(document)
        return
    images = document["images"]
    print_line(
        f"{handler} is told of {len(images)} images: events {document['first']} to"
        f" {document['last']}"
    )
    for image in images:
        print_line(f"  {image}")


def _print(document: dict[str, Any], *, as_json: bool) -> None:
    if as_json:
        print_json(document)
        return
    print_fields([(name, document[name]) for name in ("id", "at", "type", "subject")])
    for name, value in sorted(document["environment"].items()):
        print_line(f"  {name}={value}")
    for one in document["deliveries"]:
        print_line(f"{_told(one)}, {one['attempts']} attempts, next {one['next_at'] or 'none'}")
        for line in one["output"].splitlines():
            print_line(f"  | {line}")


def _handlers(row: dict[str, Any]) -> str:
    return ", ".join(_told(one) for one in row["deliveries"])


def _told(delivery: dict[str, Any]) -> str:
    status = delivery["exit_status"]
    ended = "" if status in {None, 0} else f" (exit {status})"
    return f"{delivery['handler']}: {delivery['state']}{ended}"
