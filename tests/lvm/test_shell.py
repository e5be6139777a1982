"""LVM's shell as the agent keeps it: the real one, and one that misbehaves."""

from __future__ import annotations

import json
import os
import time
from collections.abc import Mapping
from pathlib import Path

import pytest

from agent.cache.lvm_shell import Answer, LvmShell, ShellLostError, TooSlowError, command_line

REAL = {"PATH": "/usr/sbin:/usr/bin:/sbin:/bin", "LC_ALL": "C", "LVM_SUPPRESS_FD_WARNINGS": "1"}
NOTHING = 'devices { filter=["r|.*|"] use_devicesfile=0 }'
PVS = ["pvs", "--config", NOTHING, "--reportformat", "json", "-o", "pv_name"]
GOOD = {"log": [{"log_type": "status", "log_context": "shell", "log_object_name": "pvs",
                 "log_message": "success", "log_ret_code": "1"}]}  # fmt: skip


def ask(
    shell: LvmShell,
    *arguments: str,
    changes: bool = False,
    environment: Mapping[str, str] = REAL,
    timeout_s: float = 20.0,
) -> Answer | None:
    return shell.ask(arguments, changes=changes, environment=environment, timeout_s=timeout_s)


def pid_of(shell: LvmShell) -> int:
    assert shell._child is not None
    return shell._child._process.pid


@pytest.fixture
def shell() -> LvmShell:
    return LvmShell()


def misbehaving(directory: Path, script: str) -> dict[str, str]:
    """An ``lvm`` that answers the first question well, and then does ``script``."""
    program = directory / "lvm"
    good = json.dumps(GOOD)
    program.write_text(f"#!/bin/bash\nread -r\necho '{good}' >&$LVM_REPORT_FD\nread -r\n{script}\n")
    program.chmod(0o755)
    return {"PATH": f"{directory}:/usr/bin:/bin"}


def test_one_shell_answers_one_command_after_the_other(shell: LvmShell) -> None:
    answer = ask(shell, *PVS)
    assert answer is not None
    assert answer.ok
    assert json.loads(answer.report) == {"report": [{"pv": []}]}
    first = pid_of(shell)
    failed = ask(shell, "lvremove", "--config", NOTHING, "--yes", "no-such-group/x", changes=True)
    assert failed is not None
    assert not failed.ok
    assert 'Volume group "no-such-group" not found' in failed.errors
    assert pid_of(shell) == first


def test_no_change_is_asked_of_a_shell_that_has_answered_nothing_yet(shell: LvmShell) -> None:
    assert ask(shell, "lvremove", "--yes", "x/y", changes=True) is None


def test_a_shell_that_died_idle_is_replaced(shell: LvmShell) -> None:
    ask(shell, *PVS)
    first = shell._child
    assert first is not None
    os.kill(first._process.pid, 9)
    os.waitid(os.P_PID, first._process.pid, os.WEXITED | os.WNOWAIT)
    again = ask(shell, *PVS)
    assert again is not None
    assert again.ok
    assert shell._child is not first


def test_a_forked_process_has_a_shell_of_its_own(shell: LvmShell) -> None:
    ask(shell, *PVS)
    mine = pid_of(shell)
    child = os.fork()
    if child == 0:
        try:
            answer = ask(shell, *PVS)
            os._exit(0 if answer and answer.ok and pid_of(shell) != mine else 1)
        finally:
            os._exit(2)
    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0
    again = ask(shell, *PVS)
    assert again is not None
    assert pid_of(shell) == mine


@pytest.mark.parametrize(
    "script",
    [
        "exit 0",
        "echo '{\"log\": []}' >&$LVM_REPORT_FD",
        f"echo '{json.dumps(GOOD).replace('pvs', 'vgs')}' >&$LVM_REPORT_FD",
        "echo not JSON >&$LVM_REPORT_FD",
    ],
)
def test_a_shell_that_is_lost_in_a_change_is_told_and_not_trusted_with_the_next(
    shell: LvmShell, tmp_path: Path, script: str
) -> None:
    environment = misbehaving(tmp_path, script)
    ask(shell, "pvs", environment=environment)
    with pytest.raises(ShellLostError):
        ask(shell, "lvremove", "x/y", changes=True, environment=environment)
    assert ask(shell, "lvremove", "x/y", changes=True, environment=environment) is None
    answer = ask(shell, "pvs", environment=environment)
    assert answer is not None, "a new one that answers well is trusted again"
    assert answer.ok


def test_a_command_that_takes_too_long_is_interrupted_and_its_shell_ended(
    shell: LvmShell, tmp_path: Path
) -> None:
    told = tmp_path / "interrupted"
    environment = misbehaving(tmp_path, f"trap 'echo > {told}; exit' INT\nread -r")
    ask(shell, "pvs", environment=environment)
    pid = pid_of(shell)
    began_s = time.monotonic()
    with pytest.raises(TooSlowError):
        ask(shell, "lvremove", "x/y", changes=True, environment=environment, timeout_s=0.3)
    assert time.monotonic() - began_s < 5
    assert told.exists()
    with pytest.raises(ProcessLookupError):
        os.kill(pid, 0)


def test_an_lvm_without_such_a_shell_is_left_alone_from_then_on(
    shell: LvmShell, tmp_path: Path
) -> None:
    (tmp_path / "lvm").write_text("#!/bin/bash\necho lvm: what? >&2\nexit 3\n")
    (tmp_path / "lvm").chmod(0o755)
    with pytest.raises(ShellLostError):
        ask(shell, "pvs", environment={"PATH": f"{tmp_path}:/bin"})
    assert ask(shell, "pvs", environment={"PATH": f"{tmp_path}:/bin"}) is None
    assert ask(LvmShell(), "pvs", environment={"PATH": str(tmp_path / "nowhere")}) is None


def test_what_the_shells_parser_could_take_for_something_else_is_not_given_to_it() -> None:
    assert command_line(["lvs", "a b", '"x"']) == "lvs 'a b' '\"x\"'"
    for evil in ("a'b", "a\nlvremove x", "a\tb", "", "tag!1", "é", "a\0b"):
        assert command_line(["lvs", evil]) is None, evil
    assert command_line(["lvs"] * 61) is None
