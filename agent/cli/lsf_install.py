"""``distrib-agent hooks lsf install``, ``remove`` and ``resources``."""

from __future__ import annotations

import json
import os
import shutil
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import click

from agent.hooks import programs
from agent.hooks.lsf import wrappers
from agent.hooks.lsf.formats import map_lines, resource, shared_lines
from agent.hooks.lsf.steps import REQUEUE
from agent.hooks.lsf.wrappers import Places
from agent.socket.client import ask

_PATH = click.Path(path_type=Path)


def _options(command: Callable[..., Any]) -> Callable[..., Any]:
    for option in (
        click.option("--json", "as_json", is_flag=True, help="Print the answer as JSON."),
        click.option("--dry-run", is_flag=True, help="Change nothing."),
        click.option(
            *("--envdir",),
            type=_PATH,
            default=lambda: Path(os.environ.get("LSF_ENVDIR", "/etc")),
            show_default="LSF_ENVDIR, else /etc",
            help="The directory of lsf.conf.",
        ),
        click.option(
            *("--bindir",),
            type=_PATH,
            default=lambda: Path(os.environ.get("LSF_BINDIR") or _found("bjobs")),
            show_default="LSF_BINDIR, else where bjobs is",
            help="LSF's commands.",
        ),
        click.option(
            *("--directory",),
            type=_PATH,
            default=lambda: Path(sys.prefix) / "libexec" / "lsf",
            show_default="libexec/lsf of this installation",
            help="Where the programs are, on every host.",
        ),
    ):
        command = option(command)
    return command


@click.command()
@_options
@click.pass_obj
def install(
    socket: Path, directory: Path, bindir: Path, envdir: Path, dry_run: bool, as_json: bool
) -> None:
    """Write the programs that LSF calls on this host, and print its configuration.

    Again when images are approved: what LSF knows by name is written down in both.
    """
    identifiers = _identifiers(socket)
    places = Places(
        directory=directory.absolute(),
        socket=socket,
        lsf=bindir,
        envdir=envdir,
        known=tuple(resource(one) for one in identifiers),
    )
    changed = programs.put(wrappers.programs(places), dry_run=dry_run)
    configuration = _configuration(identifiers, places.directory)
    if as_json:
        told = {"dry_run": dry_run, "changed": [str(file) for file in changed]}
        click.echo(json.dumps(told | {"configuration": configuration}, indent=2))
        return
    _print(configuration)


@click.command()
@_options
def remove(directory: Path, dry_run: bool, as_json: bool, **_: Path) -> None:
    """Take the programs away. First their lines in LSF's configuration, and have LSF read it."""
    files = [directory.absolute() / name for name in wrappers.NAMES]
    gone = [str(file) for file in programs.take_away(files, dry_run=dry_run)]
    if as_json:
        click.echo(json.dumps({"dry_run": dry_run, "changed": gone}, indent=2))
        return
    for name in gone or ["nothing to do"]:
        click.echo(name)


@click.command()
@_options
@click.pass_obj
def resources(socket: Path, /, directory: Path, as_json: bool, **_: object) -> None:
    """Print what lsf.shared and lsf.cluster need for the site's images, and the queue's lines."""
    configuration = _configuration(_identifiers(socket), directory.absolute())
    if as_json:
        click.echo(json.dumps(configuration, indent=2))
        return
    _print(configuration)


def _configuration(identifiers: list[str], directory: Path) -> dict[str, list[str]]:
    """Lines by file, or by section of a file."""
    return {
        "lsf.shared, Resource section": shared_lines(identifiers),
        "lsf.cluster.NAME, ResourceMap section": map_lines(identifiers),
        "lsb.queues": [
            f"PRE_EXEC = {directory}/pre",
            f"POST_EXEC = {directory}/post",
            f"JOB_STARTER = {directory}/starter",
            f"REQUEUE_EXIT_VALUES = {REQUEUE}",
        ],
        "lsf.sudoers, so that PRE_EXEC takes a job's lease": ["LSB_PRE_POST_EXEC_USER=root"],
        "LSF_SERVERDIR: links": [
            f"ln -s {directory}/{name} $LSF_SERVERDIR/{name}"
            for name in ("elim.distrib", "esub.distrib")
        ],
    }


def _print(configuration: dict[str, list[str]]) -> None:
    for where, lines in configuration.items():
        click.echo("\n".join([f"# {where}", *lines]))


def _identifiers(socket: Path) -> list[str]:
    return sorted(set(ask(socket, "status")["aliases"].values()))


def _found(program: str) -> Path:
    return Path(shutil.which(program) or f"/usr/bin/{program}").parent
