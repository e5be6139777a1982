"""``distrib-agent hooks gridengine install``, ``remove``, ``show``."""

from __future__ import annotations

import json
import re
import sys
from pathlib import Path
from typing import Any

import click

from agent.hooks.gridengine.cell import Qconf
from agent.hooks.gridengine.install import (
    RECORD,
    Change,
    Left,
    Wish,
    apply,
    load,
    plan,
    remove_wrappers,
    undo,
    write_wrappers,
)
from distrib.errors import ExitStatus, OperatorError
from distrib.printable import printable

_json = click.option("--json", "as_json", is_flag=True, help="Print the answer as JSON.")
_dry = click.option("--dry-run", is_flag=True, help="Say what would be done.")
_directory = click.option(
    "--directory",
    type=click.Path(path_type=Path),
    default=lambda: Path(sys.prefix) / "libexec" / "gridengine",
    show_default="libexec/gridengine of this installation",
    help="Where the wrappers are, on every host of the cell.",
)
_only = click.option("--wrappers-only", is_flag=True, help="This host's files; not the cell.")


@click.command()
@click.option("--queue", "queues", multiple=True, metavar="QUEUE", help="Where guests run.")
@click.option("--vmem", multiple=True, metavar="HOST=SIZE", help="Guest memory of a host (60G).")
@click.option("--no-jsv", is_flag=True, help="Leave jsv_url as it is: yours calls ours.")
@click.option("--replace", is_flag=True, help="Take the place of prologs and others that are set.")
@_only
@_directory
@_dry
@_json
@click.pass_obj
def install(
    socket: Path,
    queues: tuple[str, ...],
    vmem: tuple[str, ...],
    no_jsv: bool,
    replace: bool,
    wrappers_only: bool,
    directory: Path,
    dry_run: bool,
    as_json: bool,
) -> None:
    """Write the wrappers on this host, and put them into the cell's configuration.

    Run it on an admin host of the cell, as a manager; and with --wrappers-only on every other host
    that has no share of --directory. Nothing changes when it is run again.
    """
    if not (queues or wrappers_only):
        raise OperatorError("no queue is named", hint="--queue virt, or --wrappers-only")
    changes: list[Change] = []
    if not wrappers_only:
        wish = Wish(
            directory=directory.absolute(),
            queues=queues,
            vmem=dict(_amount(text) for text in vmem),
            with_jsv=not no_jsv,
            replace=replace,
        )
        changes = plan(Qconf(), wish)
    # The files first: a prolog that is not there puts its queue in state E.
    wrappers = write_wrappers(directory.absolute(), socket=socket, dry_run=dry_run)
    if not dry_run:
        apply(Qconf(), changes, RECORD)
    _tell(changes, [], wrappers, dry_run=dry_run, as_json=as_json)


@click.command()
@_only
@_directory
@_dry
@_json
def remove(wrappers_only: bool, directory: Path, dry_run: bool, as_json: bool) -> int:
    """Put the cell's configuration back as it was, and remove this host's wrappers."""
    done: list[Change] = []
    left: list[Left] = []
    if not wrappers_only:
        done, left = undo(Qconf(), RECORD, dry_run=dry_run)
    named = any(str(directory.absolute()) in (one.change.before or "") for one in left)
    wrappers = [] if named else remove_wrappers(directory.absolute(), dry_run=dry_run)
    _tell(done, left, wrappers, dry_run=dry_run, as_json=as_json)
    return int(ExitStatus.PARTIAL if left else ExitStatus.DONE)


@click.command()
@_directory
@_json
@click.pass_obj
def show(socket: Path, directory: Path, as_json: bool) -> int:
    """What was installed from this host, and whether the cell still has it; exit 8 if not."""
    cell = Qconf()
    rows: list[dict[str, Any]] = [
        change.as_dict() | {"now": cell.get(change.attribute)} for change in load(RECORD)
    ]
    stale = write_wrappers(directory.absolute(), socket=socket, dry_run=True)
    intact = all(row["now"] == row["after"] for row in rows) and not stale
    if as_json:
        told = {"installed": rows, "stale_wrappers": [str(file) for file in stale]}
        click.echo(json.dumps(told | {"intact": intact}, indent=2))
    else:
        for row in rows:
            flag = "" if row["now"] == row["after"] else f"  CHANGED: now {row['now']}"
            click.echo(printable(f"{row['kind']} {row['of']} {row['name']} = {row['after']}{flag}"))
        for file in stale:
            click.echo(f"{file}: not as it should be")
        if not rows:
            click.echo("nothing was installed from this host")
    return int(ExitStatus.DONE if intact else ExitStatus.PARTIAL)


def _amount(text: str) -> tuple[str, str]:
    host, _, size = text.partition("=")
    if not (host and re.fullmatch(r"\d+(\.\d+)?[kmgKMG]?", size)):
        raise OperatorError(f"--vmem {text}: not HOST=SIZE", hint="for example wn001=60G")
    return host, size


def _tell(
    changes: list[Change], left: list[Left], wrappers: list[Path], *, dry_run: bool, as_json: bool
) -> None:
    if as_json:
        answer = {
            "dry_run": dry_run,
            "changes": [change.as_dict() for change in changes],
            "left": [one.change.as_dict() | {"why": one.why} for one in left],
            "wrappers": [str(file) for file in wrappers],
        }
        click.echo(json.dumps(answer, indent=2))
        return
    for change in changes:
        click.echo(printable(f"{change.attribute}: {change.before} -> {change.after}"))
    for one in left:
        told = f"{one.change.attribute}: left as it is, {one.change.before}: {one.why}"
        click.echo(printable(told), err=True)
    for file in wrappers:
        click.echo(str(file))
    if not (changes or left or wrappers):
        click.echo("nothing to do")
