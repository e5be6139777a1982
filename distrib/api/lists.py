"""Signed image lists that were accepted, as they came."""

from __future__ import annotations

from typing import Annotated

from fastapi import APIRouter, Response
from fastapi import Path as PathParameter

from distrib.api.access import Use, Viewer
from distrib.catalogue.store import named_faults
from distrib.db.models import AcceptedList
from distrib.errors import NotFound

router = APIRouter(tags=["lists"])


@router.get("/lists/{sha512}")
def signed_list(
    sha512: Annotated[str, PathParameter(pattern=r"^[0-9a-f]{128}$")], services: Use, _actor: Viewer
) -> Response:
    """The message, byte for byte; of a proposed image, what its user said."""
    with services.database.reading() as session:
        accepted = session.get(AcceptedList, sha512)
    if accepted is None:
        raise NotFound(
            f"no list {sha512[:16]}… was accepted",
            hint="distrib list show, or image show, name them",
            sha512=sha512,
        )
    store = services.catalogue.store
    word = store.word_file(sha512)
    if word.exists():
        return Response(word.read_bytes(), media_type="application/json")
    file = store.list_file(sha512)
    with named_faults(file):
        return Response(file.read_bytes(), media_type="multipart/signed")
