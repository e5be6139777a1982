"""Jobs of a real Grid Engine that run in the image they name."""

from __future__ import annotations

import re

import pytest

from tests.batch.site import Site

pytestmark = [pytest.mark.root, pytest.mark.timeout(240)]

SLIDE = "cat /proc/cpuinfo; free\n"


def test_the_case_of_the_slides(grid: Site) -> None:
    job = grid.cell.qsub("-q", "virt", "-l", "vmem=2g", "-ac", "vm_name=ccin2p3", script=SLIDE)
    grid.cell.wait(job)
    out = grid.cell.output(job)
    assert "QEMU Virtual CPU" in out
    total = re.search(r"Mem: +(\d+)", out)
    assert total is not None
    assert 1_990_000 < int(total[1]) < 2_097_152
    assert grid.cell.errors(job) == ""
    assert grid.left() == {}
