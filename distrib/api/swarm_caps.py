"""Caps by how near a peer is, and of rollouts: looked at, and set at run time."""

from __future__ import annotations

from typing import Annotated, Any

from fastapi import APIRouter
from pydantic import Field

from distrib.api.access import Operator, Use, Viewer
from distrib.api.body import Body
from distrib.api.services import Document
from distrib.bus.messages import Caps

router = APIRouter(tags=["swarm"])

Rate = Annotated[int, Field(ge=0, le=1 << 40)]


class CapsBody(Body):
    """Bytes per second; 0: no limit."""

    download_bps: Rate
    upload_bps: Rate


class TiersBody(Body):
    """What is left out stays; null: as the controller's settings say."""

    rack: CapsBody | None = None
    room: CapsBody | None = None
    elsewhere: CapsBody | None = None


class RolloutCapsBody(Body):
    """What is left out stays."""

    download_bps: Rate | None = None
    upload_bps: Rate | None = None


@router.get("/caps")
async def show_caps(services: Use, _actor: Viewer) -> Document:
    """The caps in force."""
    return services.farm.view()


@router.put("/caps")
async def set_caps(body: TiersBody, services: Use, actor: Operator) -> Document:
    """Every node is told at once; nobody reconnects."""
    wanted = {tier: _caps(getattr(body, tier)) for tier in body.model_fields_set}
    await services.farm.set_caps(wanted, actor.name)
    return services.farm.view()


@router.put("/rollouts/{rollout}/caps")
async def set_rollout_caps(
    rollout: str, body: RolloutCapsBody, services: Use, actor: Operator
) -> Document:
    """Of each node's pull and serving of the rollout's image."""
    caps: dict[str, Any] = body.model_dump(exclude_none=True)
    return await services.rollouts.set_caps(rollout, caps, actor.name)


def _caps(body: CapsBody | None) -> Caps | None:
    return None if body is None else Caps(**body.model_dump())
