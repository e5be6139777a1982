"""From `distrib image deny` to the last node that refuses new leases.

Real agents over a real head on one machine, asked for leases without pause, and simulated nodes:
MQTT clients over TLS, each with a certificate of its own, that hold the site list against the real
rules. The time runs from the start of the command, its own start included.
"""

from __future__ import annotations

import argparse
import json
import logging
import os
import sys
import tempfile
from pathlib import Path

import structlog

ROOT = Path(__file__).parents[1]
sys.path.insert(0, str(ROOT))

from tests.revocation.place import farm_of  # noqa: E402
from tests.revocation.watch import bring, deny_and_watch  # noqa: E402

MIB = 1 << 20


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--nodes", type=int, default=200, help="simulated nodes")
    parser.add_argument("--agents", type=int, default=6, help="real agents")
    parser.add_argument("--rounds", type=int, default=3, help="denials, each of another image")
    parser.add_argument("--json", action="store_true", help="print one JSON object")
    options = parser.parse_args()
    structlog.configure(wrapper_class=structlog.make_filtering_bound_logger(logging.ERROR))
    took_s = []
    with (
        tempfile.TemporaryDirectory() as scratch,
        farm_of(Path(scratch), options.agents) as farm,
    ):
        for number in range(options.rounds):
            image = farm.publish(MIB, alias=f"denied-{number}")
            bring(farm, image)
            agents = list(farm.nodes.values())
            denial = deny_and_watch(farm, agents, image, simulated=options.nodes)
            took_s.append(denial.last_refusal_s)
    figures = {
        "deny_to_last_refusal_s": round(max(took_s), 2),
        "nodes": options.nodes,
        "agents": options.agents,
        "rounds_s": [round(value, 2) for value in took_s],
        "cpus": os.cpu_count(),
    }
    if options.json:
        print(json.dumps(figures))
        return
    for name, value in figures.items():
        print(f"{name:24} {value}")


if __name__ == "__main__":
    main()
