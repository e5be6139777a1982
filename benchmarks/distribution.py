"""One image to all nodes at the same moment, over links of one rate: how near the bound.

The bound is F/R: what one link needs to carry the image once. Ours: whole agents over the real
broker, from the controller's accepting the rollout to the last `ready` that it received, SHA-512
included; the command line's own time is apart. In the scenario `flash`, beside it, over the same
links in the same run: libtorrent with its defaults, aria2, uftp (multicast). The other scenarios
(benchmarks/scenarios.py, benchmarks/pair.py) say what befalls ours. Rounds alternate; medians.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import sys
import tempfile
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path

ROOT = Path(__file__).parents[1]
sys.path.insert(0, str(ROOT))

from benchmarks.pair import pair  # noqa: E402
from benchmarks.peers.others import COMPETITORS, Course, NotThere, measured  # noqa: E402
from benchmarks.scenarios import SCENARIOS  # noqa: E402
from benchmarks.track import MIB, Processor, Track, track  # noqa: E402

OURS = "distrib"
PAIR = "pair"


@dataclass
class Figures:
    """One competitor's runs: seconds of each host, by round."""

    rounds: list[list[float]] = field(default_factory=list)
    command_s: list[float] = field(default_factory=list)
    cpu_share: list[float] = field(default_factory=list)

    def last_over(self, bound_s: float) -> float:
        return round(statistics.median(max(run) for run in self.rounds) / bound_s, 3)

    def median_over(self, bound_s: float) -> float:
        return round(statistics.median(statistics.median(run) for run in self.rounds) / bound_s, 3)


def ours(running: Track, figures: Figures) -> list[float]:
    """A rollout to all: seconds of each node from its acceptance."""
    image = running.publish()
    processor = Processor()
    started = running.start(image)
    seconds = list(running.seconds(started, asked_from=0.9).values())
    figures.cpu_share.append(processor.share())
    figures.command_s.append(started.command_s)
    running.compare(image)
    return seconds


def other(running: Track, name: str, figures: Figures) -> list[float]:
    """Another program, over the same links."""
    file = running.scratch / "source" / "course.raw"
    file.parent.mkdir(exist_ok=True)
    with file.open("wb") as out:
        for _ in range(0, running.size_bytes, MIB):
            out.write(os.urandom(min(MIB, running.size_bytes)))
    running.quiet()
    head = running.farm.head_host
    try:
        course = Course(file, head, running.hosts, running.rate_mbit, running.scratch)
        processor = Processor()
        seconds = measured(name, course)
        figures.cpu_share.append(processor.share())
        return seconds
    finally:
        file.unlink()


def compare(options: argparse.Namespace, say: Callable[[str], None]) -> dict[str, object]:
    """All competitors in turn, as often as asked."""
    names = [options.only] if options.only else [OURS, *COMPETITORS]
    figures = {name: Figures() for name in names}
    with tempfile.TemporaryDirectory() as scratch:
        course = track(
            Path(scratch), nodes=options.nodes, size_mb=options.size_mb, rate_mbit=options.rate_mbit
        )
        with course as running:
            for number in range(1, options.rounds + 1):
                for name, own in figures.items():
                    seconds = ours(running, own) if name == OURS else other(running, name, own)
                    own.rounds.append(seconds)
                    say(f"round {number} {name}: last {max(seconds):.2f} s")
            bound_s = running.bound_s
    return {
        "bound_s": round(bound_s, 3),
        "last_over_bound": {name: one.last_over(bound_s) for name, one in figures.items()},
        "median_over_bound": {name: one.median_over(bound_s) for name, one in figures.items()},
        "last_s": {name: [round(max(r), 3) for r in f.rounds] for name, f in figures.items()},
        "cpu_share": {name: one.cpu_share for name, one in figures.items()},
        "command_s": [round(value, 3) for f in figures.values() for value in f.command_s],
    }


def befallen(options: argparse.Namespace, say: Callable[[str], None]) -> dict[str, object]:
    """Ours in one of ``SCENARIOS``, as often as asked: medians, and all rounds."""
    rounds = []
    with tempfile.TemporaryDirectory() as scratch:
        course = track(
            Path(scratch),
            nodes=options.nodes,
            size_mb=options.size_mb,
            rate_mbit=options.rate_mbit,
            racks=2 if options.scenario == "racks" else 1,
        )
        with course as running:
            for number in range(1, options.rounds + 1):
                processor = Processor()
                found = SCENARIOS[options.scenario](running)
                found["cpu_share"] = processor.share()
                say(f"round {number} {options.scenario}: {found}")
                rounds.append(found)
            bound_s = running.bound_s
    medians = {key: round(statistics.median(r[key] for r in rounds), 3) for key in rounds[0]}
    return {"bound_s": round(bound_s, 3)} | medians | {"each_round": rounds}


def one_pair(options: argparse.Namespace, say: Callable[[str], None]) -> dict[str, object]:
    """One seeder, one node, no limit; medians by competitor."""
    found = pair(options.size_mb, options.rounds, say)
    return {
        key: {
            name: statistics.median(run[key] for run in runs.values())
            for name, runs in found.items()
        }
        for key in ("mb_per_s", "cpu_s_per_gb", "s")
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--scenario", choices=["flash", *SCENARIOS, PAIR], default="flash")
    parser.add_argument("--nodes", type=int, default=16)
    parser.add_argument("--size-mb", type=int, default=64, help="size of the image in MiB")
    parser.add_argument("--rate-mbit", type=float, default=20.0, help="rate of every link")
    parser.add_argument("--rounds", type=int, default=3, help="runs of each competitor")
    parser.add_argument("--only", choices=[OURS, *COMPETITORS], help="one competitor (flash)")
    parser.add_argument("--json", action="store_true", help="print one JSON object")
    options = parser.parse_args()
    if os.geteuid() != 0:
        parser.exit(2, "distribution: network namespaces need root\n")
    run = {"flash": compare, PAIR: one_pair}.get(options.scenario, befallen)
    asked = ("scenario", "nodes", "size_mb", "rate_mbit", "rounds")
    figures: dict[str, object] = {key: getattr(options, key) for key in asked}
    try:
        figures |= run(options, lambda line: print(line, file=sys.stderr, flush=True))
    except NotThere as error:
        parser.exit(2, f"distribution: {error}\n")
    if options.json:
        print(json.dumps(figures))
        return
    for name, value in figures.items():
        print(f"{name:20} {value}")


if __name__ == "__main__":
    main()
