"""What became of an image: its history at the site, and where it is in use now."""

from __future__ import annotations

import asyncio
from collections.abc import Mapping
from typing import Any

from fastapi import APIRouter
from sqlalchemy import select

from distrib.api.access import Use, Viewer
from distrib.api.services import Services
from distrib.api.views import image_view, time_text
from distrib.catalogue.history import Step
from distrib.db.models import Node
from distrib.db.references import identifier_of, versions_of
from distrib.errors import NotFound
from distrib.trust.sitelist import parse_image_ref

router = APIRouter(tags=["images"])


@router.get("/images/{ref:path}/history")
def history(ref: str, services: Use, _actor: Viewer) -> dict[str, Any]:
    """Everything that happened to an image, oldest first."""
    found = services.catalogue.history.of(ref)
    return {
        "identifier": found.identifier,
        "aliases": list(found.aliases),
        "versions": [image_view(row, list(found.aliases)) for row in found.versions],
        "history": [_step_view(step) for step in found.steps],
    }


@router.get("/images/{ref:path}/where-running")
async def where_running(ref: str, services: Use, _actor: Viewer) -> dict[str, Any]:
    """Who holds leases of an image on which node, by the nodes' newest reports."""
    identifier, version, nodes = await asyncio.to_thread(_wanted, services, ref)
    uses = []
    for name in nodes:
        said = await services.rollouts.node_view(name)
        report = said.get("report") or {}
        for image in report.get("images", ()):
            wanted = image["identifier"] == identifier and version in {None, image["version"]}
            if wanted and image.get("leases", 0) > 0:
                uses.append(_use_view(name, said, image))
    return {
        "identifier": identifier,
        "version": version,
        "leases": sum(use["leases"] for use in uses),
        "uses": uses,
    }


def _wanted(services: Services, ref: str) -> tuple[str, str | None, list[str]]:
    parsed = parse_image_ref(ref)
    with services.database.reading() as session:
        identifier = identifier_of(session, parsed.name)
        known = {row.version for row in versions_of(session, identifier)}
        if parsed.version is not None and parsed.version not in known:
            raise NotFound(
                f"image {parsed.name} has no version {parsed.version[:80]!r}",
                hint="distrib image show names them all",
                image=ref[:120],
            )
        nodes = list(session.scalars(select(Node.name).order_by(Node.name)))
    return identifier, parsed.version, nodes


def _use_view(node: str, said: Mapping[str, Any], image: Mapping[str, Any]) -> dict[str, Any]:
    return {
        "node": node,
        "online": bool(said.get("online")),
        "reported_at": said["report"].get("sent_at"),
        "version": image["version"],
        "state": image["state"],
        "leases": image["leases"],
        "holders": list(image.get("holders", ())),
    }


def _step_view(step: Step) -> dict[str, Any]:
    return {
        "at": time_text(step.at),
        "what": step.what,
        "version": step.version,
        "actor": step.actor,
        "text": step.text,
        "detail": step.detail,
    }
