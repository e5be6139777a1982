"""``distrib-agent``: the daemon, and what people, hooks and jobs ask of it."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import ClassVar, NoReturn

import click

from distrib.command import Lazy, LazyGroup, product_version, run

DEFAULT_SOCKET = Path("/run/distrib/agent.sock")
SOCKET_VARIABLE = "DISTRIB_AGENT_SOCKET"


class Commands(LazyGroup):
    """All commands of ``distrib-agent``."""

    commands_by_name: ClassVar[Mapping[str, Lazy]] = {
        "run": Lazy("agent.cli.daemon", "run", "Run the agent in the foreground."),
        "status": Lazy("agent.cli.status", "status", "What this node holds and does."),
        "lease": Lazy("agent.cli.leases", "lease", "Give a writable instance of an image."),
        "release": Lazy("agent.cli.leases", "release", "Give a lease back."),
        "leases": Lazy("agent.cli.leases", "leases", "Your leases, or all of them."),
        "launch": Lazy("agent.cli.launch", "launch", "Boot an image and run a job in it."),
        "attach": Lazy("agent.cli.attach", "attach", "Watch the output of a launch."),
        "signal": Lazy("agent.cli.leases", "send_signal", "Send a signal to a guest's job."),
        "pin": Lazy("agent.cli.leases", "pin", "Keep an image, whatever room is needed."),
        "unpin": Lazy("agent.cli.leases", "unpin", "Let an image go when room is needed."),
        "verify": Lazy("agent.cli.upkeep", "verify", "Read an image again, compare every piece."),
        "serve-pieces": Lazy(
            "agent.cli.serve_pieces", "serve_pieces", "The one command of peers' keys."
        ),
        "doctor": Lazy("agent.cli.doctor", "doctor", "What is wrong here, and what to run."),
        "gc": Lazy("agent.cli.upkeep", "gc", "Remove all that nobody needs."),
        "hooks": Lazy("agent.cli.hooks", "hooks", "Set up a batch system: its jobs run in guests."),
    }


@click.command(
    cls=Commands,
    context_settings={"help_option_names": ["-h", "--help"]},
    epilog="Exit: as `distrib`; `launch` ends with the job's own status.",
)
@click.option(
    "--socket",
    type=click.Path(path_type=Path),
    default=lambda: Path(os.environ.get(SOCKET_VARIABLE, DEFAULT_SOCKET)),
    show_default=f"${SOCKET_VARIABLE} or {DEFAULT_SOCKET}",
    help="The agent's local socket.",
)
@click.version_option(product_version(), prog_name="distrib-agent", message="%(prog)s %(version)s")
@click.pass_context
def cli(ctx: click.Context, socket: Path) -> None:
    """The node agent of distrib, and questions to the one that runs here."""
    ctx.obj = socket


def main(arguments: Sequence[str] | None = None) -> NoReturn:
    """Entry point."""
    run(cli, name="distrib-agent", arguments=arguments)


if __name__ == "__main__":
    main()
