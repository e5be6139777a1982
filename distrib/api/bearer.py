"""Bearer tokens: issued once, stored as SHA-256, compared in constant time."""

from __future__ import annotations

import hashlib
import hmac
import secrets
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path

from sqlalchemy import select
from sqlalchemy.orm import Session

from distrib.api.faults import Unauthenticated
from distrib.catalogue.store import write_atomically
from distrib.db.audit import record
from distrib.db.models import Role, Token
from distrib.db.session import Database
from distrib.errors import ConfigInvalid, Conflict, NotFound

#: What each role may: what is called by its own name, and all that another role may.
_MAY: dict[Role, frozenset[Role]] = {
    Role.VIEWER: frozenset({Role.VIEWER}),
    Role.USER: frozenset({Role.USER}),
    Role.BATCH: frozenset({Role.BATCH}),
    Role.OPERATOR: frozenset({Role.VIEWER, Role.BATCH, Role.OPERATOR}),
    Role.ADMIN: frozenset(Role),
}


@dataclass(frozen=True)
class Actor:
    """Who calls: the name of the token, and what it may do."""

    name: str
    role: Role

    def may(self, wanted: Role) -> bool:
        """Whether the role suffices."""
        return wanted in _MAY[self.role]

    @property
    def is_user(self) -> bool:
        """Whether it is a user of the site, who speaks for themselves alone."""
        return self.role is Role.USER


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


def keep_token_file(
    database: Database, file: Path, *, name: str, role: Role, now: datetime
) -> None:
    """See to it that ``file`` (0600) holds a token that is valid: how a new site gets its first.

    A token of that name that the file does not hold is replaced, so losing the file is mended.
    Raises ConfigInvalid for a file that cannot be read or written.
    """
    try:
        held = file.read_text(encoding="utf-8").strip() if file.exists() else ""
        with database.transaction() as session:
            found = session.scalar(select(Token).where(Token.name == name))
            same = found is not None and hmac.compare_digest(found.sha256, _digest(held))
            if same and found is not None and found.role == role and _in_time(found, now):
                return
            issued = issue_token(
                session, name=name, role=role, now=now, actor="controller", replace=True
            )
            # Before the commit: a token that nobody holds would be of no use.
            file.parent.mkdir(parents=True, exist_ok=True)
            write_atomically(file, issued.secret.encode() + b"\n", mode=0o600)
    except (OSError, UnicodeDecodeError) as error:
        raise ConfigInvalid(
            f"{file}: {error}", hint="make it readable and writable for the controller"
        ) from None


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
    if not _in_time(found, now):
        raise Unauthenticated(
            f"the token {found.name!r} has expired", hint="ask an admin: distrib token create"
        )
    return Actor(found.name, Role(found.role))


def _in_time(token: Token, now: datetime) -> bool:
    return token.expires_at is None or now < token.expires_at


def _digest(secret: str) -> str:
    return hashlib.sha256(secret.encode()).hexdigest()
