"""What Slurm calls, as it is written to a host."""

from __future__ import annotations

import shlex
import sys
from dataclasses import dataclass
from importlib.resources import files
from pathlib import Path

NAMES = ("prolog", "epilog", "starter", "alive", "features")
STATE = Path("/var/lib/distrib/slurm")
"""Which jobs have begun on a node, and what went wrong with them."""

HELD = Path("/run/distrib-slurm/held")
"""On the host of slurmctld: the features that nodes have (``hooks slurm held``)."""


@dataclass(frozen=True)
class Places:
    """Where things are on a host. ``slurm``: the directory of Slurm's commands."""

    directory: Path
    socket: Path
    slurm: Path
    lua: Path
    burst_buffer: bool = False


def shell(name: str, places: Places) -> str:
    """The text of a /bin/sh wrapper."""
    return _filled(f"{name}.sh", {key: shlex.quote(text) for key, text in _words(places).items()})


def lua(name: str, places: Places) -> str:
    """The text of a Lua file."""
    words = _words(places)
    query = [words["PYTHON"], "-I", "-m", "agent.hooks.slurm.query", words["SOCKET"]]
    stage = [words["PYTHON"], "-I", "-m", "agent.cli.main", "--socket", words["SOCKET"]]
    path = f"{words['SLURM']}:/usr/bin:/bin"
    strings = {
        "STAGE": shlex.join(["env", f"PATH={path}", *stage, "hooks", "slurm", "stage"]),
        "QUERY": shlex.join(query),
        "STARTER": shlex.quote(words["STARTER"]),
        "HELD": str(HELD),
        "LUA": str(places.lua),
    }
    quoted = {key: _lua_string(text) for key, text in strings.items()}
    return _filled(f"{name}.lua", quoted | {"BURST_BUFFER": str(places.burst_buffer).lower()})


def _words(places: Places) -> dict[str, str]:
    return {
        "PYTHON": sys.executable,
        "SOCKET": str(places.socket),
        "STATE": str(STATE),
        "SLURM": str(places.slurm),
        "ALIVE": str(places.directory / "alive"),
        "STARTER": str(places.directory / "starter"),
    }


def _filled(name: str, values: dict[str, str]) -> str:
    text = (files(__name__) / name).read_text("utf-8")
    for key, value in values.items():
        text = text.replace(f"@{key}@", value)
    return text


def _lua_string(text: str) -> str:
    return '"' + text.replace("\\", "\\\\").replace('"', '\\"') + '"'
