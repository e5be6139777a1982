"""The load sensor: what this host's agent holds, as complexes (sge_execd(8))."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from typing import Any

from agent.hooks.gridengine.names import IMAGES, READY, image_id, images_value
from distrib.errors import DistribError

_HERE = frozenset({"ready", "leased"})


def values(status: Mapping[str, Any] | None) -> dict[str, str]:
    """The complexes for an answer to ``status``; without one the host takes no guests."""
    if status is None:
        return {READY: "0", IMAGES: images_value(())}
    ids = []
    for image in status["report"]["images"]:
        if image["state"] in _HERE:
            if image["active"]:
                ids.append(image_id(image["identifier"]))
            ids.append(image_id(f"{image['identifier']}@{image['version']}"))
    # Jobs that wait for one that was denied meanwhile would do so for ever: here they are refused.
    # (An agent that still runs from before an upgrade tells none.)
    ids += [image_id(one) for one in status.get("withdrawn", ())]
    return {READY: "1" if status["leasable"] else "0", IMAGES: images_value(ids)}


def report(
    lines: Iterator[str],
    say: Callable[[str], None],
    *,
    host: str,
    ask: Callable[[], Mapping[str, Any]],
) -> None:
    """Answer each line with a report, until ``quit`` or the end."""
    for line in lines:
        if line.strip() == "quit":
            return
        try:
            found = values(ask())
        except DistribError:
            found = values(None)
        say("begin")
        for name, value in found.items():
            say(f"{host}:{name}:{value}")
        say("end")
