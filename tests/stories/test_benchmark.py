"""The benchmark of distribution still runs: a small image to three nodes over shaped links."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

BENCHMARK = Path(__file__).parents[2] / "benchmarks" / "distribution.py"


def test_distribution_is_measured_from_acceptance_to_the_last_ready() -> None:
    asked = ["--nodes=3", "--size-mb=4", "--rate-mbit=50", "--rounds=1", "--only=distrib", "--json"]
    done = subprocess.run(
        [sys.executable, str(BENCHMARK), *asked],
        capture_output=True,
        text=True,
        timeout=90,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    figures = json.loads(done.stdout)
    assert figures["bound_s"] == 0.671
    # Less than the link can carry would be a fault of measuring.
    assert figures["last_over_bound"]["distrib"] > 1.0
    assert figures["last_s"]["distrib"][0] >= figures["bound_s"]
