"""Tokens: who has one, and what it may do."""

from __future__ import annotations

from datetime import timedelta
from typing import Annotated, Any

from fastapi import APIRouter
from pydantic import Field
from sqlalchemy import select

from distrib.api.access import Admin, Use
from distrib.api.bearer import issue_token, revoke_token
from distrib.api.body import Body, RowNumber
from distrib.api.views import token_view
from distrib.db.models import Role, Token

router = APIRouter(tags=["tokens"])


class TokenRequest(Body):
    """``expires_s`` absent: the token does not expire."""

    name: Annotated[str, Field(pattern=r"^[\w.@-]{1,64}$")]
    role: Role
    expires_s: Annotated[float, Field(gt=0, le=10 * 366 * 86400)] | None = None


@router.get("/tokens")
def list_tokens(services: Use, _actor: Admin) -> dict[str, Any]:
    """Every token, without its secret."""
    with services.database.reading() as session:
        rows = session.scalars(select(Token).order_by(Token.id)).all()
    return {"tokens": [token_view(row) for row in rows]}


@router.post("/tokens", status_code=201)
def create(body: TokenRequest, services: Use, actor: Admin) -> dict[str, Any]:
    """A new token; its secret is in this answer alone."""
    now = services.clock()
    expires_at = now + timedelta(seconds=body.expires_s) if body.expires_s is not None else None
    with services.database.transaction() as session:
        issued = issue_token(
            session,
            name=body.name,
            role=body.role,
            now=now,
            actor=actor.name,
            expires_at=expires_at,
        )
    return token_view(issued.row) | {"token": issued.secret}


@router.delete("/tokens/{token_id}")
def revoke(token_id: RowNumber, services: Use, actor: Admin) -> dict[str, Any]:
    """The token is worth nothing from now on."""
    with services.database.transaction() as session:
        revoke_token(session, token_id, now=services.clock(), actor=actor.name)
    return {"revoked": token_id}
