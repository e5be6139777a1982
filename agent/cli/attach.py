"""``distrib-agent attach``."""

from __future__ import annotations

import base64
from pathlib import Path

import click

from agent.cli.told import tell
from agent.cli.workdir import write_all
from agent.socket.client import Line, ask

_STREAMS = {"stdout": 1, "stderr": 2}


@click.command()
@click.argument("lease_id", metavar="LEASE")
@click.option("--json", "as_json", is_flag=True, help="Print output, phases and result as lines.")
@click.pass_obj
def attach(socket: Path, lease_id: str, as_json: bool) -> int:
    """Watch what the job in LEASE has written and writes; it goes on without this command.

    The exit code is the job's."""

    def on_line(line: Line) -> None:
        if as_json:
            tell(line)
        elif "stream" in line:
            write_all(_STREAMS[line["stream"]], base64.b64decode(line["data"]))

    answer = ask(socket, "attach", timeout_s=None, on_line=on_line, lease=lease_id)
    if as_json:
        tell(answer)
    status: int = answer["exit"]
    return status
