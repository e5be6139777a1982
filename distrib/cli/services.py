"""``distrib up``, ``distrib controller``, ``distrib seeder``: the services, in the foreground."""

from __future__ import annotations

import asyncio
import signal
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import Any, TypeVar

import click

from distrib.config import Settings
from distrib.errors import OperatorError

F = TypeVar("F", bound=Callable[..., Any])

END_WITHIN_S = 10
_FILE = click.Path(path_type=Path, dir_okay=False)
_DIRECTORY = click.Path(path_type=Path, file_okay=False)


def _service_options(default: Path) -> Callable[[F], F]:
    def with_options(command: F) -> F:
        for option in (
            click.option("--dump-config", is_flag=True, help="Print every setting and stop."),
            click.option(
                "--set",
                "overrides",
                multiple=True,
                metavar="KEY=VALUE",
                help="Override a setting, e.g. bus.port=8884. May be given several times.",
            ),
            click.option(
                "--config", type=_FILE, help=f"Settings (TOML).  [default: {default}, if there]"
            ),
        ):
            command = option(command)
        return command

    return with_options


CONTROLLER_FILE = Path("/etc/distrib/controller.toml")
SEEDER_FILE = Path("/etc/distrib/seeder.toml")


@click.command("controller")
@_service_options(CONTROLLER_FILE)
def controller(*, config: Path | None, overrides: tuple[str, ...], dump_config: bool) -> None:
    """Run the controller: catalogue, site list, rollouts, API."""
    from distrib.controller import run_controller  # noqa: PLC0415
    from distrib.controller_settings import ControllerSettings  # noqa: PLC0415

    settings = ControllerSettings.load(file=_file(config, CONTROLLER_FILE), flags=_flags(overrides))
    if not _dumped(settings, wanted=dump_config):
        _run(lambda stop: run_controller(settings, stop), level=settings.log_level)


@click.command("seeder")
@_service_options(SEEDER_FILE)
def seeder(*, config: Path | None, overrides: tuple[str, ...], dump_config: bool) -> None:
    """Run a seeder: what is approved and in the store, over BitTorrent."""
    from distrib.seeder import SeederSettings, run_seeder  # noqa: PLC0415

    settings = SeederSettings.load(file=_file(config, SEEDER_FILE), flags=_flags(overrides))
    if not _dumped(settings, wanted=dump_config):
        _run(lambda stop: run_seeder(settings, stop), level=settings.log_level)


@click.command("up")
@click.option("--state", type=_DIRECTORY, required=True, help="What must survive a restart.")
@click.option("--config", type=_FILE, help="Settings (TOML).  [default: STATE/up.toml]")
@click.option("--pki", type=_DIRECTORY, help="Certificates, as `distrib testpki init` makes them.")
@click.option("--address", help="Of all services.  [default: 127.0.0.1]")
@click.option("--api-port", type=click.IntRange(1, 65535), help="[default: 8443]")
@click.option("--broker-port", type=click.IntRange(1, 65535), help="[default: 8883]")
@click.option("--swarm-port", type=click.IntRange(1, 65535), help="[default: 6881]")
def up(*, state: Path, config: Path | None, pki: Path | None, **given: Any) -> None:
    """Run broker, controller and seeder on this machine, for a try or a small site.

    The first start takes --pki and writes the settings of all three into STATE.
    """
    from distrib.logs import configure  # noqa: PLC0415
    from distrib.up import alone, make_admin_token, prepare, run_up  # noqa: PLC0415

    configure(level="warning")
    ports = {key: value for key, value in given.items() if value is not None}
    where = state.absolute()
    with alone(where):
        settings = prepare(where, pki=pki, given=ports, config=config)
        make_admin_token(where)
        _run(lambda stop: run_up(where, settings, stop, say=click.echo), level="warning")


def _file(given: Path | None, default: Path) -> Path | None:
    return given or (default if default.exists() else None)


def _flags(overrides: tuple[str, ...]) -> dict[str, object]:
    flags: dict[str, object] = {}
    for text in overrides:
        key, equals, value = text.partition("=")
        if not equals or not key:
            raise OperatorError(f"--set {text}: no value", hint="write KEY=VALUE")
        flags[key] = value
    return flags


def _dumped(settings: Settings, *, wanted: bool) -> bool:
    if wanted:
        click.echo(settings.as_toml(), nl=False)
    return wanted


def _run(service: Callable[[asyncio.Event], Awaitable[None]], *, level: str) -> None:
    """Run until SIGTERM or SIGINT; a service that then does not end is killed by the kernel."""
    from distrib.logs import configure  # noqa: PLC0415

    configure(level=level)

    async def until_signalled() -> None:
        stop = asyncio.Event()

        def end() -> None:
            signal.alarm(END_WITHIN_S)
            stop.set()

        loop = asyncio.get_running_loop()
        for number in (signal.SIGTERM, signal.SIGINT):
            loop.add_signal_handler(number, end)
        await service(stop)

    asyncio.run(until_signalled())
