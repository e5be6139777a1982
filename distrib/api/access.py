"""Who may call what: the dependencies of the routes."""

from __future__ import annotations

from typing import Annotated

from fastapi import Depends, Request

from distrib.api.bearer import Actor, authenticate
from distrib.api.services import Services
from distrib.db.models import Role
from distrib.errors import Forbidden


def services_of(request: Request) -> Services:
    """The services that the app was made with."""
    services: Services = request.app.state.services
    return services


def actor_of(request: Request) -> Actor:
    """Who calls, by the bearer token. Raises Unauthenticated."""
    services = services_of(request)
    with services.database.reading() as session:
        actor = authenticate(session, request.headers.get("authorization"), now=services.clock())
    request.state.actor = actor.name
    return actor


def _require(actor: Actor, *wanted: Role) -> Actor:
    if not any(actor.may(one) for one in wanted):
        raise Forbidden(
            f"{actor.name!r} is {actor.role}, this takes {' or '.join(wanted)}",
            hint="use a token with that role",
            role=actor.role,
        )
    return actor


def viewer(actor: Annotated[Actor, Depends(actor_of)]) -> Actor:
    """A viewer's token, or one that may more."""
    return _require(actor, Role.VIEWER)


def operator(actor: Annotated[Actor, Depends(actor_of)]) -> Actor:
    """An operator's or admin's token."""
    return _require(actor, Role.OPERATOR)


def admin(actor: Annotated[Actor, Depends(actor_of)]) -> Actor:
    """An admin's token."""
    return _require(actor, Role.ADMIN)


def proposer(actor: Annotated[Actor, Depends(actor_of)]) -> Actor:
    """A user's token, for their own images; or an admin's."""
    return _require(actor, Role.USER)


def proposals_reader(actor: Annotated[Actor, Depends(actor_of)]) -> Actor:
    """A user's token, for their own images; or a viewer's."""
    return _require(actor, Role.USER, Role.VIEWER)


def wanter(actor: Annotated[Actor, Depends(actor_of)]) -> Actor:
    """A batch system's token; or a user's, for their own jobs."""
    return _require(actor, Role.BATCH, Role.USER)


Use = Annotated[Services, Depends(services_of)]
Viewer = Annotated[Actor, Depends(viewer)]
Operator = Annotated[Actor, Depends(operator)]
Admin = Annotated[Actor, Depends(admin)]
Proposer = Annotated[Actor, Depends(proposer)]
ProposalsReader = Annotated[Actor, Depends(proposals_reader)]
Wanter = Annotated[Actor, Depends(wanter)]
