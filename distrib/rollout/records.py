"""Rollouts, assignments and generations in the database; synchronous, called in a thread."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, replace
from datetime import datetime
from typing import Any

from sqlalchemy import delete, or_, select, update
from sqlalchemy.orm import Session

from distrib.bus.messages import Event
from distrib.db import models
from distrib.db.audit import record
from distrib.db.counters import ROLLOUT_NUMBER, rise
from distrib.db.references import USABLE
from distrib.errors import NotFound
from distrib.rollout.desired import Assigned
from distrib.rollout.machine import (
    DEFAULT_SILENT_S,
    Claim,
    ImageKey,
    Phase,
    Rollout,
    Target,
)
from distrib.rollout.plan import InventoryNode

CONTROLLER = "controller"


@dataclass(frozen=True)
class RolloutRecord:
    """A rollout, and what was asked for."""

    rollout: Rollout
    alias: str | None
    selector: str
    accepted_by: str
    download_bps: int = 0
    upload_bps: int = 0
    traffic: str = "foreground"
    transport: str = "swarm"

    def moved(self, rollout: Rollout) -> RolloutRecord:
        """The same request, another state."""
        return self if rollout is self.rollout else replace(self, rollout=rollout)


@dataclass(frozen=True)
class IssuedNumbers:
    """The last numbers that a node was sent; neither ever falls."""

    generation: int = 0
    sequence: int = 0


def load_inventory(session: Session) -> dict[str, InventoryNode]:
    """Every node, by name."""
    return {
        row.name: InventoryNode(
            row.name, row.address, row.rack, dict(row.labels), tuple(row.host_keys)
        )
        for row in session.scalars(select(models.Node))
    }


def load_assignments(session: Session) -> dict[str, tuple[Assigned, ...]]:
    """What is wanted on each node, of the images that nodes may hold."""
    wanted: dict[str, tuple[Assigned, ...]] = {}
    query = (
        select(
            models.Assignment,
            models.Image.infohash,
            models.Image.size_bytes,
            models.Rollout.options,
        )
        .select_from(models.Assignment)
        .join(models.Image)
        .outerjoin(models.Rollout, models.Rollout.id == models.Assignment.rollout)
        .where(models.Image.state.in_(USABLE), models.Image.infohash.is_not(None))
        .order_by(models.Assignment.node, models.Assignment.since)
    )
    for row, infohash, size_bytes, options in session.execute(query):
        one = Assigned(
            node=row.node,
            identifier=row.identifier,
            version=row.version,
            infohash=infohash or "",
            active=row.active,
            pinned=row.pinned,
            priority=row.priority,
            transport=row.transport,
            rollout=row.rollout,
            download_bps=row.download_bps,
            upload_bps=row.upload_bps,
            traffic=str((options or {}).get("traffic", "foreground")),
            deadline=row.deadline,
            size_bytes=size_bytes or 0,
        )
        wanted[row.node] = (*wanted.get(row.node, ()), one)
    return wanted


def save_assignments(
    session: Session, changed: Mapping[str, tuple[Assigned, ...]], *, now: datetime
) -> None:
    """Replace what is wanted on these nodes. Rows of images that may not be held now stay."""
    usable = select(models.Image.identifier, models.Image.version).where(
        models.Image.state.in_(USABLE)
    )
    known = {(identifier, version) for identifier, version in session.execute(usable)}
    for node, wanted in changed.items():
        kept = {(one.identifier, one.version) for one in wanted}
        rows = session.scalars(select(models.Assignment).where(models.Assignment.node == node))
        for row in rows.all():
            if (row.identifier, row.version) in known - kept:
                session.delete(row)
        for one in wanted:
            session.merge(
                models.Assignment(
                    node=node,
                    identifier=one.identifier,
                    version=one.version,
                    active=one.active,
                    pinned=one.pinned,
                    priority=one.priority,
                    transport=one.transport,
                    rollout=one.rollout,
                    download_bps=one.download_bps,
                    upload_bps=one.upload_bps,
                    deadline=one.deadline,
                    since=now,
                )
            )


def load_numbers(session: Session) -> dict[str, IssuedNumbers]:
    """The last numbers of every node that was ever told anything."""
    return {
        row.node: IssuedNumbers(row.generation, row.orders_sequence)
        for row in session.scalars(select(models.Generation))
    }


def save_numbers(session: Session, numbers: Mapping[str, IssuedNumbers]) -> None:
    """Keep the numbers that are about to be sent."""
    for node, issued in numbers.items():
        session.merge(
            models.Generation(
                node=node, generation=issued.generation, orders_sequence=issued.sequence
            )
        )


def new_rollout_id(session: Session, now: datetime, *, kind: str = "r") -> str:
    """``r-DATE-NUMBER``, or ``p-…`` of a pre-staging; the number only rises."""
    return f"{kind}-{now:%Y%m%d}-{rise(session, ROLLOUT_NUMBER)}"


def add_rollout(session: Session, kept: RolloutRecord) -> None:
    """A rollout that was accepted, with its targets."""
    rollout = kept.rollout
    session.add(
        models.Rollout(
            id=rollout.id,
            identifier=rollout.image.identifier,
            version=rollout.image.version,
            infohash=rollout.image.infohash,
            alias=kept.alias,
            selector=kept.selector,
            state=rollout.phase,
            accepted_at=rollout.accepted_at,
            accepted_by=kept.accepted_by,
            deadline=rollout.deadline,
            options={
                "download_bps": kept.download_bps,
                "upload_bps": kept.upload_bps,
                "traffic": kept.traffic,
                "transport": kept.transport,
                "size_bytes": rollout.size_bytes,
            },
        )
    )
    session.flush()
    save_targets(session, rollout, rollout.targets)
    record(
        session,
        at=rollout.accepted_at,
        actor=kept.accepted_by,
        action="rollout-started",
        subject=rollout.id,
        image=str(rollout.image),
        selector=kept.selector,
        targets=len(rollout.targets),
    )


def worth_a_write(target: Target | None) -> tuple[object, ...] | None:
    """What of a row is written at each change; progress comes again with the next report."""
    if target is None:
        return None
    return (target.bucket, target.reason, target.online, target.generation, target.ready_at)


def save_targets(session: Session, rollout: Rollout, nodes: Iterable[str]) -> None:
    """The rows of these nodes; of a node that is no target any more the row goes."""
    for node in nodes:
        target = rollout.targets.get(node)
        if target is None:
            session.execute(
                delete(models.RolloutTarget).where(
                    models.RolloutTarget.rollout == rollout.id, models.RolloutTarget.node == node
                )
            )
        else:
            session.merge(_target_row(rollout, target))


def end_rollout(session: Session, kept: RolloutRecord, *, actor: str) -> None:
    """The rollout has ended."""
    rollout = kept.rollout
    session.execute(
        update(models.Rollout)
        .where(models.Rollout.id == rollout.id)
        .values(state=rollout.phase, ended_at=rollout.ended_at, ended_by=actor)
    )
    counts = rollout.summary()
    record(
        session,
        at=rollout.ended_at or rollout.accepted_at,
        actor=actor,
        action=f"rollout-{rollout.phase}",
        subject=rollout.id,
        targets=counts.targets,
        ready=counts.ready,
        failed=counts.failed,
        offline=counts.offline,
    )


def load_live(session: Session, *, silent_s: float) -> dict[str, RolloutRecord]:
    """The rollouts that run, and those whose image is still wanted somewhere because of them."""
    wanted = select(models.Assignment.rollout).where(models.Assignment.rollout.is_not(None))
    rows = session.scalars(
        select(models.Rollout)
        .where(or_(models.Rollout.state == Phase.RUNNING, models.Rollout.id.in_(wanted.distinct())))
        .order_by(models.Rollout.accepted_at, models.Rollout.id)
    )
    return {row.id: _record(session, row, silent_s) for row in rows}


def load_rollout(session: Session, rollout: str) -> RolloutRecord:
    """One rollout with its rows. Raises NotFound."""
    row = session.get(models.Rollout, rollout)
    if row is None:
        raise no_such_rollout(rollout)
    return _record(session, row, DEFAULT_SILENT_S)


def no_such_rollout(rollout: str) -> NotFound:
    """The refusal."""
    return NotFound(
        f"no rollout {rollout[:80]!r}", hint="distrib rollout list", rollout=rollout[:80]
    )


def load_newest(session: Session, *, limit: int) -> list[RolloutRecord]:
    """The newest rollouts, newest first."""
    rows = session.scalars(
        select(models.Rollout)
        .order_by(models.Rollout.accepted_at.desc(), models.Rollout.id.desc())
        .limit(limit)
    )
    return [_record(session, row, DEFAULT_SILENT_S) for row in rows]


def add_events(session: Session, events: Iterable[Event], *, now: datetime) -> None:
    """What nodes reported for the audit; a repeat changes nothing."""
    for event in events:
        if session.get(models.NodeEvent, (event.node, event.id)) is None:
            detail = event.model_dump(mode="json", exclude_none=True, exclude_defaults=True)
            session.add(
                models.NodeEvent(
                    node=event.node,
                    event_id=event.id,
                    at=event.at,
                    received_at=now,
                    kind=event.kind,
                    detail=detail,
                )
            )


def remove_node(session: Session, node: str, *, actor: str, now: datetime) -> None:
    """Off the inventory, with its assignments; its numbers stay. Raises NotFound."""
    row = session.get(models.Node, node)
    if row is None:
        raise NotFound(f"no node {node[:80]!r}", hint="distrib node list", node=node[:80])
    session.execute(delete(models.Assignment).where(models.Assignment.node == node))
    session.delete(row)
    record(session, at=now, actor=actor, action="node-forgotten", subject=node)


def _target_row(rollout: Rollout, target: Target) -> models.RolloutTarget:
    claim = target.claim
    detail: dict[str, Any] = {"generation": target.generation}
    if target.cancelled:
        detail["cancelled"] = True
    if claim is not None:
        detail |= {
            "claimed": claim.state,
            "fetched_bytes": claim.fetched_bytes,
            "wasted_bytes": claim.wasted_bytes,
            "copied_bytes": claim.copied_bytes,
        }
    return models.RolloutTarget(
        rollout=rollout.id,
        node=target.node,
        state=target.bucket,
        online=target.online,
        bytes_done=rollout.bytes_done(target),
        bytes_total=rollout.size_bytes,
        rate_bps=0 if claim is None else claim.rate_bps,
        reason=target.reason,
        text="" if claim is None else claim.text,
        since=target.since,
        ready_at=target.ready_at,
        detail=detail,
    )


def _record(session: Session, row: models.Rollout, silent_s: float) -> RolloutRecord:
    rows = session.scalars(
        select(models.RolloutTarget).where(models.RolloutTarget.rollout == row.id)
    )
    rollout = Rollout(
        id=row.id,
        image=ImageKey(row.identifier, row.version, row.infohash),
        size_bytes=int(row.options.get("size_bytes", 0)),
        accepted_at=row.accepted_at,
        alone_since=row.accepted_at,
        stirred_at=row.accepted_at,
        deadline=row.deadline,
        phase=Phase(row.state),
        ended_at=row.ended_at,
        silent_s=silent_s,
        targets={target.node: _target(target) for target in rows},
    )
    return RolloutRecord(
        rollout,
        alias=row.alias,
        selector=row.selector,
        accepted_by=row.accepted_by,
        download_bps=int(row.options.get("download_bps", 0)),
        upload_bps=int(row.options.get("upload_bps", 0)),
        traffic=str(row.options.get("traffic", "foreground")),
        transport=str(row.options.get("transport", "swarm")),
    )


def _target(row: models.RolloutTarget) -> Target:
    claimed = row.detail.get("claimed")
    claim = claimed and Claim(
        state=str(claimed),
        since=row.since,
        bytes_done=row.bytes_done,
        bytes_total=row.bytes_total,
        reason=row.reason,
        text=row.text,
        fetched_bytes=int(row.detail.get("fetched_bytes", 0)),
        wasted_bytes=int(row.detail.get("wasted_bytes", 0)),
        copied_bytes=int(row.detail.get("copied_bytes", 0)),
    )
    generation = row.detail.get("generation")
    return Target(
        node=row.node,
        online=row.online,
        since=row.since,
        generation=generation,
        # Clocks of silence begin anew with the one who listens.
        issued_at=None if generation is None else row.since,
        heard_at=row.since if claim else None,
        claim=claim or None,
        ready_at=row.ready_at,
        cancelled=bool(row.detail.get("cancelled")),
    )
