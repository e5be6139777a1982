"""Who may sign which image list."""

from __future__ import annotations

from typing import Annotated, Any

from fastapi import APIRouter
from pydantic import Field

from distrib.api.access import Admin, Use, Viewer
from distrib.api.body import Body, RowNumber
from distrib.api.views import endorser_view

router = APIRouter(tags=["endorsers"])


class EndorserEntry(Body):
    """``list`` absent: any list that nobody else owns. ``replace``: and nobody else for it."""

    dn: Annotated[str, Field(min_length=1, max_length=2000)]
    ca: Annotated[str, Field(min_length=1, max_length=2000)]
    list: (
        Annotated[str, Field(pattern=r"^[0-9a-fA-F]{8}(-[0-9a-fA-F]{4}){3}-[0-9a-fA-F]{12}$")]
        | None
    ) = None
    replace: bool = False


@router.get("/endorsers")
def list_endorsers(services: Use, _actor: Viewer) -> dict[str, Any]:
    """Every entry; and whom subscriptions name, each for its own list."""
    endorsers = services.catalogue.endorsers
    return {
        "endorsers": [endorser_view(row) for row in endorsers.all()],
        "subscriptions": [
            {"subscription": row.id, "dn": row.dn, "ca": row.ca, "list": row.identifier}
            for row in endorsers.of_subscriptions()
        ],
    }


@router.post("/endorsers", status_code=201)
def add(body: EndorserEntry, services: Use, actor: Admin) -> dict[str, Any]:
    """Let somebody sign a list."""
    row = services.catalogue.endorsers.add(
        dn=body.dn, ca=body.ca, list_identifier=body.list, actor=actor.name, replace=body.replace
    )
    return endorser_view(row)


@router.delete("/endorsers/{endorser_id}")
def remove(endorser_id: RowNumber, services: Use, actor: Admin) -> dict[str, Any]:
    """No list of this endorser is accepted any more."""
    services.catalogue.endorsers.remove(endorser_id, actor=actor.name)
    return {"removed": endorser_id}
