"""Leases live and die with their holders, also across restarts."""

from __future__ import annotations

import json
import os
import subprocess
from collections.abc import Iterator
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest

from agent.cache.holders import (
    Holder,
    JobHolder,
    ProcessHolder,
    TimeHolder,
    alive,
    holder_as_dict,
    holder_of_pid,
    parse_holder,
)
from agent.cache.leases import Lease, Leases, new_lease_id
from distrib.errors import NotFound, OperatorError

NOW = datetime(2026, 3, 1, 12, tzinfo=UTC)


@pytest.fixture
def process() -> Iterator[subprocess.Popen[bytes]]:
    """A process that ends when its standard input does."""
    with subprocess.Popen(["cat"], stdin=subprocess.PIPE, stdout=subprocess.DEVNULL) as child:
        yield child


def end(process: subprocess.Popen[bytes]) -> None:
    assert process.stdin is not None
    process.stdin.close()


def lease_of(holder: Holder) -> Lease:
    return Lease(
        lease=new_lease_id(),
        infohash="a" * 64,
        image="7cb7a2d5-0f0e-4f43-9a11-3a9f5e0f6c11@1.0.0",
        store="file",
        user="alice",
        holder=holder,
        since=NOW,
    )


def test_a_running_process_holds_its_lease() -> None:
    assert alive(holder_of_pid(os.getpid()), NOW)


def test_a_process_that_ended_holds_nothing(process: subprocess.Popen[bytes]) -> None:
    holder = holder_of_pid(process.pid)
    end(process)
    process.wait()
    assert not alive(holder, NOW)
    with pytest.raises(NotFound):
        holder_of_pid(process.pid)


def test_a_zombie_holds_nothing(process: subprocess.Popen[bytes]) -> None:
    holder = holder_of_pid(process.pid)
    end(process)
    os.waitid(os.P_PID, process.pid, os.WEXITED | os.WNOWAIT)
    assert Path(f"/proc/{process.pid}").exists()
    assert not alive(holder, NOW)


def test_another_process_with_the_same_pid_is_told_apart_by_its_start() -> None:
    holder = holder_of_pid(os.getpid())
    assert not alive(replace(holder, start_time=holder.start_time - 1), NOW)


def test_nobody_outlives_a_boot() -> None:
    assert not alive(replace(holder_of_pid(os.getpid()), boot_id="another"), NOW)


def test_a_name_with_brackets_and_blanks_does_not_shift_the_fields(tmp_path: Path) -> None:
    (tmp_path / "sys/kernel/random").mkdir(parents=True)
    (tmp_path / "sys/kernel/random/boot_id").write_text("b1\n")
    (tmp_path / "42").mkdir()
    rest = " ".join(["S", *("0" for _ in range(18)), "81723", "0"])
    (tmp_path / "42/stat").write_text(f"42 (a) R 1 (b c) {rest}\n")
    assert holder_of_pid(42, proc=tmp_path) == ProcessHolder(42, 81723, "b1")


def test_what_the_kernel_does_not_tell_is_no_death(tmp_path: Path) -> None:
    assert alive(ProcessHolder(42, 1, "b1"), NOW, proc=tmp_path)


def test_a_moment_passes() -> None:
    holder = TimeHolder(NOW)
    assert alive(holder, NOW - timedelta(seconds=1))
    assert not alive(holder, NOW)


@pytest.mark.parametrize(
    ("script", "lives"),
    [
        ("exit 0", True),
        ("exit 1", False),
        ("exit 100", False),
        ("kill -9 $$", True),
    ],
)
def test_a_job_lives_while_its_probe_says_so(script: str, lives: bool) -> None:
    assert alive(JobHolder("gridengine", "4711.1", ("/bin/sh", "-c", script)), NOW) is lives


def test_a_probe_that_hangs_or_is_not_there_says_nothing(tmp_path: Path) -> None:
    hangs = JobHolder("gridengine", "4711.1", ("/bin/sh", "-c", "sleep 1000 & wait"))
    assert alive(hangs, NOW, probe_timeout_s=0.05)
    assert alive(JobHolder("gridengine", "4711.1", (str(tmp_path / "none"),)), NOW)


def test_a_probe_is_run_without_a_shell(tmp_path: Path) -> None:
    mark = tmp_path / "mark"
    holder = JobHolder("gridengine", "1; touch mark", ("/bin/echo", f"$(touch {mark})", ";"))
    assert alive(holder, NOW)
    assert not mark.exists()


@pytest.mark.parametrize(
    "holder",
    [
        {},
        {"kind": "forever"},
        {"kind": "process", "pid": 0, "start_time": 1, "boot_id": "b"},
        {"kind": "process", "pid": 1},
        {"kind": "job", "scheduler": "g", "job": "1", "probe": []},
        {"kind": "job", "scheduler": "g", "job": "1", "probe": ["qstat", "-j"]},
        {"kind": "job", "scheduler": "g", "job": "1", "probe": ["../qstat"]},
        {"kind": "job", "scheduler": "g", "job": "1", "probe": ["/bin/true", "a\0b"]},
        {"kind": "job", "scheduler": "g", "job": "1", "probe": "/bin/true"},
        {"kind": "time", "until": "2026-03-01T12:00:00"},
    ],
)
def test_a_holder_that_is_none_is_refused(holder: dict[str, object]) -> None:
    with pytest.raises(OperatorError, match="holder"):
        parse_holder(holder)


@pytest.mark.parametrize(
    "holder",
    [
        ProcessHolder(4711, 81723, "4f6c2b7e"),
        JobHolder("gridengine", "4711.1", ("/usr/bin/qstat", "-j", "4711")),
        TimeHolder(NOW),
    ],
)
def test_a_lease_comes_back_with_its_holder(tmp_path: Path, holder: Holder) -> None:
    leases = Leases(tmp_path / "leases")
    lease = lease_of(holder)
    leases.save(lease)
    assert leases.load().leases == (lease,)
    assert parse_holder(json.loads(json.dumps(holder_as_dict(holder)))) == holder
    leases.delete(lease)
    assert leases.load().leases == ()


def test_a_lease_shows_on_the_socket_what_is_documented() -> None:
    assert lease_of(ProcessHolder(4711, 81723, "4f6c2b7e")).as_dict().keys() == {
        "lease", "image", "device", "format", "block", "scratch", "holder", "user", "since",
    }  # fmt: skip


def test_a_lease_that_cannot_be_read_is_set_aside_and_the_others_are_read(tmp_path: Path) -> None:
    leases = Leases(tmp_path)
    lease = lease_of(TimeHolder(NOW))
    leases.save(lease)
    (tmp_path / "l-bad000.json").write_bytes(b'{"v": 1')
    found = leases.load()
    assert found.leases == (lease,)
    assert [name for name, _ in found.corrupt] == ["l-bad000"]
    assert (tmp_path / "l-bad000.json.bad").exists()
