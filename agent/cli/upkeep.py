"""``distrib-agent verify`` and ``gc``."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

import click

from agent.socket.client import Line, ask
from distrib.errors import ImageError, OperatorError
from distrib.printable import printable

SILENCE_LIMIT_S = 600.0


@click.command()
@click.argument("image", required=False)
@click.option("--all", "every", is_flag=True, help="Every image that is ready.")
@click.option("--json", "as_json", is_flag=True, help="Print the answers as they came.")
@click.pass_obj
def verify(socket: Path, image: str | None, every: bool, as_json: bool) -> None:
    """Read IMAGE from the disk again and compare every piece; bad ones are fetched again."""
    if (image is None) != every:
        raise OperatorError("verify: which image?", hint="name one, or give --all")
    wanted = _ready(socket) if image is None else [image]
    answers = [_verify_one(socket, one, quiet=as_json) for one in wanted]
    if as_json:
        click.echo(json.dumps({"images": answers} if every else answers[0], indent=2))
    bad = [one for one in answers if not one["good"]]
    if bad:
        waits = any(one["waits_for_leases"] for one in bad)
        when = "once its leases end; until then it is not leased" if waits else "now"
        told = ", ".join(f"image {one['image']}: {one['bad_pieces']} pieces" for one in bad)
        raise ImageError(
            f"{told} are bad on this disk",
            hint=f"they are fetched again {when}; see `distrib-agent status`, and look at the disk",
        )
    if not as_json:
        for one in answers:
            click.echo(f"{printable(one['image'])}: every piece is good")


def _ready(socket: Path) -> list[str]:
    images = ask(socket, "status")["report"]["images"]
    usable = [one for one in images if one["state"] in ("ready", "leased")]
    return [f"{one['identifier']}@{one['version']}" for one in usable]


def _verify_one(socket: Path, image: str, *, quiet: bool) -> dict[str, Any]:
    shown = sys.stderr.isatty() and not quiet

    def on_line(line: Line) -> None:
        if shown:
            share = 100 * line["pieces_done"] // max(line["pieces"], 1)
            click.echo(f"\r{printable(line['image'])} {share} %", nl=False, err=True)

    try:
        return ask(socket, "verify", image=image, timeout_s=SILENCE_LIMIT_S, on_line=on_line)
    finally:
        if shown:
            click.echo(err=True)


@click.command()
@click.option("--dry-run", is_flag=True, help="Say what would go, and remove nothing.")
@click.option("--json", "as_json", is_flag=True, help="Print the answer as it came.")
@click.pass_obj
def gc(socket: Path, dry_run: bool, as_json: bool) -> None:
    """Remove all that nobody needs: images not leased, pinned, desired or active, and leftovers."""
    answer = ask(socket, "gc", dry_run=dry_run, timeout_s=SILENCE_LIMIT_S)
    if as_json:
        click.echo(json.dumps(answer, indent=2))
        return
    word = "would remove" if dry_run else "removed"
    for one in answer["evicted"]:
        name = printable(one["image"] or one["infohash"])
        click.echo(f"{word} image {name} ({one['size_bytes']} bytes)")
    for name in (*answer["files"], *answer["leftovers"]):
        click.echo(printable(f"{word} {name}"))
    if not (answer["evicted"] or answer["files"] or answer["leftovers"]):
        click.echo("nothing to remove")
