"""What the relay plan chooses and what it costs, by its own model: no bytes are moved.

The plan is the real one (layout and links as nodes are told). Its time is that of a tandem of
queues: along a path the first piece takes the sum of the hops, every further one what the slowest
hop needs for a piece. So a path of any length and any number of pieces is one addition a hop, and
5,000 nodes with 40,000 pieces take a second. The constants are those of ``relay_cost``; what they
are worth shows in ``--measured``, beside chains that were measured.

    benchmarks/relay.py [--size-gb 10] [--json]
"""

from __future__ import annotations

import argparse
import json
import sys
import time
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path

ROOT = Path(__file__).parents[1]
sys.path.insert(0, str(ROOT))

from distrib.swarm.relay import RelayPlan, plan_relay  # noqa: E402
from distrib.swarm.relay_cost import (  # noqa: E402
    FIRST_PIECE_S,
    GIGABIT_BPS,
    HOP_S,
    WIRE,
    Terms,
)
from distrib.swarm.relay_layout import lay_out  # noqa: E402
from distrib.swarm.relay_peers import Member  # noqa: E402
from distrib.swarm.torrent import piece_bytes_for  # noqa: E402

PER_RACK = 40
KIB = 1024
MIB = 1 << 20


@dataclass(frozen=True)
class Measured:
    """A chain of 16 that was measured over links of 20 Mbit/s (small buffers, v2 torrents)."""

    size_bytes: int
    piece_bytes: int
    last_over_bound: tuple[float, float]


MEASURED = (
    Measured(64 * MIB, 64 * KIB, (1.10, 1.13)),
    Measured(128 * MIB, 64 * KIB, (1.097, 1.108)),
    Measured(128 * MIB, 256 * KIB, (1.140, 1.156)),
    Measured(128 * MIB, 1024 * KIB, (1.218, 1.218)),
)


@dataclass(frozen=True)
class Cost:
    """One plan: ``last_over_bound`` is the last node's time over F/R."""

    nodes: int
    seeder_links: int
    shapes: str
    groups: int
    hops: int
    piece_kib: int
    last_over_bound: float
    delay_share: float
    seeder_copies: float
    rack_copies: float
    plan_s: float


def farm_of(nodes: int, *, link_bps: int, per_rack: int = PER_RACK) -> dict[str, Member]:
    """Nodes in racks that can fetch stripes."""
    made = [
        Member(
            f"wn{n:04}",
            f"10.0.{n // 250}.{n % 250}",
            6881,
            f"R{n // per_rack:03}",
            link_bps=link_bps,
            stripe_ports=(6881, 6882),
        )
        for n in range(nodes)
    ]
    return {member.node: member for member in made}


def seconds(
    plan: RelayPlan, terms: Terms, upload_bps: Mapping[str, int], download_bps: Mapping[str, int]
) -> dict[str, float]:
    """When each node has the last piece, from the moment at which all begin."""
    wishes: Counter[str] = Counter()
    for name, links in plan.links.items():
        for parent in links.parents:
            wishes[parent.node] += download_bps[name] // len(links.parents)
    pieces = -(-terms.size_bytes // terms.piece_bytes)
    paths: dict[tuple[str, int], tuple[float, float]] = {}

    def path(name: str, stripe: int) -> tuple[float, float]:
        """Hops summed up, and the slowest one's seconds for a piece of the stripe."""
        chain: list[tuple[str, str, float]] = []
        at = name
        while (at, stripe) not in paths and at in plan.links:
            above = plan.links[at].parents
            parent = above[stripe % len(above)].node
            scale = min(1.0, upload_bps[parent] / wishes[parent])
            chain.append((at, parent, scale * download_bps[at] / len(above)))
            at = parent
        total, slowest = paths.get((at, stripe), (0.0, 0.0))
        for one, _, rate_bps in reversed(chain):
            piece_s = WIRE * terms.piece_bytes / rate_bps
            total, slowest = total + HOP_S + piece_s, max(slowest, piece_s)
            paths[one, stripe] = total, slowest
        return total, slowest

    found = {}
    for name, links in plan.links.items():
        ends = []
        for stripe in range(len(links.parents)):
            total, slowest = path(name, stripe)
            ends.append(total + (pieces / len(links.parents) - 1) * slowest)
        found[name] = FIRST_PIECE_S + max(ends)
    return found


def depth(plan: RelayPlan) -> int:
    """Hops to the deepest node."""
    deepest = 0
    for stripe in (0, 1):
        known: dict[str, int] = {}
        for name in plan.links:
            at, passed = name, []
            while at in plan.links and at not in known:
                passed.append(at)
                above = plan.links[at].parents
                at = above[stripe % len(above)].node
            hops = known.get(at, 0)
            for one in reversed(passed):
                hops += 1
                known[one] = hops
        deepest = max(deepest, *known.values())
    return deepest


def cost_of(nodes: int, *, seeder_links: int, terms: Terms) -> Cost:
    """Plan a flash crowd and work out what it takes."""
    farm = farm_of(nodes, link_bps=terms.link_bps)
    seeder = Member(
        "seeder", "192.0.2.1", 6881, has_all=True, link_bps=seeder_links * terms.link_bps
    )
    began_s = time.perf_counter()
    layout = lay_out((), farm, [seeder], terms)
    plan = plan_relay(layout, farm, [seeder])
    plan_s = time.perf_counter() - began_s
    download = dict.fromkeys(farm, terms.link_bps)
    last_s = max(seconds(plan, terms, download | {"seeder": seeder.link_bps}, download).values())
    copies, entered = 0.0, Counter[str]()
    for name, links in plan.links.items():
        for parent in links.parents:
            share = 1 / len(links.parents)
            copies += share if parent.node == "seeder" else 0
            above = farm.get(parent.node)
            if above is None or above.rack != farm[name].rack:
                entered[farm[name].rack] += share
    once_s = terms.once_s
    return Cost(
        nodes=nodes,
        seeder_links=seeder_links,
        shapes="+".join(sorted({group.shape.value for group in layout})),
        groups=len(layout),
        hops=depth(plan),
        piece_kib=terms.piece_bytes // KIB,
        last_over_bound=round(last_s / once_s, 3),
        delay_share=round((last_s - FIRST_PIECE_S) / once_s - WIRE, 4),
        seeder_copies=round(copies, 1),
        rack_copies=max(entered.values()),
        plan_s=round(plan_s, 3),
    )


def beside_the_measured() -> list[dict[str, object]]:
    """The model beside chains of 16 that were measured at 20 Mbit/s."""
    rows: list[dict[str, object]] = []
    for point in MEASURED:
        terms = Terms(point.size_bytes, point.piece_bytes, link_bps=2_500_000)
        row = asdict(point)
        rows.append(row | {"model": cost_of(16, seeder_links=1, terms=terms).last_over_bound})
    return rows


def costs(size_bytes: int) -> list[Cost]:
    """The table: what is chosen, what chains alone would cost, other piece sizes."""
    terms = Terms(size_bytes, piece_bytes_for(size_bytes), GIGABIT_BPS, trees=True)
    rows = []
    for nodes in (16, 500, 5000):
        for seeder_links in (1, 10):
            rows.append(cost_of(nodes, seeder_links=seeder_links, terms=terms))
            chains = replace(terms, trees=False)
            rows.append(cost_of(nodes, seeder_links=seeder_links, terms=chains))
    for piece_kib in (64, 1024, 4096):
        other = replace(terms, piece_bytes=piece_kib * KIB)
        rows.append(cost_of(5000, seeder_links=1, terms=other))
    return rows


def main(arguments: Sequence[str] | None = None) -> None:
    """Print it."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n", maxsplit=1)[0])
    parser.add_argument("--size-gb", type=float, default=10.0)
    parser.add_argument("--json", action="store_true")
    given = parser.parse_args(arguments)
    rows = [asdict(cost) for cost in costs(int(given.size_gb * 1e9))]
    measured = beside_the_measured()
    if given.json:
        print(json.dumps({"size_gb": given.size_gb, "plans": rows, "measured": measured}, indent=1))
        return
    for table in (rows, measured):
        print("  ".join(f"{key:>15}" for key in table[0]))
        for row in table:
            print("  ".join(f"{value!s:>15}" for value in row.values()))
        print()


if __name__ == "__main__":
    main()
