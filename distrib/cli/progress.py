"""How far a long step is: a bar on a terminal, now and then a plain line in a pipe."""

from __future__ import annotations

import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager

import click
from rich.console import Console
from rich.progress import (
    BarColumn,
    DownloadColumn,
    Progress,
    TextColumn,
    TimeRemainingColumn,
    TransferSpeedColumn,
)

from distrib.printable import bytes_text, percent

_LINE_EVERY_S = 5.0

#: Told how many bytes are done in all.
Advance = Callable[[int], None]


@contextmanager
def progress(what: str, total_bytes: int, *, silent: bool) -> Iterator[Advance]:
    """Show ``what`` on standard error while the block runs."""
    if silent:
        yield lambda _done: None
    elif sys.stderr.isatty():
        with _bar(what, total_bytes) as advance:
            yield advance
    else:
        yield _lines(what, total_bytes)


@contextmanager
def _bar(what: str, total_bytes: int) -> Iterator[Advance]:
    columns = (
        TextColumn("{task.description}", markup=False),
        BarColumn(),
        DownloadColumn(binary_units=True),
        TransferSpeedColumn(),
        TimeRemainingColumn(),
    )
    with Progress(*columns, console=Console(stderr=True)) as bar:
        task = bar.add_task(what, total=total_bytes)
        yield lambda done: bar.update(task, completed=done)


def _lines(what: str, total_bytes: int) -> Advance:
    last = time.monotonic()

    def advance(done: int) -> None:
        nonlocal last
        now = time.monotonic()
        if done < total_bytes and now - last < _LINE_EVERY_S:
            return
        last = now
        share = percent(done, total_bytes, complete=done >= total_bytes)
        click.echo(f"{what}: {bytes_text(done)} of {bytes_text(total_bytes)}, {share} %", err=True)

    return advance
