"""What every hook promises (docs/formats/protocols.md)."""

from __future__ import annotations

import os
import pwd
import subprocess
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from pathlib import Path

import pytest

from agent.cache.holders import parse_holder
from agent.hooks.gridengine.hook import GridEngineHook
from agent.hooks.hook import Hook, Job
from agent.hooks.process import ProcessHook
from distrib.errors import NoSpace, OperatorError

ME = pwd.getpwuid(os.getuid()).pw_name


@dataclass(frozen=True)
class System:
    """A batch system as its hook sees it: how it names an image and an amount of memory, and what
    it sets for every job."""

    hook: Hook
    image: str
    memory: str
    always: Mapping[str, str]

    def job(self, **named: str) -> Job:
        names = {"image": self.image, "memory": self.memory}
        return self.hook.job({**self.always, **{names[key]: text for key, text in named.items()}})

    def job_of(self, pid: int, spool: Path) -> tuple[Hook, Job]:
        """A job whose process (that of a shepherd, in its spool directory) is ``pid``."""
        if isinstance(self.hook, GridEngineHook):
            return GridEngineHook(spool=spool, shepherd=pid), self.job()
        return self.hook, replace(self.job(), job=str(pid))


SYSTEMS = [
    System(ProcessHook(), "DISTRIB_IMAGE", "DISTRIB_MEMORY_MIB", {}),
    System(
        GridEngineHook(spool=Path.cwd(), shepherd=os.getpid()),
        "VM_IMG",
        "VM_MEM_MIB",
        {"JOB_ID": "4711", "SGE_TASK_ID": "undefined", "LOGNAME": ME},
    ),
]


@pytest.fixture(params=SYSTEMS, ids=lambda system: system.hook.scheduler)
def system(request: pytest.FixtureRequest) -> System:
    found: System = request.param
    return found


@pytest.fixture
def hook(system: System) -> Hook:
    return system.hook


@pytest.fixture
def other_process(tmp_path: Path) -> Iterator[subprocess.Popen[bytes]]:
    """A process that ends when its standard input does."""
    with subprocess.Popen(
        ["cat"], stdin=subprocess.PIPE, stdout=subprocess.DEVNULL, cwd=tmp_path
    ) as child:
        yield child


def test_it_is_a_hook(hook: Hook) -> None:
    assert isinstance(hook, Hook)
    assert hook.scheduler


def test_a_job_knows_its_user_image_and_memory(system: System) -> None:
    job = system.job(image="ccin2p3", memory="2048")
    assert job.scheduler == system.hook.scheduler
    assert job.user == ME
    assert job.image == "ccin2p3"
    assert job.memory_mib == 2048


def test_a_job_need_not_name_an_image(system: System) -> None:
    job = system.job()
    assert job.image is None
    assert job.memory_mib is None


@pytest.mark.parametrize("memory", ["-1", "0", "2g", "٤"])
def test_a_wrong_amount_of_memory_is_named(system: System, memory: str) -> None:
    with pytest.raises(OperatorError, match="MIB"):
        system.job(memory=memory)


def test_the_holder_of_a_running_job_lives(system: System) -> None:
    holder = system.hook.holder(system.job())
    assert parse_holder(holder)
    assert system.hook.alive(holder)


def test_the_holder_dies_with_its_job(
    system: System, other_process: subprocess.Popen[bytes], tmp_path: Path
) -> None:
    hook, job = system.job_of(other_process.pid, tmp_path)
    holder = hook.holder(job)
    assert hook.alive(holder)
    other_process.communicate()
    assert not hook.alive(holder)


def test_a_holder_that_says_nothing_is_taken_to_live(hook: Hook) -> None:
    assert hook.alive({"kind": "?"})


def test_success_is_zero_and_a_fault_is_not(hook: Hook) -> None:
    assert hook.exit_status(None) == 0
    assert hook.exit_status(NoSpace("full")) != 0


def test_what_is_no_job_of_grid_engine_is_named() -> None:
    with pytest.raises(OperatorError, match="JOB_ID"):
        GridEngineHook().job({"JOB_ID": "x"})


def test_an_empty_amount_is_none_of_a_process_and_what_grid_engine_hands_on_without_one() -> None:
    with pytest.raises(OperatorError, match="MIB"):
        ProcessHook().job({"DISTRIB_MEMORY_MIB": ""})
    assert GridEngineHook().job({"JOB_ID": "4711", "VM_MEM_MIB": ""}).memory_mib is None
