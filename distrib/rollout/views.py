"""Rollouts and nodes as the API shows them (docs/formats/api.md)."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict
from datetime import UTC, datetime
from typing import Any

from distrib.rollout.fleet import Fleet
from distrib.rollout.machine import Bucket, Rollout, Target
from distrib.rollout.records import RolloutRecord

Document = Mapping[str, Any]


def rollout_view(kept: RolloutRecord, *, nodes: bool = True) -> dict[str, Any]:
    """One rollout; without ``nodes`` the rows are left out."""
    rollout = kept.rollout
    view: dict[str, Any] = {
        "id": rollout.id,
        "image": str(rollout.image),
        "alias": kept.alias,
        "infohash": rollout.image.infohash,
        "selector": kept.selector,
        "state": str(rollout.phase),
        "accepted_at": _time(rollout.accepted_at),
        "accepted_by": kept.accepted_by,
        "deadline": _time(rollout.deadline),
        "ended_at": _time(rollout.ended_at),
        "traffic": kept.traffic,
        "transport": kept.transport,
        "download_bps": kept.download_bps,
        "upload_bps": kept.upload_bps,
        "summary": asdict(rollout.summary()),
    }
    if nodes:
        view["nodes"] = [_row(rollout, rollout.targets[node]) for node in sorted(rollout.targets)]
    return view


def node_view(fleet: Fleet, node: str) -> dict[str, Any]:
    """Presence and newest report of a node, as far as there are any."""
    view: dict[str, Any] = {"online": fleet.is_online(node)}
    presence, report = fleet.presences.get(node), fleet.reports.get(node)
    if presence is not None:
        view["presence"] = presence.model_dump(mode="json", exclude_none=True)
    if report is not None:
        view["report"] = report.model_dump(mode="json", exclude_none=True)
    return view


def _row(rollout: Rollout, target: Target) -> dict[str, Any]:
    claim = target.claim
    pulling = target.bucket is Bucket.PULLING
    return {
        "node": target.node,
        "online": target.online,
        "state": str(target.bucket),
        "bytes_done": rollout.bytes_done(target),
        "bytes_total": rollout.size_bytes,
        "rate_bps": claim.rate_bps if claim is not None and pulling else 0,
        "fetched_bytes": 0 if claim is None else claim.fetched_bytes,
        "wasted_bytes": 0 if claim is None else claim.wasted_bytes,
        "copied_bytes": 0 if claim is None else claim.copied_bytes,
        "reason": target.reason,
        "text": "" if claim is None else claim.text,
        "since": _time(target.since),
        "ready_at": _time(target.ready_at),
    }


def _time(time: datetime | None) -> str | None:
    if time is None:
        return None
    return time.astimezone(UTC).isoformat(timespec="milliseconds").replace("+00:00", "Z")
