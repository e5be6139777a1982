"""Images on their way in: uploaded or fetched, and what the checks say of them."""

from __future__ import annotations

import asyncio
from typing import Any

from fastapi import APIRouter, Request
from starlette.requests import ClientDisconnect

from distrib.api.access import Admin, Use, Viewer
from distrib.api.images import one_version, view_of
from distrib.api.services import Services
from distrib.api.views import checks_view
from distrib.catalogue.examination import checks_of
from distrib.db.models import ImageState
from distrib.db.references import image_name, resolve
from distrib.errors import NetworkError

router = APIRouter(tags=["images"])

_WAITING = frozenset({ImageState.QUARANTINED})
_TAKEABLE = frozenset({ImageState.ANNOUNCED, ImageState.EXPECTED})


@router.put("/images/{ref:path}/content")
async def content(ref: str, request: Request, services: Use, actor: Admin) -> dict[str, Any]:
    """Take the file in, streamed; it is checked on the way, made raw, and looked into."""
    row = await asyncio.to_thread(one_version, services, ref)
    declared = request.headers.get("content-length", "")
    try:
        received = await services.catalogue.quarantine.receive(
            row.identifier,
            row.version,
            request.stream(),
            declared_bytes=int(declared) if declared.isdigit() else None,
            actor=actor.name,
        )
    except ClientDisconnect:
        raise NetworkError("the client went away", hint="add the image again") from None
    return await asyncio.to_thread(view_of, services, received)


@router.post("/images/{ref:path}/take")
def take(ref: str, services: Use, actor: Admin) -> dict[str, Any]:
    """Let the head fetch an announced image from where its list says."""
    row = one_version(services, ref, preferred=_TAKEABLE)
    taken = services.catalogue.taking.take(row.identifier, row.version, actor=actor.name)
    services.catalogue.collector.wake()
    return view_of(services, taken)


@router.post("/images/{ref:path}/checks")
async def check_again(ref: str, services: Use, actor: Admin) -> dict[str, Any]:
    """Run all checks once more on an image in quarantine; what they say now."""
    row = await asyncio.to_thread(one_version, services, ref, preferred=_WAITING)
    await services.catalogue.rechecking.check(row.identifier, row.version, actor=actor.name)
    return await asyncio.to_thread(_checks_of, services, image_name(row))


@router.get("/images/{ref:path}/checks")
def checks(ref: str, services: Use, _actor: Viewer) -> dict[str, Any]:
    """What the checks said of one image version, and which of them are required."""
    return _checks_of(services, ref)


def _checks_of(services: Services, ref: str) -> dict[str, Any]:
    with services.database.reading() as session:
        row = resolve(session, ref)
        return {
            "image": image_name(row),
            "state": row.state,
            "required": list(services.catalogue.examination.settings.required_checks),
            "on_fail": services.catalogue.examination.settings.on_fail,
            "checks": checks_view(checks_of(session, row)),
        }
