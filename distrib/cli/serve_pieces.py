"""``distrib serve-pieces``: the one command that nodes' keys may run on a seeder's machine."""

from __future__ import annotations

import sys
from pathlib import Path

import click

from distrib.errors import OperatorError
from distrib.tsunami.serving import PieceSession
from distrib.tsunami.store import StoreShelf


@click.command("serve-pieces")
@click.option(
    "--images",
    type=click.Path(path_type=Path, file_okay=False),
    default=Path("/var/lib/distrib/images"),
    show_default=True,
    help="The head's image store.",
)
def serve_pieces(*, images: Path) -> None:
    """Serve what the seeder serves on standard input and output, for sshd to run.

    In the account's authorized_keys, for each key of nodes:

    \b
        restrict,command="/usr/bin/distrib serve-pieces --images DIR" ssh-ed25519 AAAA...
    """
    if sys.stdin.isatty():
        raise OperatorError("serve-pieces: run by sshd for nodes", hint="see --help")
    fault = PieceSession(0, 1, StoreShelf(images)).run()
    if fault is not None:
        click.echo(f"serve-pieces: {fault.message}", err=True)
        sys.exit(fault.exit_status)
