"""What LSF reads and writes: resources of an elim, parameters of an esub. Pure."""

from __future__ import annotations

import math
import re
from collections.abc import Iterable, Mapping
from typing import Any, Final

from agent.hooks.gridengine.names import image_id
from agent.hooks.held import names_held

IMAGE_VARIABLE: Final = "VM_IMG"
MEMORY_VARIABLE: Final = "VM_MEM_MIB"
READY: Final = "vm_ready"
PREFIX: Final = "img_"
LEAST_MEMORY_MIB: Final = 64

_PARAMETER = re.compile(r'([A-Za-z0-9_]+)="?(.*?)"?')
_MEMORY = re.compile(
    r"\brusage\s*\[[^\]]*\bmem\s*=\s*(\d{1,12}(?:\.\d{1,9})?)\s*([KMGTkmgt]?)[Bb]?\s*(/\s*\w+)?"
)
_UNITS_MIB = {"K": 1 / 1024, "": 1, "M": 1, "G": 1024, "T": 1024**2}
_ORDER = re.compile(r"\border\s*\[([^\]]*)\]")
_SELECT = re.compile(r"\bselect\s*\[([^\]]*)\]")


def resource(reference: str) -> str:
    """The numeric resource that stands for ``UUID`` or ``UUID@VERSION``: 1 where it is held."""
    return PREFIX + image_id(reference)


def elim_line(status: Mapping[str, Any] | None, wanted: Iterable[str]) -> str:
    """One report: the number of resources, then names and values.

    ``wanted``: what ``LSF_RESOURCES`` says this host shares; of ours all are told, each time."""
    held = {resource(name) for name in names_held(status)}
    values = {READY: 1 if status and status["leasable"] else 0}
    values |= {name: int(name in held) for name in wanted if name.startswith(PREFIX)}
    pairs = [text for name, value in values.items() for text in (name, str(value))]
    return " ".join([str(len(values)), *pairs])


def shared_lines(references: Iterable[str]) -> list[str]:
    """Lines for the Resource section of lsf.shared: more of each is better."""
    names = [READY, *dict.fromkeys(resource(one) for one in references)]
    return [f"{name} Numeric 30 N (distrib)" for name in names]


def map_lines(references: Iterable[str]) -> list[str]:
    """Lines for the ResourceMap section of lsf.cluster: every host has its own."""
    names = [READY, *dict.fromkeys(resource(one) for one in references)]
    return [f"{name} [default]" for name in names]


def parameters(text: str) -> dict[str, str]:
    """``LSB_SUB_PARM_FILE``: options of the submission, one ``NAME="value"`` a line."""
    found = {}
    for line in text.splitlines():
        if match := _PARAMETER.fullmatch(line.strip()):
            found[match[1]] = match[2]
    return found


def requirement(asked: str, name: str | None) -> str:
    """The resource requirement of a job with an image: a host that may give guests, best one that
    holds it (``name``). What the user asked for stays, and comes first in an order."""
    ready = f"{READY}==1"
    if _SELECT.search(asked):
        text = _SELECT.sub(lambda one: f"select[({one[1]}) && {ready}]", asked, count=1)
    else:
        text = f"select[{ready}] {asked}".strip()
    if name is None:
        return text
    if _ORDER.search(text):
        return _ORDER.sub(lambda one: f"order[{one[1]}:{name}]", text, count=1)
    return f"{text} order[{name}]"


def memory_mib(asked: str, *, slots: int = 1) -> int | None:
    """MiB that a requirement reserves on the job's host (``rusage[mem=N]``, MB are LSF's default
    unit, ``N/task`` is of each of ``slots``); None for none."""
    match = _MEMORY.search(asked)
    if match is None:
        return None
    each = float(match[1]) * _UNITS_MIB[match[2].upper()]
    per_task = (match[3] or "").lstrip("/ ") == "task"
    return math.ceil(each * (slots if per_task else 1)) or None
