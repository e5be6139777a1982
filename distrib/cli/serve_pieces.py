"""``distrib serve-pieces``: the one command that nodes' keys may run on a seeder's machine."""

from __future__ import annotations

import sys
from pathlib import Path

import click

from distrib.cli.output import json_option, print_json, print_line
from distrib.errors import OperatorError
from distrib.tsunami.admitting import install, limited, read_public_keys
from distrib.tsunami.serving import PieceSession
from distrib.tsunami.store import StoreShelf

FILE = click.Path(path_type=Path, dir_okay=False)
COMMENT = "distrib-seeder-pieces"


@click.command("serve-pieces")
@click.option(
    "--images",
    type=click.Path(path_type=Path, file_okay=False),
    default=Path("/var/lib/distrib/images"),
    show_default=True,
    help="The head's image store.",
)
@click.option(
    "--install",
    "to_install",
    type=FILE,
    multiple=True,
    metavar="KEY.pub",
    help="Have these keys, and no others of ours, in --authorized-keys.",
)
@click.option(
    "--authorized-keys",
    type=FILE,
    default=lambda: Path.home() / ".ssh" / "authorized_keys",
    show_default="~/.ssh/authorized_keys",
)
@json_option
def serve_pieces(
    *, images: Path, to_install: tuple[Path, ...], authorized_keys: Path, as_json: bool
) -> None:
    """Serve what the seeder serves on standard input and output, for sshd to run.

    Keys of nodes are limited to this command:

    \b
        distrib serve-pieces --images DIR --install admitted.pub
    """
    if to_install:
        own = (sys.executable, "-I", "-m", "distrib", "serve-pieces", "--images", str(images))
        keys = [key for file in to_install for key in read_public_keys(file)]
        lines = [limited(key, own, comment=COMMENT) for key in keys]
        install(authorized_keys, lines, comment=COMMENT)
        if as_json:
            print_json({"authorized_keys": str(authorized_keys), "keys": len(lines)})
        else:
            print_line(f"{authorized_keys}: {len(lines)} keys of ours")
        return
    if sys.stdin.isatty():
        raise OperatorError("serve-pieces: run by sshd for nodes", hint="see --help")
    fault = PieceSession(0, 1, StoreShelf(images)).run()
    if fault is not None:
        click.echo(f"serve-pieces: {fault.message}", err=True)
        sys.exit(fault.exit_status)
