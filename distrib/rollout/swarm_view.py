"""A swarm as the API shows it: the planned relay tree, what nodes say, who stalls and why.

Shape: docs/formats/api.md, Swarm.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping
from datetime import datetime
from statistics import median_low
from typing import Any

from distrib.bus.messages import ImageReport
from distrib.rollout.desired import report_interval_s
from distrib.rollout.fleet import Fleet
from distrib.swarm.health import COMPLETE, Stall, Watched, find_stalls
from distrib.swarm.relay_peers import Links

PATIENCE_S = 10.0
"""Bytes and reports may stay away so long, or for this many reports, before it is said."""

PATIENCE_REPORTS = 4


def swarm_view(
    fleet: Fleet, planned: Mapping[str, Links], infohash: str, now: datetime
) -> dict[str, Any]:
    """The swarm of one torrent over the nodes that want it, by their links in the plan."""
    names = sorted(node for node in planned if node in fleet.inventory)
    links = {name: planned[name] for name in names}
    held = {name: fleet.held(name, infohash) for name in names}
    watched = {
        name: Watched(
            parents=tuple(dict.fromkeys(peer.node for peer in links[name].parents)),
            online=fleet.is_online(name),
            silent_s=fleet.movement.silent_s(name, now),
            still_s=fleet.movement.still_s(name, infohash, now),
            dry_s=fleet.movement.dry_s(name, infohash, now),
            **_said(held[name]),
        )
        for name in names
    }
    seeders = sorted(member.node for member in fleet.seeders_of(infohash))
    patience_s = max(PATIENCE_S, PATIENCE_REPORTS * report_interval_s(len(fleet.inventory)))
    stalls = find_stalls(watched, seeders, patience_s=patience_s)
    depths = depths_of(links)
    rows = [
        {"node": name, "rack": fleet.inventory[name].rack, "depth": depths[name]}
        | _row(watched[name], links[name], held[name], stalls.get(name))
        for name in names
    ]
    return {
        "infohash": infohash,
        "at": now.isoformat(timespec="milliseconds").replace("+00:00", "Z"),
        "seeders": [_seeder_row(fleet, name, infohash) for name in sorted(fleet.seeders)],
        "summary": _summary(rows, links, seeders),
        "bad_peers": _bad_peers(held),
        "nodes": rows,
    }


def depths_of(links: Mapping[str, Links]) -> dict[str, int]:
    """Hops from a source to each node, in the stripe that has most; 0 for who has no parent."""
    depths = dict.fromkeys(links, 0)
    for stripe in range(max((own.stripes for own in links.values()), default=1)):
        known: dict[str, int] = {}
        for name in links:
            passed: dict[str, None] = {}
            at = name
            # By hand: a chain may be longer than Python's stack; a wrong plan may have circles.
            while at in links and at not in known and at not in passed:
                passed[at] = None
                above = links[at].parents
                at = above[stripe % len(above)].node if above else ""
            hops = known.get(at, 0)
            for one in reversed(passed):
                hops += 1 if links[one].parents else 0
                known[one] = hops
        depths = {name: max(depths[name], known[name]) for name in links}
    return depths


def _said(held: ImageReport | None) -> dict[str, Any]:
    if held is None:
        return {}
    return {
        "state": str(held.state),
        "bytes_done": held.bytes_done,
        "rate_bps": held.rate_bps,
        "reason": None if held.reason is None else str(held.reason),
        "text": held.text,
    }


def _row(
    node: Watched, links: Links, held: ImageReport | None, stall: Stall | None
) -> dict[str, Any]:
    own = () if held is None else held.links
    return {
        "online": node.online,
        "state": node.state or "waiting",
        "bytes_done": node.bytes_done,
        "bytes_total": 0 if held is None else held.bytes_total,
        "rate_bps": node.rate_bps,
        "upload_bps": sum(link.upload_bps for link in own),
        "parents": [peer.node for peer in links.parents],
        "from": [
            {
                "node": link.node,
                "address": link.address,
                "transport": str(link.transport),
                "download_bps": link.download_bps,
            }
            for link in own
            if link.download_bps > 0
        ],
        "by_transport": {} if held is None else dict(held.by_transport),
        "stall": None if stall is None else _stall_view(stall),
    }


def _stall_view(stall: Stall) -> dict[str, Any]:
    return {
        "reason": stall.reason,
        "by": stall.by or None,
        "since_s": None if stall.since_s is None else round(stall.since_s, 1),
        "text": stall.text,
    }


def _seeder_row(fleet: Fleet, name: str, infohash: str) -> dict[str, Any]:
    seeder = fleet.seeders[name]
    return {
        "node": name,
        "online": seeder.online,
        "has_image": infohash in seeder.infohashes,
        "address": seeder.address,
        "port": seeder.port,
        "link_bps": seeder.link_bps,
    }


def _summary(
    rows: list[dict[str, Any]], links: Mapping[str, Links], seeders: list[str]
) -> dict[str, Any]:
    rates = [row["rate_bps"] for row in rows if row["state"] == "pulling" and row["rate_bps"] > 0]
    fed = Counter(peer.node for own in links.values() for peer in own.parents)
    return {
        "nodes": len(rows),
        "ready": sum(row["state"] in COMPLETE for row in rows),
        "offline": sum(not row["online"] for row in rows),
        "states": dict(Counter(row["state"] for row in rows)),
        "stalls": dict(Counter(row["stall"]["reason"] for row in rows if row["stall"])),
        "bytes_done": sum(row["bytes_done"] for row in rows),
        "bytes_total": sum(row["bytes_total"] for row in rows),
        "rate_bps": sum(rates),
        "rate_min_bps": min(rates, default=0),
        "rate_median_bps": median_low(rates) if rates else 0,
        "rate_max_bps": max(rates, default=0),
        "depth": max((row["depth"] for row in rows), default=0),
        "begun_at_seeders": sum(fed[name] for name in seeders),
        "stripes": max((own.stripes for own in links.values()), default=1),
    }


def _bad_peers(held: Mapping[str, ImageReport | None]) -> list[dict[str, Any]]:
    """Who sent blocks that failed their hash, most first, and who says so."""
    failures: Counter[tuple[str, str]] = Counter()
    told_by: dict[tuple[str, str], list[str]] = {}
    for name, image in held.items():
        for peer in () if image is None else image.bad_peers:
            key = (peer.address, peer.node or "")
            failures[key] += peer.hash_failures
            told_by.setdefault(key, []).append(name)
    return [
        {
            "address": address,
            "node": node or None,
            "hash_failures": count,
            "told_by": told_by[address, node][:16],
        }
        for (address, node), count in failures.most_common()
    ]
