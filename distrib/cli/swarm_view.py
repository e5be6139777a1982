"""How a swarm looks: the relay tree, or a summary where that is long. Text in, lines out."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator
from typing import Any

from distrib.printable import bytes_text, percent

DRAWN = 64
"""Swarms of up to so many nodes are drawn whole."""

LISTED = 24
"""So many stalled nodes are listed of a larger one."""

_READY = frozenset({"ready", "leased"})
Document = dict[str, Any]


def swarm_lines(swarm: Document, *, everything: bool = False) -> list[str]:
    """The whole picture."""
    lines = [summary_line(swarm), *_seeder_lines(swarm), *_bad_peer_lines(swarm)]
    rows = swarm["nodes"]
    if everything or len(rows) <= DRAWN:
        return [*lines, *_tree(swarm)]
    return [*lines, *_shape_lines(swarm), *_stalled_lines(swarm)]


def summary_line(swarm: Document) -> str:
    """One line on all of it."""
    summary = swarm["summary"]
    name = next(iter(swarm["aliases"]), swarm["image"])
    complete = summary["ready"] == summary["nodes"] > 0
    done = percent(summary["bytes_done"], summary["bytes_total"], complete=complete)
    states = ", ".join(f"{count} {state}" for state, count in sorted(summary["states"].items()))
    stalls = sum(summary["stalls"].values()) - summary["stalls"].get("offline", 0)
    parts = [
        f"{name}: {summary['nodes']} nodes ({states or 'nobody wants it'})",
        f"{done} %",
        f"{bytes_text(summary['rate_bps'])}/s",
    ]
    if summary["offline"]:
        parts.append(f"{summary['offline']} offline")
    if stalls:
        parts.append(f"{stalls} in trouble")
    return ", ".join(parts)


def changes(before: Document, after: Document) -> Iterator[str]:
    """A line for each node whose state, parents or trouble is another than in ``before``."""
    known = {row["node"]: _key(row) for row in before.get("nodes", ())}
    for row in after["nodes"]:
        if known.get(row["node"]) != _key(row):
            yield _row_text(row) + _from_text(row)
    told = {(one["address"], one["hash_failures"]) for one in before.get("bad_peers", ())}
    for one in after["bad_peers"]:
        if (one["address"], one["hash_failures"]) not in told:
            yield _bad_peer_text(one)
    counts = ("ready", "offline", "states", "stalls", "nodes")
    if not before or any(before["summary"][k] != after["summary"][k] for k in counts):
        yield summary_line(after)


def all_done(swarm: Document) -> bool:
    """Whether every node that is online has the image."""
    rows = [row for row in swarm["nodes"] if row["online"]]
    return bool(rows) and all(row["state"] in _READY for row in rows)


def _key(row: Document) -> tuple[Any, ...]:
    stall = row["stall"] or {}
    return (row["state"], row["online"], row["parents"], stall.get("reason"), stall.get("by"))


def _seeder_lines(swarm: Document) -> list[str]:
    lines = []
    for one in swarm["seeders"]:
        what = "seeds it" if one["has_image"] else "has not got it"
        if not one["online"]:
            what = "offline"
        lines.append(f"seeder {one['node']} {one['address']}:{one['port']}: {what}")
    return lines or ["no seeder is known"]


def _bad_peer_text(one: Document) -> str:
    who = f"{one['node']} " if one["node"] else ""
    told_by = ", ".join(one["told_by"][:4]) + (", …" if len(one["told_by"]) > 4 else "")
    return f"bad blocks from {who}{one['address']}: {one['hash_failures']}, told by {told_by}"


def _bad_peer_lines(swarm: Document) -> list[str]:
    return [_bad_peer_text(one) for one in swarm["bad_peers"]]


def _shape_lines(swarm: Document) -> list[str]:
    summary = swarm["summary"]
    shape = "trees over two stripes" if summary["stripes"] == 2 else "chains"
    rates = [bytes_text(summary[f"rate_{which}_bps"]) for which in ("min", "median", "max")]
    lines = [
        f"{shape}, {summary['depth']} deep, {summary['begun_at_seeders']} links from seeders",
        f"rates of those who pull: {rates[0]}/s to {rates[2]}/s, half of them below {rates[1]}/s",
    ]
    racks: dict[str, Counter[str]] = {}
    for row in swarm["nodes"]:
        counts = racks.setdefault(row["rack"] or "-", Counter())
        counts["nodes"] += 1
        counts["ready"] += row["state"] in _READY
        counts["trouble"] += row["stall"] is not None
    worst = sorted(racks.items(), key=lambda one: (-one[1]["trouble"], one[0]))
    for rack, counts in worst[:LISTED]:
        trouble = f", {counts['trouble']} in trouble or offline" if counts["trouble"] else ""
        lines.append(f"rack {rack}: {counts['ready']} of {counts['nodes']} ready{trouble}")
    if len(worst) > LISTED:
        lines.append(f"… and {len(worst) - LISTED} racks more")
    return lines


def _stalled_lines(swarm: Document) -> list[str]:
    stalled = [row for row in swarm["nodes"] if row["stall"]]
    # Who is at fault comes before those who wait for him.
    stalled.sort(key=lambda row: (row["stall"]["reason"] == "behind-slow-node", row["node"]))
    lines = [_row_text(row) + _from_text(row) for row in stalled[:LISTED]]
    if len(stalled) > LISTED:
        lines.append(f"… and {len(stalled) - LISTED} more in trouble or offline")
    return [*lines, f"--all draws all {len(swarm['nodes'])} nodes"]


def _tree(swarm: Document) -> list[str]:
    """Parents over children; an only child stands below its parent, not beside it.

    With stripes this is the tree of the first; a node's parent in the other is named with it."""
    rows = {row["node"]: row for row in swarm["nodes"]}
    children: dict[str, list[str]] = {}
    for name, row in rows.items():
        above = row["parents"][0] if row["parents"] else ""
        children.setdefault(above, []).append(name)
    roots = [above for above in children if above not in rows]
    lines: list[str] = []
    drawn: set[str] = set()
    for root in sorted(roots, key=lambda name: (name == "", name)):
        lines.append(root or "(given no parent)")
        # A stack of (node, what stands before it, what stands before its children).
        stack = _below(children.get(root, []), "")
        while stack:
            name, lead, inner = stack.pop()
            if name in drawn:
                continue
            drawn.add(name)
            lines.append(lead + _row_text(rows[name]) + _from_text(rows[name]))
            below = children.get(name, [])
            if len(below) == 1:
                stack.append((below[0], f"{inner}↓ ", inner))
            else:
                stack += _below(below, inner)
    # A circle is a wrong plan: it is shown all the same.
    lines += [f"? {_row_text(rows[name])}" for name in rows if name not in drawn]
    return lines


def _below(names: list[str], before: str) -> list[tuple[str, str, str]]:
    last = len(names) - 1
    made = [
        (name, before + ("└ " if at == last else "├ "), before + ("  " if at == last else "│ "))
        for at, name in enumerate(names)
    ]
    return made[::-1]


def _row_text(row: Document) -> str:
    done = percent(row["bytes_done"], row["bytes_total"], complete=row["state"] in _READY)
    parts = [row["node"]]
    if row["rack"]:
        parts.append(f"[{row['rack']}]")
    parts.append(row["state"] if row["online"] else f"offline ({row['state']})")
    if row["state"] not in _READY:
        parts.append(f"{done} %")
    if row["rate_bps"]:
        parts.append(f"↓{bytes_text(row['rate_bps'])}/s")
    if row["upload_bps"]:
        parts.append(f"↑{bytes_text(row['upload_bps'])}/s")
    stall = row["stall"]
    if stall is not None and stall["reason"] != "offline":
        since = f" for {stall['since_s']:.0f} s" if stall["since_s"] else ""
        by = f" ({stall['by']})" if stall["by"] else ""
        text = f": {stall['text']}" if stall["text"] else ""
        parts.append(f"!! {stall['reason']}{by}{since}{text}")
    return " ".join(parts)


def _from_text(row: Document) -> str:
    """Whence bytes come where that is not the one parent of the plan."""
    planned = row["parents"]
    found = [f"{one['node'] or one['address']}" for one in row["from"]]
    other = [
        one["node"] or one["address"]
        for one in row["from"]
        if one["node"] not in planned or one["transport"] != "swarm"
    ]
    parts = []
    if len(planned) > 1:
        parts.append(f"other stripe from {planned[1]}")
    if found and other:
        parts.append("fetches from " + ", ".join(found[:4]))
    return f" ({'; '.join(parts)})" if parts else ""
