"""What becomes of a proposed image in quarantine: for its user at once, or up to an admin.

One that passed every required check is approved for its user (setting ``proposals.admit``). Nobody
overrides a check here: that takes an admin's ``approve --force``.
"""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import Callable
from datetime import timedelta
from typing import Literal

import structlog
from sqlalchemy import select

from distrib.catalogue.approval import Approval
from distrib.catalogue.clock import Clock
from distrib.catalogue.examination import Examination
from distrib.catalogue.preparation import ENDORSED_FILE
from distrib.catalogue.proposal_settings import ProposalSettings
from distrib.catalogue.proposals import Proposals
from distrib.catalogue.quota import check_bytes, held_by
from distrib.catalogue.versions import locked
from distrib.db.models import Image, ImageState
from distrib.db.references import image_name
from distrib.db.session import Database
from distrib.errors import Conflict, DistribError

log = structlog.get_logger(__name__)

ACTOR = "proposals"
LOOK_S = 60.0

Awaits = Literal["file", "checks", "admission", "admin", ""]


class Admission:
    """``changed`` is called when the site list may be due."""

    def __init__(
        self,
        *,
        database: Database,
        proposals: Proposals,
        examination: Examination,
        approval: Approval,
        settings: ProposalSettings,
        clock: Clock,
        changed: Callable[[], object],
    ) -> None:
        self._database = database
        self._proposals = proposals
        self._examination = examination
        self._approval = approval
        self._settings = settings
        self._clock = clock
        self._changed = changed

    def awaits(self, row: Image) -> Awaits:
        """What comes next for it, by itself or by somebody; empty: nothing."""
        if row.state == ImageState.EXPECTED:
            is_here = (self._proposals.folder(row) / ENDORSED_FILE).exists()
            return "checks" if is_here else "file"
        if row.state != ImageState.QUARANTINED:
            return ""
        return "admission" if not row.fault and self._passed(row) else "admin"

    async def admit(self, row: Image) -> None:
        """Approve a proposed image in quarantine for its user, if it passed what is required."""
        user = row.proposed_by
        if user is None:
            return
        try:
            await asyncio.to_thread(self._check_quota, user)
            if not await asyncio.to_thread(self._passed, row):
                return
            await self._approval.approve(
                row.identifier,
                row.version,
                audience=[user],
                reason="proposed, and passed every required check",
                actor=ACTOR,
            )
            await asyncio.to_thread(self._changed)
        except DistribError as error:
            log.warning(
                "proposal-not-admitted", image=image_name(row), code=error.code, why=error.message
            )
            await asyncio.to_thread(self._note_fault, row, error)

    async def run(self) -> None:
        """Admit what waits (a crash came between, checks were run again), drop what nobody sends
        any more; until cancelled."""
        while True:
            try:
                for row in await asyncio.to_thread(self._waiting):
                    await self.admit(row)
                await asyncio.to_thread(self.drop_unfinished)
            except DistribError as error:
                log.warning("proposals-not-read", code=error.code, why=error.message)
            await asyncio.sleep(LOOK_S)

    def drop_unfinished(self) -> None:
        """Forget uploads that stand still."""
        before = self._clock() - timedelta(seconds=self._settings.unfinished_s)
        for row in self._of_state(ImageState.EXPECTED):
            if self.awaits(row) == "file" and self._proposals.moved_at(row) < before:
                # Something of it comes just now: then it does not stand still.
                with contextlib.suppress(Conflict):
                    self._proposals.withdraw(row.identifier, user=None, actor=ACTOR)

    def _passed(self, row: Image) -> bool:
        if self._settings.admit == "never":
            return False
        with self._database.reading() as session:
            return not self._examination.missed(session, row)

    def _check_quota(self, user: str) -> None:
        # The raw disk may be far larger than what was uploaded.
        with self._database.reading() as session:
            check_bytes(self._settings, user, held_by(session, user))

    def _waiting(self) -> list[Image]:
        return [row for row in self._of_state(ImageState.QUARANTINED) if not row.fault]

    def _of_state(self, state: ImageState) -> list[Image]:
        query = select(Image).where(Image.proposed_by.is_not(None), Image.state == state)
        with self._database.reading() as session:
            return list(session.scalars(query))

    def _note_fault(self, row: Image, error: DistribError) -> None:
        with self._database.transaction() as session:
            fresh = locked(session, row.identifier, row.version)
            fresh.fault = {
                "code": error.code,
                "message": error.message,
                "hint": error.hint,
                "exit": int(error.exit_status),
                "at": self._clock().isoformat(),
                "attempts": 1,
            }
