"""``distrib-agent hooks lsf``: what LSF runs, and its configuration."""

from __future__ import annotations

import os
import sys
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import click

from agent.hooks.fault import of_node
from agent.hooks.guest_environment import guest_environment
from agent.hooks.lsf.formats import (
    IMAGE_VARIABLE,
    LEAST_MEMORY_MIB,
    MEMORY_VARIABLE,
    elim_line,
    map_lines,
    memory_mib,
    parameters,
    requirement,
    resource,
    shared_lines,
)
from agent.hooks.staging import await_image
from agent.socket.client import ask
from distrib.errors import DistribError, OperatorError
from distrib.printable import printable
from distrib.trust.sitelist import parse_image_ref

WAIT_S = 120.0
PEND, EXIT = 1, 99
"""Of a PRE_EXEC: pending again; the job exits and does not run."""

REQUEUE, REFUSED = 99, 100
"""Of a job starter: 99 is to be in REQUEUE_EXIT_VALUES."""

_ABORT = "97"


@click.group()
def lsf() -> None:
    """LSF: jobs that name an image (`bsub -a "distrib(IMAGE)"`) run in guests."""


@lsf.command()
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


@lsf.command()
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


@lsf.command()
@click.option("--wait", "wait_s", type=click.FloatRange(min=0), default=WAIT_S, show_default=True)
@click.pass_obj
def pre(socket: Path, wait_s: float) -> int:
    """PRE_EXEC: wait for the job's image; 1 has the job pend again, 99 has it exit."""
    image = os.environ.get(IMAGE_VARIABLE)
    if not image:
        return 0
    job = f"lsf:{os.environ.get('LSB_JOBID', '?')}"
    try:
        # In the name of who calls: LSF runs this as the job's owner.
        await_image(socket, image, user=None, job=job, wait_s=wait_s)
    except DistribError as error:
        _tell(error)
        return PEND if of_node(error) else EXIT
    return 0


@lsf.command(context_settings={"ignore_unknown_options": True})
@click.argument("command", nargs=-1, required=True, type=click.UNPROCESSED)
@click.pass_obj
def starter(socket: Path, command: tuple[str, ...]) -> None:
    """JOB_STARTER: run COMMAND in the job's image, or as it is when it names none."""
    if not os.environ.get(IMAGE_VARIABLE):
        os.execvp(command[0], command)  # noqa: S606
    base = [sys.executable, "-I", "-m", "agent.cli.main", "--socket", str(socket)]
    os.execv(sys.executable, [*base, *launch_arguments(os.environ, command)])  # noqa: S606


@lsf.command()
@click.pass_obj
def resources(socket: Path) -> None:
    """Print what lsf.shared and lsf.cluster need for the site's images, and the queue's lines."""
    identifiers = sorted(set(ask(socket, "status")["aliases"].values()))
    program = f"{sys.executable} -I -m agent.cli.main --socket {socket} hooks lsf"
    click.echo("# lsf.shared, Resource section")
    click.echo("\n".join(shared_lines(identifiers)))
    click.echo("# lsf.cluster.NAME, ResourceMap section")
    click.echo("\n".join(map_lines(identifiers)))
    click.echo("# lsb.queues")
    click.echo(f"PRE_EXEC = {program} pre")
    click.echo(f"JOB_STARTER = {program} starter --")
    click.echo(f"REQUEUE_EXIT_VALUES = {REQUEUE}")
    click.echo(
        "# LSF_SERVERDIR/elim.distrib and esub.distrib, mode 755, each with #!/bin/sh before"
    )
    click.echo(f"exec {program} elim")
    known = " ".join(resource(one) for one in identifiers)
    click.echo(f'DISTRIB_LSF_RESOURCES="{known}" exec {program} esub "$@"')


def launch_arguments(environ: Mapping[str, str], command: tuple[str, ...]) -> list[str]:
    """What ``distrib-agent`` is called with. A script of the host is taken along; any other command
    is a program of the guest."""
    arguments = ["launch", "--name", f"lsf:{environ.get('LSB_JOBID', '?')}"]
    arguments += ["--node-fault", str(REQUEUE), "--refused", str(REFUSED)]
    for option, name in (("--memory", MEMORY_VARIABLE), ("--vcpus", "LSB_DJOB_NUMPROC")):
        if (amount := environ.get(name, "")).isdecimal() and amount.isascii():
            arguments += [option, amount]
    arguments += guest_environment(environ)
    if not _is_script(Path(command[0])):
        arguments.append("--command")
    return [*arguments, "--", environ[IMAGE_VARIABLE], *command]


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


def _is_script(file: Path) -> bool:
    try:
        with file.open("rb") as opened:
            return opened.read(2) == b"#!"
    except OSError:
        return False


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
