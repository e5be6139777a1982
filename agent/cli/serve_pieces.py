"""``distrib-agent serve-pieces``: the one command that a peer's key may run."""

from __future__ import annotations

import json
import sys
from pathlib import Path

import click

from agent.serving_pieces import COMMENT, AgentShelf, key_line
from distrib.errors import OperatorError
from distrib.tsunami.admitting import install, read_public_keys
from distrib.tsunami.serving import PieceSession

FILE = click.Path(path_type=Path, dir_okay=False)


@click.command("serve-pieces")
@click.option("--print-line", type=FILE, metavar="KEY.pub", help="Print the keys' lines, no more.")
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
@click.option("--ca", "authority", is_flag=True, help="The keys are authorities of users' keys.")
@click.option("--json", "as_json", is_flag=True, help="Print one JSON object.")
@click.pass_obj
def serve_pieces(
    socket: Path,
    print_line: Path | None,
    to_install: tuple[Path, ...],
    authorized_keys: Path,
    authority: bool,
    as_json: bool,
) -> None:
    """Serve verified pieces of images on standard input and output, for sshd to run.

    A peer's key is limited to this command:

    \b
        distrib-agent serve-pieces --install peers.pub
    """
    if print_line is not None:
        keys = read_public_keys(print_line)
        lines = [key_line(key, agent_socket=socket, authority=authority) for key in keys]
        click.echo(json.dumps({"lines": lines}) if as_json else "\n".join(lines))
    elif to_install:
        keys = [key for file in to_install for key in read_public_keys(file)]
        lines = [key_line(key, agent_socket=socket, authority=authority) for key in keys]
        install(authorized_keys, lines, comment=COMMENT)
        told = {"authorized_keys": str(authorized_keys), "keys": len(lines)}
        click.echo(json.dumps(told) if as_json else f"{authorized_keys}: {len(lines)} keys of ours")
    elif sys.stdin.isatty():
        raise OperatorError("serve-pieces: run by sshd for peers", hint="see --help")
    else:
        fault = PieceSession(0, 1, AgentShelf(socket)).run()
        if fault is not None:
            click.echo(f"serve-pieces: {fault.message}", err=True)
            sys.exit(fault.exit_status)
