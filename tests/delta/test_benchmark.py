"""The benchmark of deltas, on small pairs: it measures, and what it measures holds."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).parents[2]


def test_the_benchmark_pulls_for_real_and_compares_with_casync(tmp_path: Path) -> None:
    done = subprocess.run(
        [sys.executable, "benchmarks/delta.py", "--size-mb=6", "--json", f"--work-dir={tmp_path}"],
        cwd=ROOT,
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    figures = json.loads(done.stdout)
    for pair in figures["pairs"]:
        chosen = f"{pair['piece_bytes'] >> 10} KiB"
        assert pair["pull"]["identical"]
        assert pair["pull"]["fetched_bytes"] == pair["planned_bytes"][chosen]
        assert 0 < pair["floor_bytes"]["anywhere"] <= pair["pull"]["fetched_bytes"]
        assert pair["casync"]["bytes"] > 0
    worst = max(pair["fetched_over_casync"] for pair in figures["pairs"])
    assert figures["fetched_over_casync"] == worst <= 2
    assert list(tmp_path.iterdir()) == [], "small pairs are not kept"
