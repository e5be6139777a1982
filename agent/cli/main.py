"""``distrib-agent``: the daemon, and what people, hooks and jobs ask of it."""

from __future__ import annotations

import os
from importlib import import_module
from pathlib import Path

import click

from agent import __version__
from distrib.command import run as run_command

DEFAULT_SOCKET = Path("/run/distrib/agent.sock")
SOCKET_VARIABLE = "DISTRIB_AGENT_SOCKET"

_COMMANDS = {
    "run": "agent.cli.daemon",
    "status": "agent.cli.status",
    "verify": "agent.cli.status",
    "lease": "agent.cli.leases",
    "release": "agent.cli.leases",
    "leases": "agent.cli.leases",
    "pin": "agent.cli.leases",
    "unpin": "agent.cli.leases",
    "launch": "agent.cli.launch",
}


class _LazyGroup(click.Group):
    """Loads a command's module when it is called: a hook must not wait for libtorrent."""

    def list_commands(self, ctx: click.Context) -> list[str]:
        return list(_COMMANDS)

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:
        module = _COMMANDS.get(cmd_name)
        if module is None:
            return None
        command: click.Command = getattr(import_module(module), cmd_name)
        return command


@click.group(cls=_LazyGroup, context_settings={"help_option_names": ["-h", "--help"]})
@click.version_option(__version__, prog_name="distrib-agent")
@click.option(
    "--socket",
    type=click.Path(path_type=Path),
    default=lambda: Path(os.environ.get(SOCKET_VARIABLE, DEFAULT_SOCKET)),
    show_default=f"${SOCKET_VARIABLE} or {DEFAULT_SOCKET}",
    help="The agent's local socket.",
)
@click.pass_context
def agent(ctx: click.Context, socket: Path) -> None:
    """The node agent of distrib, and questions to the one that runs here."""
    ctx.obj = socket


def main() -> None:
    """Entry point."""
    run_command(agent, name="distrib-agent")
