"""Bearer tokens: issued once, stored as SHA-256, compared in constant time."""

from __future__ import annotations

import hashlib
import hmac
import secrets
from dataclasses import dataclass
from datetime import datetime

from sqlalchemy import select
from sqlalchemy.orm import Session

from distrib.api.faults import Unauthenticated
from distrib.db.audit import record
from distrib.db.models import Role, Token
from distrib.errors import Conflict, NotFound

_RANK = {Role.VIEWER: 0, Role.OPERATOR: 1, Role.ADMIN: 2}


@dataclass(frozen=True)
class Actor:
    """Who calls: the name of the token, and what it may do."""

    name: str
    role: Role

    def may(self, wanted: Role) -> bool:
        """Whether the role suffices."""
        return _RANK[self.role] >= _RANK[wanted]


@dataclass(frozen=True)
class IssuedToken:
    """A new token. ``secret`` is what the client sends; it is nowhere else."""

    row: Token
    secret: str


def issue_token(
    session: Session,
    *,
    name: str,
    role: Role,
    now: datetime,
    actor: str,
    expires_at: datetime | None = None,
    replace: bool = False,
) -> IssuedToken:
    """A token called ``name``; Conflict if there is one, unless it is to be replaced."""
    found = session.scalar(select(Token).where(Token.name == name))
    if found is not None and not replace:
        raise Conflict(
            f"there is a token {name!r} already", hint="revoke it, or take another name", token=name
        )
    if found is not None:
        session.delete(found)
        session.flush()
    secret = secrets.token_urlsafe(32)
    row = Token(
        name=name,
        role=role,
        sha256=_digest(secret),
        created_at=now,
        created_by=actor,
        expires_at=expires_at,
    )
    session.add(row)
    session.flush()
    record(
        session,
        at=now,
        actor=actor,
        action="token-created",
        subject=name,
        role=role,
        id=row.id,
        expires_at=expires_at.isoformat() if expires_at else None,
    )
    return IssuedToken(row, secret)


def revoke_token(session: Session, token_id: int, *, now: datetime, actor: str) -> None:
    """The token is worth nothing from now on. Raises NotFound."""
    found = session.get(Token, token_id)
    if found is None:
        raise NotFound(f"no token {token_id}", hint="distrib token list", token=token_id)
    session.delete(found)
    record(session, at=now, actor=actor, action="token-revoked", subject=found.name, id=token_id)


def authenticate(session: Session, header: str | None, *, now: datetime) -> Actor:
    """Whose the ``Authorization`` header is. Raises Unauthenticated."""
    scheme, _, secret = (header or "").partition(" ")
    if scheme.lower() != "bearer" or not secret:
        raise Unauthenticated("no token", hint="set token or token_file in client.toml")
    digest = _digest(secret.strip())
    # Found by digest, so that the time of the look-up tells nothing of the token.
    found = session.scalar(select(Token).where(Token.sha256 == digest))
    if found is None or not hmac.compare_digest(found.sha256, digest):
        raise Unauthenticated("unknown token", hint="ask an admin: distrib token create")
    if found.expires_at is not None and found.expires_at <= now:
        raise Unauthenticated(
            f"the token {found.name!r} has expired", hint="ask an admin: distrib token create"
        )
    return Actor(found.name, Role(found.role))


def _digest(secret: str) -> str:
    return hashlib.sha256(secret.encode()).hexdigest()
