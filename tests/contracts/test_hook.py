"""What every hook promises (docs/formats/protocols.md)."""

from __future__ import annotations

import os
import pwd
import subprocess
from collections.abc import Iterator
from dataclasses import replace

import pytest

from agent.cache.holders import parse_holder
from agent.hooks.hook import Hook
from agent.hooks.process import ProcessHook
from distrib.errors import NoSpace, OperatorError


@pytest.fixture(params=[ProcessHook])
def hook(request: pytest.FixtureRequest) -> Hook:
    made: Hook = request.param()
    return made


@pytest.fixture
def other_process() -> Iterator[subprocess.Popen[bytes]]:
    """A process that ends when its standard input does."""
    with subprocess.Popen(["cat"], stdin=subprocess.PIPE, stdout=subprocess.DEVNULL) as child:
        yield child


def test_it_is_a_hook(hook: Hook) -> None:
    assert isinstance(hook, Hook)
    assert hook.scheduler


def test_a_job_knows_its_user_image_and_memory(hook: Hook) -> None:
    job = hook.job({"DISTRIB_IMAGE": "ccin2p3", "DISTRIB_MEMORY_MIB": "2048"})
    assert job.scheduler == hook.scheduler
    assert job.user == pwd.getpwuid(os.getuid()).pw_name
    assert job.image == "ccin2p3"
    assert job.memory_mib == 2048


def test_a_job_need_not_name_an_image(hook: Hook) -> None:
    job = hook.job({})
    assert job.image is None
    assert job.memory_mib is None


@pytest.mark.parametrize("memory", ["", "-1", "0", "2g", "٤"])
def test_a_wrong_amount_of_memory_is_named(hook: Hook, memory: str) -> None:
    with pytest.raises(OperatorError, match="MIB"):
        hook.job({"DISTRIB_MEMORY_MIB": memory})


def test_the_holder_of_a_running_job_lives(hook: Hook) -> None:
    holder = hook.holder(hook.job({}))
    assert parse_holder(holder)
    assert hook.alive(holder)


def test_the_holder_dies_with_its_job(hook: Hook, other_process: subprocess.Popen[bytes]) -> None:
    holder = hook.holder(replace(hook.job({}), job=str(other_process.pid)))
    assert hook.alive(holder)
    other_process.communicate()
    assert not hook.alive(holder)


def test_a_holder_that_says_nothing_is_taken_to_live(hook: Hook) -> None:
    assert hook.alive({"kind": "?"})


def test_success_is_zero_and_a_fault_is_not(hook: Hook) -> None:
    assert hook.exit_status(None) == 0
    assert hook.exit_status(NoSpace("full")) != 0
