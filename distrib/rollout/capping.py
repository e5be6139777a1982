"""Other caps for a rollout that is under way, or whose image its nodes still hold."""

from __future__ import annotations

import asyncio
from collections.abc import Mapping
from dataclasses import replace
from datetime import datetime

from sqlalchemy.orm import Session

from distrib.db import models
from distrib.db.audit import record
from distrib.db.session import Database
from distrib.rollout import records
from distrib.rollout.desired import Assigned
from distrib.rollout.records import RolloutRecord
from distrib.rollout.state import State


async def set_caps(
    state: State,
    database: Database,
    rollout: str,
    caps: Mapping[str, int],
    *,
    actor: str,
    now: datetime,
) -> RolloutRecord:
    """Cap it by ``download_bps``, ``upload_bps`` or both, 0: none. In the rollouts' task. Raises
    NotFound for one that nobody follows any more."""
    live = state.rollouts.get(rollout)
    if live is None:
        raise records.no_such_rollout(rollout)
    changed = replace(
        live,
        download_bps=caps.get("download_bps", live.download_bps),
        upload_bps=caps.get("upload_bps", live.upload_bps),
    )
    wanted: dict[str, tuple[Assigned, ...]] = {}
    for node, held in state.assigned.items():
        if any(one.rollout == rollout for one in held):
            wanted[node] = tuple(
                replace(one, download_bps=changed.download_bps, upload_bps=changed.upload_bps)
                if one.rollout == rollout
                else one
                for one in held
            )

    def save() -> None:
        with database.transaction() as session:
            _save(session, changed, actor=actor, now=now)
            records.save_assignments(session, wanted, now=now)

    await asyncio.to_thread(save)
    state.rollouts[rollout] = changed
    for node, held in wanted.items():
        state.assign(node, held)
    return changed


def _save(session: Session, kept: RolloutRecord, *, actor: str, now: datetime) -> None:
    row = session.get(models.Rollout, kept.rollout.id)
    caps = {"download_bps": kept.download_bps, "upload_bps": kept.upload_bps}
    if row is not None:
        row.options = row.options | caps
    record(session, at=now, actor=actor, action="caps-set", subject=kept.rollout.id, **caps)
