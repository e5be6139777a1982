"""``distrib-agent launch``."""

from __future__ import annotations

import base64
import contextlib
import json
import sys
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import IO, Any

import click

from agent.cli.quantities import MEMORY, TIME
from agent.cli.told import OutputLines, tell
from agent.cli.workdir import Directory, write_all
from agent.socket.launch import Follower
from distrib.errors import DistribError, ExitStatus, OperatorError

_DIRECTORY = click.Path(path_type=Path, exists=True, file_okay=False)
_FILE = click.Path(path_type=Path, exists=True, dir_okay=False)
_RUN_COMMAND = b'#!/bin/sh\nexec "$@"\n'

_NODES = frozenset(
    {ExitStatus.BUG, ExitStatus.NO_SPACE, ExitStatus.UNREACHABLE, ExitStatus.TIMED_OUT}
)
"""Faults that another node may not have; all else is refused everywhere."""

_OF_NODES = frozenset({"not-ready", "site-list-stale", "tool-missing", "config-invalid"})
_OF_JOBS = frozenset({"limit-reached"})


@click.command(context_settings={"ignore_unknown_options": True})
@click.argument("words", nargs=-1, type=click.UNPROCESSED, metavar="[IMAGE] SCRIPT [ARGS]...")
@click.option("--lease", "lease_id", metavar="LEASE", help="Launch in this lease (ID, or job).")
@click.option("--command", "is_command", is_flag=True, help="SCRIPT is a program of the guest.")
@click.option("--env", multiple=True, metavar="NAME=VALUE", help="A variable for the job.")
@click.option("--memory", "--memory-mib", "memory_mib", type=MEMORY, help="Guest memory (2G).")
@click.option("--vcpus", type=click.IntRange(min=1), help="Guest CPUs.")
@click.option("--wall-limit", "wall_limit_s", type=TIME, help="End the job after so long (1:30:0).")
@click.option("--scratch", "scratch_mib", type=MEMORY, help="Size of a scratch disk (10G).")
@click.option("--network", type=click.Choice(["none", "private", "public"]), help="Its network.")
@click.option("--bus", help="Disks: virtio, virtio-scsi, scsi, ide, sata.")
@click.option("--nic", type=click.Choice(["virtio", "e1000"]), help="Network card.")
@click.option("--stdin/--no-stdin", help="Standard input is the job's.  [default: it has none]")
@click.option("--workdir", type=_DIRECTORY, help="Copy this directory in, and back at the end.")
@click.option("--share", type=_DIRECTORY, help="Share this directory with the guest (9p).")
@click.option("--context", "context_file", type=_FILE, help="Script that makes the guest ready.")
@click.option("--name", default="", help="Name of the job in the run log.")
@click.option("--phases", is_flag=True, help="Say on standard error when each phase is reached.")
@click.option("--accounting", type=click.Path(path_type=Path), help="Write the outcome as JSON.")
@click.option("--node-fault", type=click.IntRange(1, 255), help="Exit so for a fault of the node.")
@click.option("--refused", type=click.IntRange(1, 255), help="Exit so where no node will do.")
@click.option("--reconnect-s", type=float, default=120.0, help="Wait so long for a lost agent.")
@click.option("--json", "as_json", is_flag=True, help="Print output, phases and result as lines.")
@click.pass_obj
def launch(
    socket: Path,
    /,
    words: tuple[str, ...],
    lease_id: str | None,
    is_command: bool,
    env: tuple[str, ...],
    stdin: bool,
    workdir: Path | None,
    share: Path | None,
    context_file: Path | None,
    scratch_mib: int | None,
    phases: bool,
    accounting: Path | None,
    node_fault: int | None,
    refused: int | None,
    reconnect_s: float,
    as_json: bool,
    **asked: object,
) -> int:
    """Boot a fresh instance of IMAGE, run SCRIPT (- for standard input) in it, end it.

    Output is the job's, the exit code too. The guest ends with this command, is suspended while
    this command is stopped, and gets its signals. With --lease there is no IMAGE; the lease stays.
    """
    image, job = _words(words, lease_id, is_command)
    inputs: dict[str, Callable[[], IO[bytes]]] = {}
    if stdin:
        inputs["stdin"] = lambda: open(0, "rb", closefd=False)  # noqa: SIM115
    with contextlib.ExitStack() as stack:
        sinks: dict[str, Callable[[bytes], None]] = {
            "stdout": OutputLines("stdout") if as_json else partial(write_all, 1),
            "stderr": OutputLines("stderr") if as_json else partial(write_all, 2),
        }
        if workdir is not None:
            directory = Directory(workdir)
            inputs["files"] = directory.packed
            sinks["files"] = stack.enter_context(directory.unpacking())

        def say(phase: str, after_s: float) -> None:
            if as_json:
                tell({"phase": phase, "after_s": after_s})
            elif phases:
                click.echo(f"distrib-agent: {phase} after {after_s} s", err=True)

        def began(lease: str) -> None:
            if as_json:
                tell({"lease": lease})

        follower = Follower(socket, sinks, say, inputs, reconnect_s=reconnect_s, on_lease=began)
        follower.forward_signals()
        try:
            answer = follower.run(
                image=image,
                lease=lease_id,
                script=base64.b64encode(job.script).decode(),
                args=job.args,
                env=dict(_variable(text) for text in env),
                scratch_bytes=scratch_mib << 20 if scratch_mib else None,
                context=base64.b64encode(_read(context_file)).decode() if context_file else "",
                share=None if share is None else str(share.absolute()),
                **asked,
            )
        except DistribError as error:
            _account(accounting, {"error": error.as_dict()})
            if (status := _status_for(error, node_fault, refused)) is None:
                raise
            if as_json:
                tell({"error": error.as_dict()})
            else:
                hint = f" ({error.hint})" if error.hint else ""
                click.echo(f"distrib-agent: {error.message}{hint}", err=True)
            return status
    _account(accounting, answer)
    if as_json:
        tell(answer)
    ended: int = answer["exit"]
    return ended


@dataclass(frozen=True)
class _Job:
    script: bytes
    args: tuple[str, ...]


def _words(
    words: tuple[str, ...], lease_id: str | None, is_command: bool
) -> tuple[str | None, _Job]:
    """IMAGE, if it is to be named, and the job."""
    rest = words[1:] if lease_id is None else words
    if not rest:
        raise OperatorError(
            "what is to be run is missing",
            hint="launch IMAGE SCRIPT [ARGS], or launch --lease LEASE SCRIPT [ARGS]",
        )
    image = words[0] if lease_id is None else None
    if is_command:
        return image, _Job(_RUN_COMMAND, rest)
    return image, _Job(_read(Path(rest[0])), rest[1:])


def _status_for(error: DistribError, node_fault: int | None, refused: int | None) -> int | None:
    """What a batch system is told of a fault; None: the fault's own exit status."""
    if error.code in _OF_JOBS:
        return None
    if error.exit_status in _NODES or error.code in _OF_NODES:
        return node_fault
    return refused


def _account(path: Path | None, outcome: dict[str, Any]) -> None:
    if path is not None:
        try:
            path.write_text(json.dumps(outcome) + "\n", "utf-8")
        except OSError as error:
            raise OperatorError(f"{path}: {error.strerror}", hint="see --accounting") from None


def _read(script: Path) -> bytes:
    if str(script) == "-":
        return sys.stdin.buffer.read()
    try:
        return script.read_bytes()
    except OSError as error:
        raise OperatorError(
            f"{script}: {error.strerror}",
            hint="name a script file; a program of the guest goes with --command",
        ) from None


def _variable(text: str) -> tuple[str, str]:
    name, equals, value = text.partition("=")
    if not equals:
        raise OperatorError(f"--env {text}: no value", hint="write NAME=VALUE")
    return name, value
