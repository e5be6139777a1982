"""Images, aliases and the site list."""

from __future__ import annotations

import asyncio
import base64
import binascii
import hashlib
from collections.abc import Collection
from typing import Annotated, Any, Literal

from fastapi import APIRouter, Request, Response
from pydantic import Field
from sqlalchemy import select

from distrib.api.access import Admin, Operator, Use, Viewer
from distrib.api.body import Body
from distrib.api.services import Services
from distrib.api.views import checks_view, image_view
from distrib.catalogue.examination import checks_of
from distrib.catalogue.intake import ImageChoice
from distrib.db.models import Image, ImageState
from distrib.db.references import (
    aliases_of,
    identifier_of,
    resolve,
    versions_of,
)
from distrib.errors import NotFound, OperatorError
from distrib.trust.sitelist import parse_image_ref

router = APIRouter(tags=["images"])

_User = Annotated[str, Field(pattern=r"^[^\s:/\x00-\x1f\x7f]{1,64}$")]


class Announcement(Body):
    """``list`` is the signed list in base64; the rest says which of its images."""

    list: str
    sha512: Annotated[str, Field(pattern=r"^[0-9a-fA-F]{128}$")] | None = None
    identifier: str | None = None
    title: str | None = None
    version: str | None = None
    size_bytes: Annotated[int, Field(ge=1)]


class ApprovalRequest(Body):
    """``audience`` absent: everybody, or as it was; ``force``: why, although checks failed."""

    aliases: Annotated[tuple[str, ...], Field(max_length=32)] = ()
    audience: Literal["all"] | Annotated[tuple[_User, ...], Field(max_length=1000)] | None = None
    reason: Annotated[str, Field(max_length=1000)] = ""
    force: Annotated[str, Field(max_length=1000)] = ""


class Reason(Body):
    """Why the image may not run here, or may again."""

    reason: Annotated[str, Field(min_length=1, max_length=1000)]


class DenialRequest(Reason):
    """``kill``: also end what runs from it, wherever it is found."""

    kill: bool = False


class AliasTarget(Body):
    """The UUID (or another alias of it) that the alias is to mean."""

    identifier: str


@router.post("/images", status_code=201)
def announce(body: Announcement, services: Use, actor: Admin) -> dict[str, Any]:
    """Accept a signed list and expect one image of it."""
    try:
        message = base64.b64decode(body.list, validate=True)
    except (binascii.Error, ValueError):
        raise OperatorError("list: not base64", hint="send the signed file in base64") from None
    choice = ImageChoice(
        sha512=body.sha512,
        identifier=body.identifier,
        title=body.title,
        version=body.version,
        size_bytes=body.size_bytes,
    )
    try:
        row = services.catalogue.intake.announce(message, choice, actor=actor.name)
    finally:
        # The list may have revoked images, whatever became of this one.
        services.catalogue.publisher.publish_if_due()
    return view_of(services, row)


@router.post("/images/{ref:path}/approve")
async def approve(ref: str, body: ApprovalRequest, services: Use, actor: Admin) -> dict[str, Any]:
    """Make the torrent and put the image on the site list."""
    row = await asyncio.to_thread(one_version, services, ref)
    approved = await services.catalogue.approval.approve(
        row.identifier,
        row.version,
        aliases=body.aliases,
        audience=body.audience,
        reason=body.reason,
        force=body.force,
        actor=actor.name,
    )
    await asyncio.to_thread(services.catalogue.publisher.publish_if_due)
    return await asyncio.to_thread(view_of, services, approved)


@router.post("/images/{ref:path}/deny")
async def deny(ref: str, body: DenialRequest, services: Use, actor: Admin) -> dict[str, Any]:
    """Take the image version off the site list at once; with ``kill`` end what runs from it."""
    denied = await asyncio.to_thread(_deny, services, ref, body.reason, actor.name)
    view = await asyncio.to_thread(view_of, services, denied)
    if body.kill:
        view["uses"] = await services.rollouts.uses.end_uses(
            denied.identifier, denied.version, reason=body.reason, actor=actor.name
        )
    return view


def _deny(services: Services, ref: str, reason: str, actor: str) -> Image:
    row = one_version(services, ref)
    denied = services.catalogue.denial.deny(row.identifier, row.version, reason=reason, actor=actor)
    services.catalogue.publisher.publish_if_due()
    return denied


@router.post("/images/{ref:path}/undeny")
def undeny(ref: str, body: Reason, services: Use, actor: Admin) -> dict[str, Any]:
    """Take a denial back: the image version is again what it was."""
    row = one_version(services, ref, preferred=frozenset({ImageState.DENIED}))
    undenied = services.catalogue.denial.undeny(
        row.identifier, row.version, reason=body.reason, actor=actor.name
    )
    services.catalogue.publisher.publish_if_due()
    return view_of(services, undenied)


@router.get("/images")
def list_images(services: Use, _actor: Viewer) -> dict[str, Any]:
    """Every image version, those of one image together, newest first."""
    with services.database.reading() as session:
        identifiers = session.scalars(
            select(Image.identifier).distinct().order_by(Image.identifier)
        )
        images = [
            image_view(row, aliases_of(session, identifier))
            for identifier in identifiers.all()
            for row in versions_of(session, identifier)
        ]
    return {"images": images}


@router.get("/images/{ref:path}")
def show(ref: str, services: Use, _actor: Viewer) -> dict[str, Any]:
    """One image version, and which others there are."""
    with services.database.reading() as session:
        row = resolve(session, ref)
        versions = [
            {"version": other.version, "state": other.state}
            for other in versions_of(session, row.identifier)
        ]
        view = image_view(row, aliases_of(session, row.identifier))
        return view | {"versions": versions, "checks": checks_view(checks_of(session, row))}


@router.put("/aliases/{alias}")
def set_alias(alias: str, body: AliasTarget, services: Use, actor: Operator) -> dict[str, Any]:
    """Let an alias mean an image."""
    identifier = services.catalogue.approval.set_alias(alias, body.identifier, actor=actor.name)
    services.catalogue.publisher.publish_if_due()
    return {"alias": alias, "identifier": identifier}


@router.get("/site-list")
def site_list(request: Request, services: Use) -> Response:
    """The signed site list; what it says is no secret, and it is signed.

    Asked for again with its ETag it is not sent again."""
    message = services.catalogue.publisher.current()
    if message is None:
        raise NotFound("no site list yet", hint="it is signed when the controller has started")
    tag = f'"{hashlib.sha512(message).hexdigest()}"'
    # A denial must not wait in a cache: it may be kept, and is asked for each time.
    headers = {"ETag": tag, "Cache-Control": "no-cache"}
    if _is_known(request.headers.get("if-none-match", ""), tag):
        return Response(status_code=304, headers=headers)
    return Response(message, media_type="multipart/signed", headers=headers)


def _is_known(if_none_match: str, tag: str) -> bool:
    """RFC 9110, 13.1.2: the comparison is weak, a star stands for whatever there is."""
    tags = {given.strip().removeprefix("W/") for given in if_none_match.split(",")}
    return "*" in tags or tag in tags


def view_of(services: Services, row: Image) -> dict[str, Any]:
    """An image version, with what its checks said."""
    with services.database.reading() as session:
        view = image_view(row, aliases_of(session, row.identifier))
        return view | {"checks": checks_view(checks_of(session, row))}


_STANDING = frozenset(ImageState) - {ImageState.SUPERSEDED}


def one_version(
    services: Services, ref: str, *, preferred: Collection[ImageState] = _STANDING
) -> Image:
    """The image version that is to be changed: named in full, or the only one there is.

    Of several it is the only one in a ``preferred`` state."""
    with services.database.reading() as session:
        parsed = parse_image_ref(ref)
        if parsed.version is None:
            versions = versions_of(session, identifier_of(session, parsed.name))
            open_ones = [row for row in versions if row.state in preferred]
            if len(versions) > 1 and len(open_ones) != 1:
                known = ", ".join(row.version for row in versions[:8])
                raise OperatorError(
                    f"image {ref[:120]} has {len(versions)} versions",
                    hint=f"name one: {ref[:120]}@VERSION of {known}",
                )
            return (open_ones or versions)[0]
        return resolve(session, ref)
