"""The /bin/sh programs that LSF calls, as they are written to a host."""

from __future__ import annotations

import shlex
import sys
from collections.abc import Iterable
from dataclasses import dataclass
from importlib.resources import files
from pathlib import Path

NAMES = ("pre", "post", "starter", "alive", "elim.distrib", "esub.distrib")
STATE = Path("/var/lib/distrib/lsf")
"""Which jobs have begun on a host."""


@dataclass(frozen=True)
class Places:
    """Where things are on a host. ``lsf``: LSF's commands; ``envdir``: the directory of lsf.conf;
    ``known``: the resources of images that the cluster has."""

    directory: Path
    socket: Path
    lsf: Path
    envdir: Path
    known: tuple[str, ...] = ()


def programs(places: Places, names: Iterable[str] = NAMES) -> dict[Path, str]:
    """Their texts."""
    return {places.directory / name: _text(name, places) for name in names}


def _text(name: str, places: Places) -> str:
    text = (files(__name__) / f"{name.partition('.')[0]}.sh").read_text("utf-8")
    for key, value in (
        ("@PYTHON@", sys.executable),
        ("@SOCKET@", str(places.socket)),
        ("@STATE@", str(STATE)),
        ("@LSF@", str(places.lsf)),
        ("@ENVDIR@", str(places.envdir)),
        ("@ALIVE@", str(places.directory / "alive")),
        ("@KNOWN@", " ".join(places.known)),
    ):
        text = text.replace(key, shlex.quote(value))
    return text
