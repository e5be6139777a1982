"""Slurm's own commands: features of nodes, and what a job was given."""

from __future__ import annotations

import math
import re
from dataclasses import dataclass

from agent.hooks.clients import answered
from distrib.errors import NodeError, OperatorError

_PAIR = re.compile(r"(?:^|\s)(AvailableFeatures|ActiveFeatures)=(\S*)")

_GRANTED = re.compile(r"(?:^|\s)(NumCPUs|MinMemoryNode|MinMemoryCPU)=(\S*)")
_MEMORY = re.compile(r"(\d+(?:\.\d+)?)([KMGT]?)")
_UNITS_MIB = {"K": 1 / 1024, "": 1, "M": 1, "G": 1024, "T": 1024**2}


@dataclass(frozen=True)
class Features:
    """Of one node, in slurmctld's order."""

    available: tuple[str, ...]
    active: tuple[str, ...]


@dataclass(frozen=True)
class Grant:
    """What a job has on its one node; None where Slurm does not count it."""

    memory_mib: int | None
    vcpus: int | None


def grant_in(text: str, job: str) -> Grant:
    """What ``scontrol -o show job JOB`` says. Raises NodeError for another answer."""
    # The number of an array is that of its last task too: all of its tasks are told.
    lines = [line for line in text.splitlines() if line.startswith(f"JobId={job} ")]
    found = dict(_GRANTED.findall(lines[0] if lines else ""))
    try:
        cpus = int(found["NumCPUs"])
    except (KeyError, ValueError):
        raise NodeError("scontrol show job: no CPUs in the answer") from None
    each = _mib(found.get("MinMemoryCPU", ""))
    memory_mib = each * cpus if each else _mib(found.get("MinMemoryNode", ""))
    return Grant(memory_mib or None, cpus or None)


def grant(job: str) -> Grant:
    """What slurmctld gave a job. Raises as ``run``."""
    return grant_in(run("scontrol", "-o", "show", "job", job), job)


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
    done = answered(command, missing="are Slurm's clients here?", silent="is slurmctld up?")
    if done.returncode != 0:
        said = " ".join((done.stderr or done.stdout).split())
        raise OperatorError(f"{' '.join(command[:3])}: {said}", hint="see scontrol(1)")
    return done.stdout


def _mib(text: str) -> int:
    number = _MEMORY.fullmatch(text)
    return math.ceil(float(number[1]) * _UNITS_MIB[number[2]]) if number else 0


def _list(text: str) -> tuple[str, ...]:
    return tuple(one for one in text.split(",") if one and one != "(null)")
