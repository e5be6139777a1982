"""``distrib-agent run``."""

from __future__ import annotations

import asyncio
import signal
from pathlib import Path

import click

from agent.settings import DEFAULT_FILE, AgentSettings
from distrib.errors import OperatorError


@click.command()
@click.option(
    "--config",
    type=click.Path(path_type=Path),
    help=f"Settings file (TOML).  [default: {DEFAULT_FILE} where it exists]",
)
@click.option(
    "--set",
    "overrides",
    multiple=True,
    metavar="KEY=VALUE",
    help="Override a setting, e.g. swarm.port=6889. May be given several times.",
)
@click.option("--dump-config", is_flag=True, help="Print every setting in force and stop.")
def run(config: Path | None, overrides: tuple[str, ...], dump_config: bool) -> None:
    """Run the agent in the foreground."""
    file = config or (DEFAULT_FILE if DEFAULT_FILE.exists() else None)
    settings = AgentSettings.load(file=file, flags=dict(_pair(text) for text in overrides))
    if dump_config:
        click.echo(settings.as_toml(), nl=False)
        return
    # A hook that only asks for the version must not load libtorrent.
    from agent.daemon import Agent  # noqa: PLC0415
    from distrib.logs import configure  # noqa: PLC0415

    configure(level=settings.log_level)

    async def until_signalled() -> None:
        stop = asyncio.Event()
        for number in (signal.SIGTERM, signal.SIGINT):
            asyncio.get_running_loop().add_signal_handler(number, stop.set)
        await Agent(settings).run(stop)

    asyncio.run(until_signalled())


def _pair(text: str) -> tuple[str, str]:
    key, equals, value = text.partition("=")
    if not equals:
        raise OperatorError(f"--set {text}: no value", hint="write KEY=VALUE")
    return key, value
