"""``distrib swarm``: the relay tree of an image as it is now, and who in it does not move."""

from __future__ import annotations

import json
import sys
import time
from typing import Any

import click
from rich.console import Console
from rich.live import Live
from rich.text import Text

from distrib.cli.client import ApiClient, connected, path_of
from distrib.cli.output import json_option, print_json, print_line
from distrib.cli.swarm_caps import caps
from distrib.cli.swarm_view import all_done, changes, swarm_lines
from distrib.errors import NetworkError, TimedOut
from distrib.printable import printable

_LOST_S = 60.0


@click.group("swarm")
def swarm() -> None:
    """Swarms: who fetches from whom, and how it goes."""


swarm.add_command(caps)


@swarm.command("show")
@click.argument("ref", metavar="IMAGE")
@click.option("--all", "everything", is_flag=True, help="Every node, however many there are.")
@click.option("--watch", is_flag=True, help="Go on until every online node has the image.")
@click.option(
    "--every", "every_s", type=click.FloatRange(min=0.2), default=1.0, show_default=True,
    metavar="S", help="With --watch: look so often.",
)  # fmt: skip
@json_option
def show(*, ref: str, everything: bool, watch: bool, every_s: float, as_json: bool) -> None:
    """Draw the relay tree of IMAGE: parents over children, states, rates, stalls and their reasons.

    Large swarms are summarised, with everybody who stalls. With --watch a terminal shows it as it
    goes, a pipe gets a line for each change, and --json a JSON object a line.
    """
    with connected() as client:
        path = path_of("swarm", ref)
        if watch:
            _watch(client, path, everything=everything, every_s=every_s, as_json=as_json)
            return
        document = client.get(path)
    if as_json:
        print_json(document)
        return
    for line in swarm_lines(document, everything=everything):
        print_line(line)


def _watch(
    client: ApiClient, path: str, *, everything: bool, every_s: float, as_json: bool
) -> None:
    console = Console()
    if as_json or not console.is_terminal:
        before: dict[str, Any] = {}
        for document in _documents(client, path, every_s):
            if as_json:
                click.echo(json.dumps(document))
            else:
                for line in changes(before, document):
                    print_line(line)
            sys.stdout.flush()
            before = document
        return
    with Live(console=console, auto_refresh=False) as live:
        for document in _documents(client, path, every_s):
            lines = swarm_lines(document, everything=everything)
            room = max(3, console.height - 2)
            if len(lines) > room:
                lines = [*lines[:room], f"… and {len(lines) - room} lines more"]
            live.update(Text("\n".join(printable(line) for line in lines)), refresh=True)


def _documents(client: ApiClient, path: str, every_s: float) -> Any:
    """The swarm again and again, until all have the image; a head that is gone is waited for."""
    lost_at: float | None = None
    while True:
        try:
            document = client.get(path)
        except (NetworkError, TimedOut):
            lost_at = lost_at or time.monotonic()
            if time.monotonic() - lost_at > _LOST_S:
                raise
        else:
            lost_at = None
            yield document
            if all_done(document):
                return
        time.sleep(every_s)
