"""What a node holds, by every name that a job may give it. Pure."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Final

_HERE: Final = frozenset({"ready", "leased"})


def held(status: Mapping[str, Any] | None) -> dict[str, str]:
    """UUID and active version (empty: none is) of the images here, for an answer to ``status``."""
    found: dict[str, str] = {}
    for image in _images(status):
        found.setdefault(image["identifier"], "")
        if image["active"]:
            found[image["identifier"]] = image["version"]
    return found


def names_held(status: Mapping[str, Any] | None) -> list[str]:
    """UUIDs, aliases, and both with ``@VERSION``: what IMAGE may be so that it is here already."""
    meant: dict[str, list[str]] = {}
    for alias, identifier in (status or {}).get("aliases", {}).items():
        meant.setdefault(identifier, []).append(alias)
    found: dict[str, None] = {}
    for image in _images(status):
        for name in (image["identifier"], *sorted(meant.get(image["identifier"], []))):
            if image["active"]:
                found[name] = None
            found[f"{name}@{image['version']}"] = None
    return list(found)


def _images(status: Mapping[str, Any] | None) -> list[Mapping[str, Any]]:
    if status is None or not status["leasable"]:
        return []
    return [image for image in status["report"]["images"] if image["state"] in _HERE]
