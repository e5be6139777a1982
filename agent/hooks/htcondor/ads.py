"""The machine ad's attributes, and the answer of a job's prepare hook. Pure."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Final

from agent.hooks.fault import of_node
from agent.hooks.held import held, names_held
from agent.hooks.htcondor.classad import Value
from distrib.errors import DistribError

JOB_IMAGE: Final = "VmName"
"""In the submit file: ``+VmName = "ccin2p3"`` (or ``MY.VmName``)."""

LEASABLE: Final = "DistribLeasable"
IMAGES: Final = "DistribImages"
IMAGE_PREFIX: Final = "DistribImage_"

HOLD, IDLE = 100, 300
"""HookStatusCode: below 300 the job is held, from 300 on it is idle again and matched anew."""


def machine(status: Mapping[str, Any] | None) -> dict[str, Value]:
    """What the startd publishes: ``DistribImage_<UUID with _> = "active version"`` for every image
    held, and all names of theirs as a string list, for ``stringListMember``."""
    found: dict[str, Value] = {LEASABLE: bool(status and status["leasable"])}
    found[IMAGES] = ",".join(names_held(status))
    for identifier, version in held(status).items():
        found[IMAGE_PREFIX + identifier.replace("-", "_")] = version
    return found


def job_image(ad: Mapping[str, Value | None]) -> str | None:
    """The image that a job's ad names; an expression in its place is none."""
    image = ad.get(JOB_IMAGE.lower())
    return image if isinstance(image, str) and image else None


def answer(error: DistribError | None) -> dict[str, Value]:
    """The prepare hook's output for what the agent said."""
    if error is None:
        return {}
    hint = f" ({error.hint})" if error.hint else ""
    code = IDLE if of_node(error) else HOLD
    return {"HookStatusCode": code, "HookStatusMessage": f"distrib: {error.message}{hint}"[:900]}
