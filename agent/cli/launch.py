"""``distrib-agent launch``."""

from __future__ import annotations

import base64
import os
import sys
from pathlib import Path

import click

from agent.socket.client import Line, ask
from distrib.errors import OperatorError

_STREAMS = {"stdout": 1, "stderr": 2}


@click.command(context_settings={"ignore_unknown_options": True})
@click.argument("image")
@click.argument("script", type=click.Path(path_type=Path, dir_okay=False, allow_dash=True))
@click.argument("args", nargs=-1, type=click.UNPROCESSED)
@click.option("--env", multiple=True, metavar="NAME=VALUE", help="A variable for the job.")
@click.option("--memory-mib", type=int, help="Guest memory.")
@click.option("--vcpus", type=int, help="Guest CPUs.")
@click.option("--limit-s", type=float, help="End the job after so many seconds.")
@click.option("--phases", is_flag=True, help="Say on standard error when each phase is reached.")
@click.pass_obj
def launch(
    socket: Path,
    image: str,
    script: Path,
    args: tuple[str, ...],
    env: tuple[str, ...],
    memory_mib: int | None,
    vcpus: int | None,
    limit_s: float | None,
    phases: bool,
) -> int:
    """Boot a fresh instance of IMAGE, run SCRIPT (- for standard input) in it, end it.

    Output is the job's, the exit code too. The guest ends with this command.
    """

    def on_line(line: Line) -> None:
        if "stream" in line:
            _write(_STREAMS[line["stream"]], base64.b64decode(line["data"]))
        elif phases:
            click.echo(f"distrib-agent: {line['phase']} after {line['after_s']} s", err=True)

    answer = ask(
        socket,
        "launch",
        timeout_s=None,
        on_line=on_line,
        image=image,
        script=base64.b64encode(_read(script)).decode(),
        args=args,
        env=dict(_variable(text) for text in env),
        memory_mib=memory_mib,
        vcpus=vcpus,
        wall_limit_s=limit_s,
    )
    status: int = answer["exit"]
    return status


def _read(script: Path) -> bytes:
    if str(script) == "-":
        return sys.stdin.buffer.read()
    try:
        return script.read_bytes()
    except OSError as error:
        raise OperatorError(f"{script}: {error.strerror}", hint="name a script file") from None


def _write(fd: int, data: bytes) -> None:
    view = memoryview(data)
    while view:
        view = view[os.write(fd, view) :]


def _variable(text: str) -> tuple[str, str]:
    name, equals, value = text.partition("=")
    if not equals:
        raise OperatorError(f"--env {text}: no value", hint="write NAME=VALUE")
    return name, value
