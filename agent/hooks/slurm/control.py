"""Slurm's own commands: features of nodes."""

from __future__ import annotations

import os
import re
import subprocess
from dataclasses import dataclass

from distrib.errors import NodeError, OperatorError, TimedOut, ToolMissing

TIMEOUT_S = 20.0
_PAIR = re.compile(r"(?:^|\s)(AvailableFeatures|ActiveFeatures)=(\S*)")


@dataclass(frozen=True)
class Features:
    """Of one node, in slurmctld's order."""

    available: tuple[str, ...]
    active: tuple[str, ...]


def features_in(text: str) -> Features:
    """What ``scontrol -o show node NODE`` says. Raises NodeError for another answer."""
    found = {name: _list(value) for name, value in _PAIR.findall(text)}
    try:
        return Features(found["AvailableFeatures"], found["ActiveFeatures"])
    except KeyError:
        raise NodeError("scontrol show node: no features in the answer") from None


def features(node: str) -> Features:
    """The features that slurmctld knows of a node. Raises as ``run``."""
    return features_in(run("scontrol", "-o", "show", "node", node))


def set_features(node: str, available: list[str], active: list[str]) -> None:
    """Tell slurmctld; it needs root or an operator of Slurm."""
    names = [f"AvailableFeatures={','.join(available)}", f"ActiveFeatures={','.join(active)}"]
    run("scontrol", "update", f"NodeName={node}", *names)


def known_features(active: bool = True) -> frozenset[str]:
    """The features that some node has now (or, not ``active``, may have)."""
    told = run("sinfo", "-h", "-o", "%b" if active else "%f")
    return frozenset(one for line in told.splitlines() for one in _list(line.strip()))


def run(*command: str) -> str:
    """The output of a command of Slurm. Raises ToolMissing, TimedOut, OperatorError."""
    try:
        done = subprocess.run(
            command,
            capture_output=True,
            text=True,
            errors="replace",
            timeout=TIMEOUT_S,
            check=False,
            stdin=subprocess.DEVNULL,
            env=os.environ | {"LC_ALL": "C"},
        )
    except FileNotFoundError:
        raise ToolMissing(f"{command[0]} is not there", hint="are Slurm's clients here?") from None
    except subprocess.TimeoutExpired:
        raise TimedOut(f"{command[0]}: no answer", hint="is slurmctld up?") from None
    if done.returncode != 0:
        said = " ".join((done.stderr or done.stdout).split())
        raise OperatorError(f"{' '.join(command[:3])}: {said}", hint="see scontrol(1)")
    return done.stdout


def _list(text: str) -> tuple[str, ...]:
    return tuple(one for one in text.split(",") if one and one != "(null)")
