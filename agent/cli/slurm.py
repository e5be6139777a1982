"""``distrib-agent hooks slurm``: what an operator runs, and what Slurm runs."""

from __future__ import annotations

import json
import os
import socket as sockets
import sys
import time
from collections.abc import Mapping
from pathlib import Path
from typing import ClassVar

import click

from agent.cache import durable
from agent.hooks.fault import of_node
from agent.hooks.slurm import control, steps
from agent.hooks.slurm.names import FEATURE, REFUSED, REQUEUE, features_of, merged
from agent.hooks.slurm.stage import stage as stage_in
from agent.hooks.slurm.wrappers import HELD
from agent.socket.client import ask
from distrib.command import Lazy, LazyGroup
from distrib.errors import DistribError, StorageFailed
from distrib.printable import printable

_JSON = click.option("--json", "as_json", is_flag=True, help="Print what was told as JSON.")

OUTCOME_VARIABLE = "DISTRIB_OUTCOME"


class Commands(LazyGroup):
    """Those of operators first."""

    commands_by_name: ClassVar[Mapping[str, Lazy]] = {
        "install": Lazy("agent.cli.slurm_install", "install", "Put the hooks into slurm.conf."),
        "remove": Lazy("agent.cli.slurm_install", "remove", "Take them out again."),
        "features": Lazy("agent.cli.slurm", "features", "Tell slurmctld what this node holds."),
        "held": Lazy("agent.cli.slurm", "held", "Note, on slurmctld's host, what nodes hold."),
        "prolog": Lazy("agent.cli.slurm", "prolog", "(for the prolog)"),
        "starter": Lazy("agent.cli.slurm", "starter", "(for the batch script)"),
        "epilog": Lazy("agent.cli.slurm", "epilog", "(for the epilog)"),
        "stage": Lazy("agent.cli.slurm", "stage", "(for the burst buffer)"),
    }


@click.command(cls=Commands)
def slurm() -> None:
    """Slurm: jobs that name an image (`sbatch --comment=vm_name=IMAGE`) run in guests."""


@click.command()
@click.option("--node", help="This node as Slurm calls it.  [default: the short host name]")
@_JSON
@click.pass_obj
def features(socket: Path, /, node: str | None, as_json: bool) -> None:
    """Tell slurmctld which images this node holds, if it does not know. Needs root."""
    name = node or sockets.gethostname().partition(".")[0]
    try:
        status = ask(socket, "status", timeout_s=10.0)
    except DistribError:
        status = None
    now = control.features(name)
    available, active = merged(now.available, now.active, features_of(status))
    changed = (set(available), set(active)) != (set(now.available), set(now.active))
    if changed:
        control.set_features(name, available, active)
    if as_json:
        told = {"node": name, "available": available, "active": active, "changed": changed}
        click.echo(json.dumps(told, indent=2))


@click.command()
@click.option("--every", "every_s", type=click.FloatRange(min=1), help="Again so often (seconds).")
@click.option("--file", type=click.Path(path_type=Path), default=HELD, show_default=True)
@_JSON
def held(every_s: float | None, file: Path, as_json: bool) -> None:
    """Note which images nodes hold, where the submit plugin reads it: it may not ask itself."""
    while True:
        try:
            found = sorted(one for one in control.known_features() if one.startswith(FEATURE))
            text = "".join(f"{line}\n" for line in [str(int(time.time())), *found])
            file.parent.mkdir(mode=0o755, parents=True, exist_ok=True)
            durable.replace(file, text.encode())
            file.chmod(0o644)
            if as_json:
                click.echo(json.dumps({"file": str(file), "features": found}))
        except OSError as error:
            raise StorageFailed(f"{file}: {error.strerror}", path=str(file)) from None
        except DistribError as error:
            if every_s is None:
                raise
            _tell(error)
        if every_s is None:
            return
        time.sleep(every_s)


@click.command()
@click.option("--alive", type=click.Path(path_type=Path), required=True, help="The probe.")
@click.pass_obj
def prolog(socket: Path, alive: Path) -> int:
    """Lease the image that the job's comment names."""
    try:
        steps.prolog(socket, os.environ, alive=alive)
    except DistribError as error:
        return _status(error)
    return 0


@click.command(context_settings={"ignore_unknown_options": True})
@click.argument("script", type=click.Path(path_type=Path))
@click.argument("words", nargs=-1, type=click.UNPROCESSED)
@click.pass_obj
def starter(socket: Path, script: Path, words: tuple[str, ...]) -> int:
    """Run the user's part of the batch SCRIPT in the guest of the job's lease."""
    try:
        arguments = steps.launch_arguments(os.environ, list(words), socket=socket)
        descriptor = steps.script_of(script)
    except DistribError as error:
        return _status(error)
    if outcome := os.environ.get(OUTCOME_VARIABLE):
        at = arguments.index("launch") + 1
        arguments[at:at] = ["--accounting", outcome]
    os.dup2(descriptor, 0)
    # In its place: what Slurm sends to the job reaches the client of the guest.
    os.execv(sys.executable, [sys.executable, "-I", "-m", "agent.cli.main", *arguments])  # noqa: S606


@click.command()
@click.pass_obj
def epilog(socket: Path) -> int:
    """Give the job's lease back."""
    try:
        steps.release(socket, steps.job_number(os.environ))
    except DistribError as error:
        return _status(error)
    return 0


@click.command()
@click.argument("job")
@click.argument("image")
@click.argument("user")
@click.argument("feature")
@click.pass_obj
def stage(socket: Path, job: str, image: str, user: str, feature: str) -> None:
    """Wait until some node holds IMAGE; then JOB goes to such a node."""
    stage_in(socket, job=job, image=image, user=user, feature=feature)


def _status(error: DistribError) -> int:
    _tell(error)
    return REQUEUE if of_node(error) else REFUSED


def _tell(error: DistribError) -> None:
    hint = f" ({error.hint})" if error.hint else ""
    click.echo(printable(f"distrib: {error.message}{hint}"), err=True)
