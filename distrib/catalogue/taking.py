"""Asking for an image that a list announces: from then on it is fetched from where the list says.

Whoever fetches looks for images that are ``expected`` and have a ``source``.
"""

from __future__ import annotations

from distrib.catalogue import transitions
from distrib.catalogue.clock import Clock
from distrib.catalogue.transitions import Change
from distrib.catalogue.versions import locked
from distrib.db.models import Image, ImageState
from distrib.db.references import image_name, require_unexpired
from distrib.db.session import Database
from distrib.errors import Conflict, Revoked


class Taking:
    """The site's wish for an image."""

    def __init__(self, *, database: Database, clock: Clock) -> None:
        self._database = database
        self._clock = clock

    def take(self, identifier: str, version: str, *, actor: str) -> Image:
        """Expect the image, from its ``hv:uri``. Of one that is expected, forget the last fault.

        Raises NotFound, Conflict (it is here already), Revoked (by the endorser, or denied),
        TrustRefused (its list or entry has expired).
        """
        now = self._clock()
        with self._database.transaction() as session:
            row = locked(session, identifier, version)
            name = image_name(row)
            if row.state in {ImageState.DENIED, ImageState.REVOKED}:
                raise Revoked(
                    f"image {name} is {row.state}: {row.reason}",
                    hint="take in another version",
                    image=name,
                )
            if row.state not in {ImageState.ANNOUNCED, ImageState.EXPECTED}:
                raise Conflict(
                    f"image {name} is {row.state}: its file is here",
                    hint="distrib image show says what comes next",
                    image=name,
                )
            require_unexpired(row, now)
            source = str(row.entry["hv:uri"])
            if row.state == ImageState.EXPECTED and row.source == source:
                row.fault = {}
                return row
            transitions.expected(session, row, source=source, change=Change(now, actor))
            return row
