"""``distrib-agent hooks lsf``: what LSF runs, and its configuration."""

from __future__ import annotations

import os
import sys
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any, ClassVar

import click

from agent.hooks.fault import of_node
from agent.hooks.lsf import steps
from agent.hooks.lsf.formats import (
    IMAGE_VARIABLE,
    LEAST_MEMORY_MIB,
    MEMORY_VARIABLE,
    elim_line,
    memory_mib,
    parameters,
    requirement,
    resource,
)
from agent.hooks.staging import await_image
from agent.socket.client import ask
from distrib.command import Lazy, LazyGroup
from distrib.errors import DistribError, OperatorError
from distrib.printable import printable
from distrib.trust.sitelist import parse_image_ref

WAIT_S = 120.0
PEND, EXIT = 1, 99
"""Of a PRE_EXEC: pending again; the job exits and does not run."""

_ABORT = "97"


class Commands(LazyGroup):
    """Those of operators first."""

    commands_by_name: ClassVar[Mapping[str, Lazy]] = {
        "install": Lazy("agent.cli.lsf_install", "install", "Write the programs, say what to set."),
        "remove": Lazy("agent.cli.lsf_install", "remove", "Take the programs away."),
        "resources": Lazy("agent.cli.lsf_install", "resources", "Print LSF's configuration."),
        "elim": Lazy("agent.cli.lsf", "elim", "(for the elim)"),
        "esub": Lazy("agent.cli.lsf", "esub", "(for the esub)"),
        "pre": Lazy("agent.cli.lsf", "pre", "(for PRE_EXEC)"),
        "starter": Lazy("agent.cli.lsf", "starter", "(for JOB_STARTER)"),
        "post": Lazy("agent.cli.lsf", "post", "(for POST_EXEC)"),
    }


@click.command(cls=Commands)
def lsf() -> None:
    """LSF: jobs that name an image (`bsub -a "distrib(IMAGE)"`) run in guests."""


@click.command()
@click.option("--every", "every_s", type=click.FloatRange(min=1), default=30, show_default=True)
@click.option("--reports", type=click.IntRange(min=1), help="End after so many.  [default: never]")
@click.pass_obj
def elim(socket: Path, every_s: float, reports: int | None) -> None:
    """Report what this host holds, for ever; one line each time."""
    wanted = os.environ.get("LSF_RESOURCES", "").split()
    while True:
        click.echo(elim_line(_status(socket), wanted))
        sys.stdout.flush()
        if reports is not None:
            reports -= 1
            if not reports:
                return
        time.sleep(every_s)


@click.command()
@click.argument("image", required=False)
@click.pass_obj
def esub(socket: Path, image: str | None) -> int:
    """Check IMAGE at submission; ask for memory, and for a host that holds it."""
    if not image:
        return 0
    try:
        changed = _submission(socket, image)
        _write("LSB_SUB_MODIFY_FILE", {"LSB_SUB_RES_REQ": changed["requirement"]})
        environment = {IMAGE_VARIABLE: image, MEMORY_VARIABLE: changed["memory"]}
        _write("LSB_SUB_MODIFY_ENVFILE", environment)
    except DistribError as error:
        _tell(error)
        return int(os.environ.get("LSB_SUB_ABORT_VALUE", _ABORT))
    return 0


@click.command()
@click.option("--wait", "wait_s", type=click.FloatRange(min=0), default=WAIT_S, show_default=True)
@click.option("--alive", type=click.Path(path_type=Path), help="The probe of a lease (by root).")
@click.pass_obj
def pre(socket: Path, wait_s: float, alive: Path | None) -> int:
    """PRE_EXEC: wait for the job's image; by root take its lease. 1 has the job pend again, 99 has
    it exit."""
    image = os.environ.get(IMAGE_VARIABLE)
    if not image:
        return 0
    try:
        job = steps.job_of(os.environ)
        if alive is not None and os.geteuid() == 0:
            steps.take(socket, job, image, alive=alive, wait_s=wait_s)
        else:
            # In the name of who calls: LSF runs this as the job's owner.
            await_image(socket, image, user=None, job=f"lsf:{job}", wait_s=wait_s)
    except DistribError as error:
        _tell(error)
        return PEND if of_node(error) else EXIT
    return 0


@click.command(context_settings={"ignore_unknown_options": True})
@click.argument("command", nargs=-1, required=True, type=click.UNPROCESSED)
@click.pass_obj
def starter(socket: Path, command: tuple[str, ...]) -> int:
    """JOB_STARTER: run COMMAND in the job's image, or as it is when it names none."""
    if not os.environ.get(IMAGE_VARIABLE):
        os.execvp(command[0], command)  # noqa: S606
    try:
        leased = steps.has_lease(socket, steps.job_of(os.environ))
        arguments = steps.launch_arguments(os.environ, command, leased=leased)
    except DistribError as error:
        _tell(error)
        return steps.REQUEUE if of_node(error) else steps.REFUSED
    base = [sys.executable, "-I", "-m", "agent.cli.main", "--socket", str(socket)]
    os.execv(sys.executable, [*base, *arguments])  # noqa: S606


@click.command()
@click.pass_obj
def post(socket: Path) -> int:
    """POST_EXEC: give the job's lease back, if its PRE_EXEC took one."""
    try:
        steps.release(socket, steps.job_of(os.environ))
    except DistribError as error:
        _tell(error)
        return PEND if of_node(error) else EXIT
    return 0


def _submission(socket: Path, image: str) -> dict[str, str]:
    """Requirement and memory of a submission. Raises what the agent answers, where it is refused;
    an agent that is away costs the affinity only, since the host looks again."""
    asked = parameters(_read("LSB_SUB_PARM_FILE")).get("LSB_SUB_RES_REQ", "")
    mib = memory_mib(asked)
    if mib is not None and mib < LEAST_MEMORY_MIB:
        raise OperatorError(f"rusage[mem={mib}]: a guest has {LEAST_MEMORY_MIB} or more")
    version = parse_image_ref(image).version
    name = None
    try:
        told = ask(socket, "want", timeout_s=5.0, image=image)
        name = resource(told["identifier"] + (f"@{version}" if version else ""))
    except DistribError as error:
        if not of_node(error):
            raise
        _tell(error)
    # A resource that the cluster does not know would refuse the job.
    known = os.environ.get("DISTRIB_LSF_RESOURCES", "").split()
    if name not in known:
        name = None
    return {"requirement": requirement(asked, name), "memory": str(mib or 1024)}


def _read(variable: str) -> str:
    path = os.environ.get(variable, "")
    try:
        return Path(path).read_text("utf-8", "replace")
    except OSError as error:
        raise OperatorError(f"{variable}={path}: {error.strerror}", hint="LSF calls this") from None


def _write(variable: str, values: Mapping[str, str]) -> None:
    path = os.environ.get(variable, "")
    try:
        with Path(path).open("a", encoding="utf-8") as file:
            file.writelines(f'{name}="{value}"\n' for name, value in values.items())
    except OSError as error:
        raise OperatorError(f"{variable}={path}: {error.strerror}", hint="LSF calls this") from None


def _status(socket: Path) -> dict[str, Any] | None:
    try:
        return ask(socket, "status", timeout_s=10.0)
    except DistribError:
        return None


def _tell(error: DistribError) -> None:
    hint = f" ({error.hint})" if error.hint else ""
    click.echo(printable(f"distrib: {error.message}{hint}"), err=True)
