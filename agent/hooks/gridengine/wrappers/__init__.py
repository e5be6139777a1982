"""The /bin/sh wrappers that Grid Engine calls, as they are written to a host."""

from __future__ import annotations

import shlex
import sys
from importlib.resources import files
from pathlib import Path

NAMES = ("prolog", "starter", "epilog", "terminate", "sensor", "jsv")
STATE = Path("/var/lib/distrib/gridengine")
"""Where a host counts the failures of jobs."""


def render(name: str, *, socket: Path, python: Path | None = None, state: Path = STATE) -> str:
    """The text of a wrapper, with this installation's interpreter (or another one's) in it."""
    text = (files(__name__) / f"{name}.sh").read_text("utf-8")
    for key, value in (
        ("@PYTHON@", str(python or sys.executable)),
        ("@SOCKET@", str(socket)),
        ("@STATE@", str(state)),
    ):
        text = text.replace(key, shlex.quote(value))
    return text
