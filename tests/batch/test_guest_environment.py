"""What of a job's environment goes to its guest, on every batch system."""

from __future__ import annotations

from pathlib import Path

import pytest

from agent.hooks.gridengine.job import launch_arguments as of_gridengine
from agent.hooks.guest_environment import guest_context, guest_environment
from agent.hooks.lsf.steps import launch_arguments as of_lsf
from agent.hooks.slurm.steps import launch_arguments as of_slurm
from distrib.errors import OperatorError

SOCKET = Path("/run/x.sock")


def test_what_is_true_on_the_host_only_stays_there() -> None:
    environ = {"X": "1", "PATH": "/evil", "LD_PRELOAD": "x", "DISTRIB_OUTCOME": "y", "A B": "z"}
    assert list(guest_environment(environ)) == ["--env", "X=1"]


def test_a_jobs_own_script_for_its_guest_goes_along_on_every_batch_system(tmp_path: Path) -> None:
    script = tmp_path / "ready.sh"
    script.write_text("true\n")
    own = {"VM_CONTEXT": str(script), "VM_IMG": "x"}
    gridengine = {"JOB_ID": "7", "SGE_TASK_ID": "undefined", "LOGNAME": "alice", **own}
    for found in (
        of_gridengine(gridengine, ["/bin/true"], socket=SOCKET) or [],
        of_slurm({"SLURM_JOB_ID": "7", **own}, [], socket=SOCKET),
        of_lsf({"LSB_JOBID": "7", **own}, ("true",), leased=True),
    ):
        at = found.index("--context")
        assert found[at + 1] == str(script)
        assert at < found.index("--"), "no argument of the job"


def test_a_script_that_cannot_be_read_is_told_before_anything_is_started(tmp_path: Path) -> None:
    assert guest_context({}) == guest_context({"VM_CONTEXT": ""}) == []
    with pytest.raises(OperatorError, match=r"VM_CONTEXT=.*nothing: No such file"):
        guest_context({"VM_CONTEXT": str(tmp_path / "nothing")})
