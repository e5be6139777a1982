"""Images that users bring: proposed, sent in parts, listed, withdrawn."""

from __future__ import annotations

import asyncio
from typing import Annotated, Any

from fastapi import APIRouter, Query, Request
from pydantic import Field
from starlette.requests import ClientDisconnect

from distrib.api.access import ProposalsReader, Proposer, Use
from distrib.api.bearer import Actor
from distrib.api.body import Body
from distrib.api.images import view_of
from distrib.api.services import Services
from distrib.catalogue.proposal import TITLE_MAX_CHARS, Proposal
from distrib.catalogue.proposals import PART_MAX_BYTES
from distrib.db.models import Image
from distrib.errors import Forbidden, NetworkError, OperatorError

router = APIRouter(tags=["proposals"])

_Line = Annotated[str, Field(max_length=TITLE_MAX_CHARS)]


class ProposalRequest(Body):
    """``user``: for whom, by an admin; a user proposes for themselves."""

    title: _Line
    size_bytes: Annotated[int, Field(ge=1, le=1 << 50)]
    sha512: Annotated[str, Field(pattern=r"^[0-9a-fA-F]{128}$")]
    user: Annotated[str, Field(max_length=64)] | None = None
    description: _Line = ""
    format: Annotated[str, Field(max_length=40)] | None = None
    os: _Line = ""
    os_version: _Line = ""
    arch: _Line = "x86_64"


@router.post("/proposals", status_code=201)
def propose(body: ProposalRequest, services: Use, actor: Proposer) -> dict[str, Any]:
    """Expect an image of a user; the one that there is where that user proposed the same file."""
    given = body.model_dump(exclude={"user"})
    proposal = Proposal(user=_for_whom(actor, body.user), **given)
    row = services.catalogue.proposals.propose(proposal, actor=actor.name)
    return _view(services, row)


@router.get("/proposals")
def list_proposals(
    services: Use, actor: ProposalsReader, user: Annotated[str | None, Query(max_length=64)] = None
) -> dict[str, Any]:
    """The images of a user, or for a viewer of all users, newest first."""
    whose = _whose(actor) if actor.is_user else user
    return {"images": [_view(services, row) for row in services.catalogue.proposals.of_user(whose)]}


@router.get("/proposals/{identifier}")
def show_proposal(identifier: str, services: Use, actor: ProposalsReader) -> dict[str, Any]:
    """One of them, with how much of its file has come."""
    row = services.catalogue.proposals.get(identifier, user=_whose(actor))
    return _view(services, row)


@router.put("/proposals/{identifier}/content")
async def content(
    identifier: str,
    request: Request,
    services: Use,
    actor: Proposer,
    offset: Annotated[int, Query(ge=0, le=1 << 50)] = 0,
) -> dict[str, Any]:
    """The next bytes of the file, at most ``part_max_bytes``."""
    try:
        data = await request.body()
    except ClientDisconnect:
        raise NetworkError("the client went away", hint="send the part again") from None
    if not data:
        raise OperatorError("a part without a byte", hint=f"1 to {PART_MAX_BYTES} bytes")
    received = await services.catalogue.proposals.receive(
        identifier, offset=offset, data=data, user=_whose(actor), actor=actor.name
    )
    services.catalogue.collector.wake()
    return {"received_bytes": received}


@router.delete("/proposals/{identifier}")
async def withdraw(identifier: str, services: Use, actor: Proposer) -> dict[str, Any]:
    """Take it off the site list, and its bytes off the head."""
    row = await asyncio.to_thread(
        services.catalogue.proposals.withdraw,
        identifier,
        user=_whose(actor),
        actor=actor.name,
    )
    return {"withdrawn": f"{row.identifier}@{row.version}"}


def _whose(actor: Actor) -> str | None:
    return actor.name if actor.is_user else None


def _for_whom(actor: Actor, user: str | None) -> str:
    if actor.is_user:
        if user not in {None, actor.name}:
            raise Forbidden(
                f"{actor.name!r} may not propose an image for {user!r}",
                hint="an admin may",
                user=actor.name,
            )
        return actor.name
    if user is None:
        raise OperatorError("user: for whom is it?", hint="distrib image propose --for USER")
    return user


def _view(services: Services, row: Image) -> dict[str, Any]:
    return view_of(services, row) | {
        "received_bytes": services.catalogue.proposals.received_bytes(row),
        "awaits": services.catalogue.admission.awaits(row),
        "part_max_bytes": PART_MAX_BYTES,
    }
