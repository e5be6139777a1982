"""Rollouts: start, look, watch, abort."""

from __future__ import annotations

import json
from collections.abc import AsyncIterator
from typing import Annotated, Any

from fastapi import APIRouter
from fastapi.responses import StreamingResponse
from pydantic import Field

from distrib.api.access import Operator, Use, Viewer
from distrib.api.body import Body
from distrib.api.services import Document
from distrib.bus.messages import Traffic, Transport

router = APIRouter(tags=["rollouts"])


class RolloutRequest(Body):
    """``nodes`` is a selector; rates in bytes per second, 0: no limit."""

    image: Annotated[str, Field(min_length=1, max_length=200)]
    nodes: Annotated[str, Field(min_length=1, max_length=4000)]
    download_bps: Annotated[int, Field(ge=0, le=1 << 40)] = 0
    upload_bps: Annotated[int, Field(ge=0, le=1 << 40)] = 0
    traffic: Traffic = Traffic.FOREGROUND
    transport: Transport = Transport.SWARM
    deadline_s: Annotated[float, Field(gt=0, le=30 * 86400)] | None = None


@router.post("/rollouts", status_code=201)
async def start(body: RolloutRequest, services: Use, actor: Operator) -> Document:
    """Accept a rollout."""
    return await services.rollouts.start(body.model_dump(exclude_none=True), actor.name)


@router.get("/rollouts")
async def list_rollouts(services: Use, _actor: Viewer) -> dict[str, Any]:
    """Every rollout, newest first."""
    return {"rollouts": await services.rollouts.list()}


@router.get("/rollouts/{rollout}")
async def show(rollout: str, services: Use, _actor: Viewer) -> Document:
    """One rollout with its nodes."""
    return await services.rollouts.show(rollout)


@router.get("/rollouts/{rollout}/watch")
async def watch(rollout: str, services: Use, _actor: Viewer) -> StreamingResponse:
    """The rollout as JSON lines, one on each change, until it ends."""
    # Asked for before the stream begins, so that an unknown rollout is a 404 and not a torn stream.
    await services.rollouts.show(rollout)
    return StreamingResponse(
        _lines(services.rollouts.watch(rollout)), media_type="application/x-ndjson"
    )


@router.post("/rollouts/{rollout}/abort")
async def abort(rollout: str, services: Use, actor: Operator) -> Document:
    """Nodes stop pulling; nothing is evicted."""
    return await services.rollouts.abort(rollout, actor.name)


async def _lines(documents: AsyncIterator[Document]) -> AsyncIterator[str]:
    async for document in documents:
        yield json.dumps(document, separators=(",", ":")) + "\n"
