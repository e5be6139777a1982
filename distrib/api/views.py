"""Rows of the database as the API shows them."""

from __future__ import annotations

from collections.abc import Iterable
from datetime import UTC, datetime
from typing import Any

from distrib.db.intake_models import ImageCheck
from distrib.db.models import Audit, Endorser, Image, Node, Token
from distrib.db.references import image_name


def time_text(time: datetime | None) -> str | None:
    """RFC 3339 in UTC with milliseconds."""
    if time is None:
        return None
    return time.astimezone(UTC).isoformat(timespec="milliseconds").replace("+00:00", "Z")


def image_view(image: Image, aliases: list[str]) -> dict[str, Any]:
    """An image version."""
    return {
        "image": image_name(image),
        "identifier": image.identifier,
        "version": image.version,
        "title": image.title,
        "aliases": aliases,
        "state": image.state,
        "since": time_text(image.since),
        "reason": image.reason,
        "until": time_text(image.until),
        "expires": time_text(image.expires),
        "approved_at": time_text(image.approved_at),
        "audience": image.audience.get("users", "all"),
        "infohash": image.infohash,
        "sha512": image.sha512,
        "size_bytes": image.size_bytes,
        "piece_bytes": image.piece_bytes,
        "endorsed": {"sha512": image.endorsed_sha512, "size_bytes": image.endorsed_size_bytes},
        "source": image.source,
        "fetched_bytes": image.fetched_bytes,
        "fault": image.fault,
        "origin": {
            "list": image.list_identifier,
            "list_version": image.list_version,
            "list_sha512": image.list_sha512,
            "endorser_dn": image.endorser_dn,
            "endorser_ca": image.endorser_ca,
        },
        "proposed_by": image.proposed_by,
    }


def checks_view(checks: Iterable[ImageCheck]) -> list[dict[str, Any]]:
    """What the policy checks of an image said."""
    return [
        {
            "name": check.name,
            "outcome": check.outcome,
            "text": check.text,
            "at": time_text(check.at),
        }
        for check in checks
    ]


def endorser_view(endorser: Endorser) -> dict[str, Any]:
    """Who may sign which list."""
    return {
        "id": endorser.id,
        "dn": endorser.dn,
        "ca": endorser.ca,
        "list": endorser.list_identifier,
        "added_at": time_text(endorser.added_at),
        "added_by": endorser.added_by,
    }


def node_view(node: Node) -> dict[str, Any]:
    """A node of the inventory."""
    return {
        "name": node.name,
        "address": node.address,
        "rack": node.rack,
        "labels": node.labels,
        "host_keys": node.host_keys,
        "added_at": time_text(node.added_at),
        "added_by": node.added_by,
    }


def token_view(token: Token) -> dict[str, Any]:
    """A token without its secret, which nobody has."""
    return {
        "id": token.id,
        "name": token.name,
        "role": token.role,
        "created_at": time_text(token.created_at),
        "created_by": token.created_by,
        "expires_at": time_text(token.expires_at),
    }


def audit_view(row: Audit) -> dict[str, Any]:
    """One line of the audit log."""
    return {
        "id": row.id,
        "at": time_text(row.at),
        "actor": row.actor,
        "action": row.action,
        "subject": row.subject,
        "detail": row.detail,
    }
