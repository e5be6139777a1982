"""How near the push's schedule comes to the theoretical optimum, by simulation: no bytes are moved.

The schedule is the real one; hosts are simulated, and are called fake. All have the same uplink u,
the file is cut into M pieces, and the optimum for N receivers is (1 + floor(log2 N) / M) * F/u
(Mundinger, Weber, Weiss, Journal of Scheduling 2008). Durations vary by ``--jitter`` around what a
slot's share of the link needs. ``over_optimum`` is the last receiver's time over that.

    benchmarks/tsunami_schedule.py [--json] [--plot FILE.svg] [--racks 1] [--slots 1] [--failing 0]
"""

from __future__ import annotations

import argparse
import heapq
import json
import sys
import time
from dataclasses import asdict, dataclass
from math import floor, log2
from pathlib import Path
from random import Random

ROOT = Path(__file__).parents[1]
sys.path.insert(0, str(ROOT))

from distrib.tsunami.schedule import Schedule  # noqa: E402
from distrib.tsunami.trouble import Fault  # noqa: E402

HOSTS = (10, 30, 100, 300, 1000)
PIECES = (25, 100, 400)


@dataclass(frozen=True)
class Outcome:
    """Times in units of F/u: 1.0 is one copy of the file over one uplink."""

    hosts: int
    pieces: int
    optimum: float
    first: float
    median: float
    last: float
    over_optimum: float
    transfers: int
    crossings_per_rack: float
    computed_s: float


def simulate(
    hosts: int, pieces: int, *, racks: int, slots: int, jitter: float, failing: float, seed: int
) -> Outcome:
    """Push one file to ``hosts`` fake hosts in ``racks``; a share of transfers fails."""
    began = time.perf_counter()
    random, schedule = Random(seed), Schedule(pieces, seed=seed)
    schedule.join("origin", origin=True, rack="head", up_slots=slots)
    names = [f"fake{number:04}" for number in range(hosts)]
    rack_of = {name: f"r{number % racks}" for number, name in enumerate(names)}
    for name in names:
        schedule.join(name, rack=rack_of[name], up_slots=slots, down_slots=slots)
    now_s, transfers, crossings, ends = 0.0, 0, 0, dict[str, float]()
    left = dict.fromkeys(names, pieces)
    flying: list[tuple[float, int, object]] = []
    share_s = slots / pieces
    while not schedule.is_over if not left else True:
        for order in schedule.next_orders(now_s):
            took_s = share_s * (1 + jitter * (2 * random.random() - 1))
            heapq.heappush(flying, (now_s + took_s, order.number, order))
            transfers += 1
            crossings += rack_of.get(order.source) != rack_of[order.target]
        if not flying:
            break
        now_s, _, order = heapq.heappop(flying)
        if failing and random.random() < failing:
            schedule.failed(order, Fault.LOST, now_s)
        elif schedule.done(order, now_s):
            left[order.target] -= 1
            if not left[order.target]:
                ends[order.target] = now_s
        schedule.tick(now_s)
    assert len(ends) == hosts, f"{hosts - len(ends)} hosts of {hosts} are not complete"
    times = sorted(ends.values())
    optimum = 1 + floor(log2(hosts)) / pieces
    return Outcome(
        hosts=hosts,
        pieces=pieces,
        optimum=round(optimum, 4),
        first=round(times[0], 4),
        median=round(times[len(times) // 2], 4),
        last=round(times[-1], 4),
        over_optimum=round(times[-1] / optimum, 4),
        transfers=transfers,
        crossings_per_rack=round(crossings / racks / pieces, 2),
        computed_s=round(time.perf_counter() - began, 3),
    )


COLOURS = ("#1b6ca8", "#d1495b", "#3a7d44", "#8d5a97", "#c98a1b")
WIDTH, HEIGHT, LEFT, TOP, RIGHT, BOTTOM = 640, 400, 60, 30, 110, 50


def plot(outcomes: list[Outcome]) -> str:
    """SVG: over_optimum by hosts (logarithmic), one line for each number of pieces."""
    most = max(1.5, *(one.over_optimum for one in outcomes)) + 0.05
    low, high = log2(min(o.hosts for o in outcomes)), log2(max(o.hosts for o in outcomes))

    def x(hosts: int) -> float:
        return LEFT + (log2(hosts) - low) / max(high - low, 1e-9) * (WIDTH - LEFT - RIGHT)

    def y(over: float) -> float:
        return TOP + (most - over) / (most - 1) * (HEIGHT - TOP - BOTTOM)

    out = [
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {WIDTH} {HEIGHT}"'
        ' font-family="sans-serif" font-size="12">',
        f'<rect width="{WIDTH}" height="{HEIGHT}" fill="white"/>',
        f'<text x="{LEFT}" y="18">last receiver / optimum</text>',
        f'<text x="{(WIDTH - RIGHT) / 2}" y="{HEIGHT - 10}">hosts</text>',
    ]
    for step in range(round((most - 1) * 10) + 1):
        at = 1 + step / 10
        out.append(
            f'<path d="M{LEFT} {y(at):.1f}H{WIDTH - RIGHT}" stroke="#ddd"/>'
            f'<text x="{LEFT - 30}" y="{y(at) + 4:.1f}">{at:.1f}</text>'
        )
    for hosts in sorted({one.hosts for one in outcomes}):
        out.append(f'<text x="{x(hosts) - 10:.1f}" y="{HEIGHT - BOTTOM + 18}">{hosts}</text>')
    for number, pieces in enumerate(sorted({one.pieces for one in outcomes})):
        line = sorted((o.hosts, o.over_optimum) for o in outcomes if o.pieces == pieces)
        path = "L".join(f"{x(hosts):.1f} {y(over):.1f}" for hosts, over in line)
        colour = COLOURS[number % len(COLOURS)]
        out.append(f'<path d="M{path}" fill="none" stroke="{colour}" stroke-width="2"/>')
        out.append(
            f'<text x="{WIDTH - RIGHT + 8}" y="{TOP + 20 + 18 * number}" fill="{colour}">'
            f"{pieces} pieces</text>"
        )
    return "\n".join([*out, "</svg>"]) + "\n"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--hosts", type=int, nargs="+", default=HOSTS)
    parser.add_argument("--pieces", type=int, nargs="+", default=PIECES)
    parser.add_argument("--racks", type=int, default=1)
    parser.add_argument("--slots", type=int, default=1)
    parser.add_argument("--jitter", type=float, default=0.05)
    parser.add_argument("--failing", type=float, default=0.0, help="share of transfers that fail")
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--json", action="store_true")
    parser.add_argument("--plot", type=Path, metavar="FILE.svg")
    given = parser.parse_args()
    outcomes = [
        simulate(
            hosts,
            pieces,
            racks=given.racks,
            slots=given.slots,
            jitter=given.jitter,
            failing=given.failing,
            seed=given.seed,
        )
        for hosts in given.hosts
        for pieces in given.pieces
    ]
    if given.plot:
        given.plot.write_text(plot(outcomes))
    if given.json:
        settings = {
            key: getattr(given, key) for key in ("racks", "slots", "jitter", "failing", "seed")
        }
        print(json.dumps(settings | {"outcomes": [asdict(one) for one in outcomes]}))
        return
    print("hosts pieces optimum   last  over  crossings/rack  computed")
    for one in outcomes:
        print(
            f"{one.hosts:5} {one.pieces:6} {one.optimum:7.3f} {one.last:6.3f}"
            f" {one.over_optimum:5.3f} {one.crossings_per_rack:15} {one.computed_s:8.2f} s"
        )


if __name__ == "__main__":
    main()
