"""What queued jobs want on the nodes: pre-staging on demand."""

from __future__ import annotations

from typing import Annotated, Any

from fastapi import APIRouter, Query
from pydantic import Field

from distrib.api.access import Use, Wanter
from distrib.api.bearer import Actor
from distrib.api.body import Body
from distrib.api.services import Document
from distrib.errors import Forbidden, NotFound
from distrib.rollout.wanting import Wish

router = APIRouter(tags=["wants"])

_Image = Annotated[str, Field(min_length=1, max_length=200)]
_Job = Annotated[str, Field(min_length=1, max_length=128)]


class WantRequest(Body):
    """``user``: whose job it is; ``nodes``: a selector, those of the job's queue."""

    image: _Image
    job: _Job
    user: Annotated[str, Field(max_length=64)] = ""
    nodes: Annotated[str, Field(max_length=4000)] = ""


@router.post("/wants", status_code=201)
async def want(body: WantRequest, services: Use, actor: Wanter) -> Document:
    """A queued job names an image: see to it that it comes. Said again, it counts for longer."""
    if actor.is_user and body.user not in {"", actor.name}:
        raise Forbidden(
            f"{actor.name!r} may not speak for {body.user!r}",
            hint="a user wants images for jobs of their own",
            user=actor.name,
        )
    wish = Wish(
        image=body.image,
        job=_job_of(actor, body.job),
        asked_by=actor.name,
        user=actor.name if actor.is_user else body.user,
        nodes=body.nodes.strip(),
    )
    return await services.rollouts.uses.want(wish)


@router.get("/wants")
async def list_wants(services: Use, actor: Wanter) -> dict[str, Any]:
    """The wants that count, newest first; a user sees their own."""
    found = await services.rollouts.uses.wants()
    if actor.is_user:
        found = [one for one in found if one["user"] == actor.name]
    return {"wants": found}


@router.delete("/wants")
async def done(
    services: Use,
    actor: Wanter,
    image: Annotated[str, Query(min_length=1, max_length=200)],
    job: Annotated[str, Query(min_length=1, max_length=128)],
) -> dict[str, Any]:
    """The job wants the image no more."""
    dropped = await services.rollouts.uses.done_wanting(image, _job_of(actor, job))
    if not dropped:
        raise NotFound(f"job {job[:80]!r} does not want {image[:80]}", hint="distrib image wants")
    return {"image": image, "job": job, "wanted": False}


def _job_of(actor: Actor, job: str) -> str:
    """What a user calls a job must not be another's."""
    return f"{actor.name}:{job}"[:128] if actor.is_user else job
