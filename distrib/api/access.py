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


def _require(wanted: Role, actor: Actor) -> Actor:
    if not actor.may(wanted):
        raise Forbidden(
            f"{actor.name!r} is {actor.role}, this takes {wanted}",
            hint="use a token with that role",
            role=actor.role,
        )
    return actor


def viewer(actor: Annotated[Actor, Depends(actor_of)]) -> Actor:
    """Any valid token."""
    return _require(Role.VIEWER, actor)


def operator(actor: Annotated[Actor, Depends(actor_of)]) -> Actor:
    """An operator's or admin's token."""
    return _require(Role.OPERATOR, actor)


def admin(actor: Annotated[Actor, Depends(actor_of)]) -> Actor:
    """An admin's token."""
    return _require(Role.ADMIN, actor)


Use = Annotated[Services, Depends(services_of)]
Viewer = Annotated[Actor, Depends(viewer)]
Operator = Annotated[Actor, Depends(operator)]
Admin = Annotated[Actor, Depends(admin)]
