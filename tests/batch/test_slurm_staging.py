"""A job of a real Slurm stays in the queue until the first node has its image."""

from __future__ import annotations

import subprocess
from pathlib import Path

import pytest

from agent.hooks.slurm.names import feature
from tests.batch.cluster import slurm_site
from tests.batch.product import ROOT
from tests.farm.process import eventually

pytestmark = [pytest.mark.root, pytest.mark.timeout(300), pytest.mark.long]


def test_a_queued_job_brings_its_image(tmp_path: Path, guest_image: Path) -> None:
    with slurm_site(tmp_path, guest_image, burst_buffer=True) as cluster:
        file = cluster.farm.directory / "later.raw"
        build = [ROOT / "scripts" / "guest" / "build", "-o", file, "--size-mb", "32"]
        subprocess.run([*build, "--payload-seed", "later"], check=True, capture_output=True)
        image = cluster.farm.endorse(file, alias="later")
        cluster.farm.approve(image)
        cluster.know_held()
        here = cluster.sbatch("--comment=vm_name=ccin2p3", script="#!/bin/sh\nhostname\n")
        job = cluster.sbatch("--comment=vm_name=later", script="#!/bin/sh\nhostname\n")
        eventually("it is staged", lambda: "Burst" in cluster.job(job)["Reason"], every_s=0.1)
        wanted = feature(image.identifier)
        eventually("the node has it", lambda: wanted in cluster.features(), limit_s=90, every_s=2)
        cluster.becomes(job, "COMPLETED", limit_s=90)
        assert cluster.output(job) == "guest\n"
        assert cluster.job(job)["Features"] == wanted
        assert cluster.output(here) == "guest\n"
        eventually("nothing is left", lambda: cluster.left() == [], limit_s=60)
