"""``distrib-agent hooks slurm install`` and ``remove``."""

from __future__ import annotations

import json
import shutil
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import click

from agent.hooks.slurm import install as setting
from agent.hooks.slurm.install import Wish
from agent.hooks.slurm.wrappers import Places

_PATH = click.Path(path_type=Path)


def _options(command: Callable[..., Any]) -> Callable[..., Any]:
    for option in (
        click.option("--json", "as_json", is_flag=True, help="Print the answer as JSON."),
        click.option("--dry-run", is_flag=True, help="Say what would be done."),
        click.option("--burst-buffer", is_flag=True, help="Jobs wait queued for their image."),
        click.option("--own-submit", is_flag=True, help="Your job_submit.lua calls distrib.lua."),
        click.option(
            *("--health", "health_s"),
            type=click.IntRange(min=0),
            default=30,
            show_default=True,
            help="Seconds between looks at a node's features; 0: you call `features`.",
        ),
        click.option(
            *("--directory",),
            type=_PATH,
            default=lambda: Path(sys.prefix) / "libexec" / "slurm",
            show_default="libexec/slurm of this installation",
            help="Where the wrappers are, on every host.",
        ),
        click.option(
            *("--conf", "configuration"),
            type=_PATH,
            default=Path("/etc/slurm/slurm.conf"),
            show_default=True,
        ),
    ):
        command = option(command)
    return command


@click.command()
@_options
@click.pass_obj
def install(socket: Path, /, dry_run: bool, as_json: bool, **given: Any) -> None:
    """Write the wrappers and a block at the end of slurm.conf; the same on every host of Slurm.

    Then: `scontrol reconfigure`, or restart slurmctld where a plugin is new. Nothing changes when
    it is run again.
    """
    _say(setting.install(_wish(socket, **given), dry_run=dry_run), dry_run, as_json)


@click.command()
@_options
@click.pass_obj
def remove(socket: Path, /, dry_run: bool, as_json: bool, **given: Any) -> None:
    """Take the block out of slurm.conf, then the files away."""
    _say(setting.remove(_wish(socket, **given), dry_run=dry_run), dry_run, as_json)


def _wish(
    socket: Path,
    *,
    configuration: Path,
    directory: Path,
    health_s: int,
    own_submit: bool,
    burst_buffer: bool,
) -> Wish:
    places = Places(
        directory=directory.absolute(),
        socket=socket,
        slurm=Path(shutil.which("scontrol") or "/usr/bin/scontrol").parent,
        lua=configuration.parent / "distrib.lua",
        burst_buffer=burst_buffer,
    )
    return Wish(configuration, places, own_submit=own_submit, health_s=health_s)


def _say(changed: list[Path], dry_run: bool, as_json: bool) -> None:
    names = [str(file) for file in changed]
    if as_json:
        click.echo(json.dumps({"dry_run": dry_run, "changed": names}, indent=2))
        return
    for name in names or ["nothing to do"]:
        click.echo(name)
