"""What commands print: tables for people, one JSON document for programs."""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from typing import Any, TypeVar

import click

from distrib.printable import printable

F = TypeVar("F", bound=Callable[..., Any])


def json_option(command: F) -> F:
    """``--json``, as ``as_json``."""
    return click.option("--json", "as_json", is_flag=True, help="Print one JSON object.")(command)


def print_json(document: object) -> None:
    """One line of JSON."""
    click.echo(json.dumps(document))


def print_line(text: object) -> None:
    """One line, safe for a terminal whatever data is in it."""
    click.echo(printable(text))


def print_table(titles: Sequence[str], rows: Sequence[Sequence[object]], *, empty: str) -> None:
    """Columns as wide as their widest cell; nothing is cut, so that a pipe gets all of it."""
    if not rows:
        click.echo(empty)
        return
    cells = [list(titles), *([printable(_cell(value)) for value in row] for row in rows)]
    widths = [max(len(row[column]) for row in cells) for column in range(len(titles))]
    for row in cells:
        line = "  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True))
        click.echo(line.rstrip())


def print_fields(fields: Sequence[tuple[str, object]]) -> None:
    """``name  value`` lines; those without a value are left out."""
    shown = [(name, _cell(value)) for name, value in fields if value not in (None, "", [])]
    width = max((len(name) for name, _ in shown), default=0)
    for name, value in shown:
        click.echo(f"{name.ljust(width)}  {printable(value)}")


def _cell(value: object) -> str:
    if value is None:
        return "-"
    if isinstance(value, list | tuple):
        return ", ".join(str(entry) for entry in value)
    return str(value)
