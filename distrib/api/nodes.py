"""The inventory of nodes, and what is known of each."""

from __future__ import annotations

import asyncio
import ipaddress
from typing import Annotated, Any

from fastapi import APIRouter
from pydantic import Field, field_validator
from sqlalchemy import select

from distrib.api.access import Operator, Use, Viewer
from distrib.api.body import Body
from distrib.api.services import Services
from distrib.api.views import node_view
from distrib.bus.messages import Transport
from distrib.bus.schema import HostKeys
from distrib.bus.topics import is_node_name
from distrib.db.audit import record
from distrib.db.models import Node
from distrib.errors import NotFound, OperatorError
from distrib.rollout.plan import LINK_LABEL, TRANSPORT_LABEL, is_link_rate

router = APIRouter(tags=["nodes"])

# What a selector can name (docs/formats/api.md, Selector).
_Rack = Annotated[str, Field(pattern=r"^([^\s,+=]{1,64})?$")]
_LabelKey = Annotated[str, Field(pattern=r"^[\w./-]{1,64}$")]
_LabelValue = Annotated[str, Field(pattern=r"^[^\s,+=]{1,64}$")]


class NodeEntry(Body):
    """Where a node is; the whole entry is replaced."""

    address: str
    rack: _Rack = ""
    labels: Annotated[dict[_LabelKey, _LabelValue], Field(max_length=64, default_factory=dict)]
    host_keys: HostKeys = ()

    @field_validator("address")
    @classmethod
    def _is_address(cls, value: str) -> str:
        """Peers are introduced by address: a name that somebody else resolves would not do."""
        try:
            return str(ipaddress.ip_address(value))
        except ValueError:
            raise ValueError(f"{value[:60]!r} is no IP address") from None

    @field_validator("labels")
    @classmethod
    def _has_a_rate(cls, value: dict[str, str]) -> dict[str, str]:
        """The labels that are more than names: the relay plan, and what nodes are told."""
        if LINK_LABEL in value and not is_link_rate(value[LINK_LABEL]):
            raise ValueError(f"{LINK_LABEL}={value[LINK_LABEL]}: a whole number of Mbit/s")
        if value.get(TRANSPORT_LABEL, "swarm") not in set(Transport):
            raise ValueError(f"{TRANSPORT_LABEL}={value[TRANSPORT_LABEL]}: swarm, tsunami or auto")
        return value


@router.get("/nodes")
async def list_nodes(services: Use, _actor: Viewer) -> dict[str, Any]:
    """Every node with its presence and newest report."""
    rows = await asyncio.to_thread(_all, services)
    return {
        "nodes": [
            node_view(row) | dict(await services.rollouts.node_view(row.name)) for row in rows
        ]
    }


@router.get("/nodes/{name}")
async def show_node(name: str, services: Use, _actor: Viewer) -> dict[str, Any]:
    """One node with its presence and newest report."""
    row = await asyncio.to_thread(_get, services, name)
    return node_view(row) | dict(await services.rollouts.node_view(name))


@router.put("/nodes/{name}")
async def put_node(name: str, body: NodeEntry, services: Use, actor: Operator) -> dict[str, Any]:
    """Add a node, or replace its entry."""
    if not is_node_name(name):
        raise OperatorError(
            f"{name[:80]!r} cannot be a node's name",
            hint="lower-case letters, digits, dot and dash; none of the reserved names",
            node=name[:80],
        )
    row = await asyncio.to_thread(_put, services, name, body, actor.name)
    services.node_changed(name)
    return node_view(row)


@router.delete("/nodes/{name}")
async def forget_node(name: str, services: Use, actor: Operator) -> dict[str, Any]:
    """Off the inventory; its retained topics are cleared."""
    await asyncio.to_thread(_get, services, name)
    await services.rollouts.forget(name, actor.name)
    services.node_changed(name)
    return {"forgotten": name}


def _all(services: Services) -> list[Node]:
    with services.database.reading() as session:
        return list(session.scalars(select(Node).order_by(Node.name)))


def _get(services: Services, name: str) -> Node:
    with services.database.reading() as session:
        row = session.get(Node, name)
    if row is None:
        raise NotFound(f"no node {name[:80]!r}", hint="distrib node list", node=name[:80])
    return row


def _put(services: Services, name: str, body: NodeEntry, actor: str) -> Node:
    now = services.clock()
    with services.database.transaction() as session:
        row = session.get(Node, name)
        action = "node-added" if row is None else "node-changed"
        if row is None:
            row = Node(name=name, added_at=now, added_by=actor)
            session.add(row)
        row.address, row.rack, row.labels = body.address, body.rack, dict(body.labels)
        row.host_keys = list(body.host_keys)
        record(
            session,
            at=now,
            actor=actor,
            action=action,
            subject=name,
            address=body.address,
            rack=body.rack,
            labels=dict(body.labels),
            host_keys=list(body.host_keys),
        )
        return row
