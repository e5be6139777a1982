"""``distrib-agent hooks gridengine``: what an operator runs, and what the wrappers run."""

from __future__ import annotations

import os
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import ClassVar

import click

from agent.hooks.gridengine import job as steps
from agent.hooks.gridengine.farm import Farm
from agent.hooks.gridengine.hook import GridEngineHook
from agent.hooks.gridengine.jsv import DEFAULT_MEMORY_MIB, converse, judge
from agent.hooks.gridengine.sensor import report
from agent.hooks.staging import OnItsWay
from agent.socket.client import ask
from distrib.command import Lazy, LazyGroup
from distrib.errors import DistribError, NodeError, OperatorError
from distrib.printable import printable

WAIT = 98
"""Of the prolog: run the job again, and it is nobody's fault."""

OUTCOME_VARIABLE = "DISTRIB_OUTCOME"


class Commands(LazyGroup):
    """Those of operators first."""

    commands_by_name: ClassVar[Mapping[str, Lazy]] = {
        "install": Lazy("agent.cli.gridengine_install", "install", "Put the hooks into a cell."),
        "remove": Lazy("agent.cli.gridengine_install", "remove", "Put back what was there."),
        "show": Lazy("agent.cli.gridengine_install", "show", "What is installed, and intact."),
        "jsv": Lazy("agent.cli.gridengine", "jsv", "(for the JSV)"),
        "sensor": Lazy("agent.cli.gridengine", "sensor", "(for the load sensor)"),
        "prolog": Lazy("agent.cli.gridengine", "prolog", "(for the prolog)"),
        "starter": Lazy("agent.cli.gridengine", "starter", "(for the starter method)"),
        "epilog": Lazy("agent.cli.gridengine", "epilog", "(for the epilog)"),
    }


@click.command(cls=Commands)
def gridengine() -> None:
    """Grid Engine: jobs that name an image (`qsub -ac vm_name=IMAGE`) run in guests."""


@click.command()
@click.option("--memory-mib", type=click.IntRange(min=64), help="For jobs that ask for none.")
@click.pass_obj
def jsv(socket: Path, memory_mib: int | None) -> None:
    """Judge submissions on standard input, as jsv(1) has it."""
    farm = Farm(socket)
    memory = memory_mib or DEFAULT_MEMORY_MIB
    converse(iter(sys.stdin.readline, ""), _say, lambda given: judge(given, farm, memory=memory))


@click.command()
@click.option("--host", required=True, help="This host as Grid Engine calls it.")
@click.pass_obj
def sensor(socket: Path, host: str) -> None:
    """Report on each line of standard input, as sge_execd(8) has it."""
    report(
        iter(sys.stdin.readline, ""),
        _say,
        host=host,
        ask=lambda: ask(socket, "status", timeout_s=5.0),
    )


@click.command()
@click.pass_obj
def prolog(socket: Path) -> int:
    """Lease the image of the job that the environment names."""
    hook = GridEngineHook()
    try:
        spool = _spool(os.environ)
        if os.environ.get("VM_IMG"):
            slots = os.environ.get("NSLOTS", "")
            hook = GridEngineHook(
                spool=spool,
                shepherd=steps.shepherd_of(spool),
                slots=int(slots) if slots.isascii() and slots.isdecimal() else None,
            )
        steps.prolog(socket, hook.job(os.environ), hook)
    except OnItsWay as error:
        _tell(error)
        return WAIT
    except DistribError as error:
        _tell(error)
        return hook.exit_status(error)
    return 0


@click.command(context_settings={"ignore_unknown_options": True})
@click.argument("command", nargs=-1, required=True, type=click.UNPROCESSED)
@click.pass_obj
def starter(socket: Path, command: tuple[str, ...]) -> int:
    """Run the job COMMAND in the guest of its lease."""
    hook = GridEngineHook()
    try:
        arguments = steps.launch_arguments(os.environ, list(command), socket=socket)
        if arguments is None:
            raise OperatorError("this job names no image", hint="the wrapper runs it on the host")
    except DistribError as error:
        _tell(error)
        return hook.exit_status(error)
    if outcome := os.environ.get(OUTCOME_VARIABLE):
        at = arguments.index("launch") + 1
        arguments[at:at] = ["--accounting", outcome]
    # In its place: what Grid Engine sends to the job reaches the client of the guest.
    os.execv(sys.executable, [sys.executable, "-I", "-m", "agent.cli.main", *arguments])  # noqa: S606


@click.command()
@click.pass_obj
def epilog(socket: Path) -> int:
    """Account for what the job's guest took, and give its lease back."""
    job = GridEngineHook().job(os.environ).job
    status = 0
    try:
        spool = _spool(os.environ)
        # A directory that is no shepherd's may be its user's, and this writes there as root.
        steps.shepherd_of(spool)
        steps.account(socket, job, spool)
    except DistribError as error:
        # The run log has it; the lease goes back all the same.
        _tell(error)
    try:
        steps.epilog(socket, job)
    except DistribError as error:
        _tell(error)
        status = int(error.exit_status)
    return status


def _spool(environ: Mapping[str, str]) -> Path:
    spool = Path(environ.get("SGE_JOB_SPOOL_DIR", ""))
    if not (spool.is_absolute() and spool.is_dir()):
        raise NodeError(f"SGE_JOB_SPOOL_DIR={spool}: not the job's directory")
    return spool


def _say(line: str) -> None:
    sys.stdout.write(line + "\n")
    sys.stdout.flush()


def _tell(error: DistribError) -> None:
    hint = f" ({error.hint})" if error.hint else ""
    click.echo(printable(f"distrib: {error.message}{hint}"), err=True)
