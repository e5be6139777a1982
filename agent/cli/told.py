"""A launch as lines of JSON on standard output (docs/formats/socket.md), for who scripts it."""

from __future__ import annotations

import base64
import json
from collections.abc import Mapping

from agent.cli.workdir import write_all

STANDARD_OUTPUT = 1


def tell(line: Mapping[str, object]) -> None:
    """One line, at once: whoever reads it need not wait for the end."""
    write_all(STANDARD_OUTPUT, json.dumps(line).encode() + b"\n")


class OutputLines:
    """Where the bytes of a job's stream go: a line each time, in base64, as they need not be
    text."""

    def __init__(self, stream: str) -> None:
        self._stream = stream

    def __call__(self, data: bytes) -> None:
        tell({"stream": self._stream, "data": base64.b64encode(data).decode()})
