"""What slurmctld gave a job bounds its guest, whatever the job's environment says."""

from __future__ import annotations

import pytest

from agent.hooks.slurm.control import Grant, grant_in
from distrib.errors import NodeError

JOB = "JobId=7 JobName=x NumNodes=1 NumCPUs={cpus} NumTasks=1 TRES=cpu=2 {memory}"


@pytest.mark.parametrize(
    ("memory", "mib"),
    [
        ("MinCPUsNode=1 MinMemoryNode=512M MinTmpDiskNode=0", 512),
        ("MinCPUsNode=1 MinMemoryCPU=1.50G MinTmpDiskNode=0", 3072),
        ("MinCPUsNode=1 MinMemoryNode=0 MinTmpDiskNode=0", None),
    ],
)
def test_memory_is_of_the_node_or_of_each_cpu(memory: str, mib: int | None) -> None:
    assert grant_in(JOB.format(cpus=2, memory=memory), "7") == Grant(mib, 2)


def test_another_answer_is_said_to_be_one() -> None:
    with pytest.raises(NodeError, match="no CPUs"):
        grant_in("slurm_load_jobs error: Invalid job id specified", "7")


def test_of_an_array_the_task_counts_that_has_the_arrays_number() -> None:
    task = "JobId={} ArrayJobId=7 ArrayTaskId=1 NumCPUs={} MinMemoryNode={}M X=1"
    told = "\n".join((task.format(7, 1, 128), task.format(8, 4, 512), task.format(77, 2, 256)))
    assert grant_in(told, "7") == Grant(128, 1)
