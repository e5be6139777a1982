"""Waiting on a node for an image that is approved and on its way, and leasing it."""

from __future__ import annotations

import time
from collections.abc import Mapping
from pathlib import Path
from typing import Final

from agent.hooks.held import names_held
from agent.socket.client import ask
from distrib.errors import DistribError, NotReady

POLL_S: Final = 0.5

_NOT_HERE = frozenset({"not-found", "not-ready"})


class OnItsWay(NotReady):
    """The image is approved, and not on this node yet."""


def await_image(socket: Path, image: str, *, user: str | None, job: str, wait_s: float) -> None:
    """Return once ``image`` is here; ask the controller for it meanwhile.

    Raises what the agent answers (not approved, not for this user), OnItsWay after ``wait_s``."""
    deadline_s = time.monotonic() + wait_s
    while True:
        # Raises where the site approves no such image (for this user) at all.
        told = ask(socket, "want", image=image, user=user, job=job)
        _, at, version = image.partition("@")
        if told["identifier"] + at + version in names_held(ask(socket, "status")):
            return
        if time.monotonic() >= deadline_s:
            raise _on_its_way(image, wait_s)
        time.sleep(POLL_S)


def lease_when_here(
    socket: Path,
    image: str,
    *,
    user: str | None,
    job: str,
    holder: Mapping[str, object],
    wait_s: float,
) -> str:
    """A lease of ``image`` for a job; where it is not here, the controller is asked for it.

    Raises what the agent answers, OnItsWay after ``wait_s``."""
    deadline_s = time.monotonic() + wait_s
    while True:
        try:
            lease = ask(socket, "lease", image=image, user=user, holder=dict(holder))
        except DistribError as error:
            if error.code not in _NOT_HERE:
                raise
            # Raises where the site approves no such image (for this user) at all.
            ask(socket, "want", image=image, user=user, job=job)
            if time.monotonic() >= deadline_s:
                raise _on_its_way(image, wait_s) from None
            time.sleep(POLL_S)
        else:
            return str(lease["lease"])


def _on_its_way(image: str, wait_s: float) -> OnItsWay:
    return OnItsWay(
        f"image {image} did not come to this node in {wait_s:.0f} s",
        hint="the job is queued again",
    )
