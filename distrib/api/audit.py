"""The audit log."""

from __future__ import annotations

from typing import Annotated, Any

from fastapi import APIRouter, Query

from distrib.api.access import Use, Viewer
from distrib.api.views import audit_view
from distrib.db.audit import newest

router = APIRouter(tags=["audit"])


@router.get("/audit")
def audit(
    services: Use,
    _actor: Viewer,
    limit: Annotated[int, Query(ge=1, le=1000)] = 100,
    before: Annotated[int | None, Query(ge=1)] = None,
) -> dict[str, Any]:
    """Who did what, newest first; ``before`` an id pages on."""
    with services.database.reading() as session:
        rows = newest(session, limit=limit, before_id=before)
    return {"audit": [audit_view(row) for row in rows]}
