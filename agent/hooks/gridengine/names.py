"""Names and values that Grid Engine's side knows (docs/formats/hooks.md). Pure."""

from __future__ import annotations

import hashlib
import re
from collections.abc import Iterable
from typing import Final

SCHEDULER: Final = "gridengine"

CONTEXT_IMAGE: Final = "vm_name"
"""``qsub -ac vm_name=IMAGE``."""

IMAGE_VARIABLE: Final = "VM_IMG"
MEMORY_VARIABLE: Final = "VM_MEM_MIB"
JOB_VARIABLES: Final = (IMAGE_VARIABLE, MEMORY_VARIABLE)
"""Set or deleted by the JSV for every job: what is in them is the site's."""

MEMORY: Final = "vmem"
READY: Final = "vm_ready"
IMAGES: Final = "vm_images"

VALUE_MAX_BYTES: Final = 900
"""A load value has 1000 bytes in sge_execd, and no bound is checked there."""

REQUEUE, REFUSE = 99, 100
"""Exit statuses of a prolog or job: run it again elsewhere; put the job in error state."""

_FACTORS = {"": 0, "k": 10, "m": 20, "g": 30}
_MEMORY_VALUE = re.compile(r"(\d{1,15}(?:\.\d{1,6})?)([kmgKMG]?)")


def job_id(job: str, task: str) -> str:
    """How a job, or one task of an array, is named: ``4711.1``."""
    return f"{job}.{task if task.isdecimal() else '1'}"


def image_id(reference: str) -> str:
    """What stands for ``UUID`` or ``UUID@VERSION`` in ``vm_images``: 10 hex digits.

    Short, since a load value is; two images with the same one would only attract each other's jobs.
    """
    return hashlib.sha256(reference.encode()).hexdigest()[:10]


def images_value(identifiers: Iterable[str]) -> str:
    """The value of ``vm_images``: ``+ID+ID+``. What does not fit is left out, the last first."""
    value = "+"
    for one in identifiers:
        if len(value) + len(one) + 1 > VALUE_MAX_BYTES:
            break
        value += f"{one}+"
    return value


def images_pattern(identifier: str) -> str:
    """The request that a host with this image fulfils (RESTRING, complex(5))."""
    return f"*+{identifier}+*"


def memory_mib(text: str) -> int | None:
    """MiB of guest memory for a memory value; None where it is none.

    Grid Engine's small letters are powers of 1000, but a guest's memory is a binary amount, and who
    asks for ``2g`` means what a machine with 2 GiB has: both cases are powers of 1024 here."""
    match = _MEMORY_VALUE.fullmatch(text)
    if match is None:
        return None
    return int(float(match[1]) * (1 << _FACTORS[match[2].lower()])) >> 20
