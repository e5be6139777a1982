"""The client side of the local socket, for commands and hooks: plain blocking sockets."""

from __future__ import annotations

import contextlib
import json
import socket
from collections.abc import Callable
from pathlib import Path
from typing import Any

from distrib.errors import DistribError, ExitStatus, NetworkError, TimedOut

Line = dict[str, Any]


class AgentError(DistribError):
    """An error that the agent answered, as it was raised there."""

    def __init__(self, error: Line) -> None:
        super().__init__(str(error.get("message", "?")), hint=str(error.get("hint", "")))
        self.ids = dict(error.get("ids", {}))
        self.code = str(error.get("code", "bug"))
        self.exit_status = ExitStatus(int(error.get("exit", ExitStatus.BUG)))


def ask(
    path: Path,
    op: str,
    *,
    timeout_s: float | None = 60.0,
    on_line: Callable[[Line], None] | None = None,
    **args: object,
) -> Line:
    """Send one request and return its result; lines before the answer go to ``on_line``.

    Raises AgentError with what the agent answered, NetworkError when it is not there, TimedOut
    after ``timeout_s`` of silence (None: no limit)."""
    given = {key: value for key, value in args.items() if value is not None}
    request = json.dumps({"v": 1, "op": op, "args": given}).encode() + b"\n"
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as connection:
        connection.settimeout(timeout_s)
        try:
            connection.connect(str(path))
            with contextlib.suppress(BrokenPipeError):  # it may have said why it hung up
                connection.sendall(request)
            with connection.makefile("rb") as lines:
                return _read_answer(lines, on_line)
        except TimeoutError:
            raise TimedOut(
                f"agent at {path}: no answer in {timeout_s:.0f} s", hint="see the agent's log"
            ) from None
        except OSError as error:
            raise NetworkError(
                f"agent at {path}: {error.strerror or error}",
                hint="is distrib-agent running? (systemctl status distrib-agent)",
            ) from None


def _read_answer(lines: Any, on_line: Callable[[Line], None] | None) -> Line:
    for raw in lines:
        if not raw.endswith(b"\n"):
            break  # it was killed in the middle of a line
        line: Line = json.loads(raw)
        if "ok" not in line:
            if on_line is not None:
                on_line(line)
            continue
        if line["ok"]:
            result: Line = line["result"]
            return result
        raise AgentError(line["error"])
    raise NetworkError("the agent hung up", hint="see the agent's log")
