"""How many images, and bytes of them, one user of the site may have here."""

from __future__ import annotations

from collections.abc import Sequence

from sqlalchemy import select
from sqlalchemy.orm import Session

from distrib.catalogue.proposal_settings import ProposalSettings
from distrib.db.models import Image, ImageState
from distrib.errors import ExitStatus, OperatorError
from distrib.printable import bytes_text


class QuotaExceeded(OperatorError):
    """The user has as many images, or bytes of them, as one user may."""

    code = "quota-exceeded"
    exit_status = ExitStatus.NO_SPACE


def held_by(session: Session, user: str | None) -> list[Image]:
    """The proposed images of a user (None: of all) whose bytes are or may come here."""
    query = select(Image).where(Image.proposed_by.is_not(None), Image.state != ImageState.REVOKED)
    if user is not None:
        query = query.where(Image.proposed_by == user)
    return list(session.scalars(query))


def check_room(
    settings: ProposalSettings, user: str, held: Sequence[Image], *, more_bytes: int
) -> None:
    """Whether one more image, of so many bytes, is within the quota. Raises QuotaExceeded."""
    if len(held) >= settings.max_images:
        raise QuotaExceeded(
            f"{user} has {len(held)} images here, as many as one user may",
            hint="distrib image withdraw takes one off (proposals.max_images)",
            user=user,
        )
    check_bytes(settings, user, held, more_bytes=more_bytes)


def check_bytes(
    settings: ProposalSettings, user: str, held: Sequence[Image], *, more_bytes: int = 0
) -> None:
    """Of each image the larger counts, the file that came or the raw disk. Raises QuotaExceeded."""
    total = sum(max(row.endorsed_size_bytes, row.size_bytes or 0) for row in held) + more_bytes
    if total > settings.max_bytes:
        raise QuotaExceeded(
            f"{user} would have images of {bytes_text(total)} here,"
            f" one user may have {bytes_text(settings.max_bytes)}",
            hint="distrib image withdraw takes one off (proposals.max_bytes)",
            user=user,
        )
