"""Waiting on a node for an image that is approved and on its way."""

from __future__ import annotations

import time
from pathlib import Path
from typing import Final

from agent.hooks.held import names_held
from agent.socket.client import ask
from distrib.errors import NotReady

POLL_S: Final = 0.5


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
            raise OnItsWay(
                f"image {image} did not come to this node in {wait_s:.0f} s",
                hint="the job is queued again",
            )
        time.sleep(POLL_S)
