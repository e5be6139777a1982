"""What is read from a guest, what is remembered of a host, and the run log."""

from __future__ import annotations

import json
import shutil
import subprocess
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any, cast

import pytest

from agent.launch import accelerator
from agent.launch.hypervisor import Hypervisor
from agent.launch.outcome import Outcome, console_tail, parse_result
from agent.launch.runlog import Run, RunLog
from distrib.errors import ConfigInvalid, StorageFailed

NOON = datetime(2026, 3, 1, 12, tzinfo=UTC)
RUN = Run(
    lease="l-1",
    image="7cb7a2d5-0f0e-4f43-9a11-3a9f5e0f6c11",
    version="1.0.0",
    sha512="ab" * 64,
    job="4711.1",
    user="alice",
    host="wn001",
)


@pytest.mark.parametrize(
    ("data", "outcome"),
    [
        (b"ready\n7\n", Outcome(exit_status=7)),
        (b"0\n", Outcome(exit_status=0)),
        (b"ready\n", Outcome()),
        (b"", Outcome()),
        (b"ready\nfailed prolog-3\n", Outcome(failed="prolog-3")),
        (b"failed\n", Outcome(failed="no reason given")),
        (b"failed \x1b[2J\n", Outcome(failed="\N{REPLACEMENT CHARACTER}[2J")),
        (b"256\n-1\n+7\n1 2\n\xff\n", Outcome()),
        ("\u0663\n".encode(), Outcome()),
    ],
)
def test_the_result_port_is_read_strictly(data: bytes, outcome: Outcome) -> None:
    assert parse_result(data) == outcome


def test_a_console_cannot_play_with_the_terminal() -> None:
    tail = console_tail(b"old\n" * 100 + b"a\r\n\x1b]0;title\x07b\tc\xff\n\n", lines=3)
    assert tail == "old\na\n\ufffd]0;title\ufffdb\tc\ufffd"
    assert console_tail(b"") == ""


def test_the_probe_is_what_its_source_says(tmp_path: Path) -> None:
    if shutil.which("as") is None or shutil.which("ld") is None:
        pytest.skip("binutils is not installed on this machine")
    source = Path(accelerator.__file__).with_name("probe.S")
    subprocess.run(["as", "-o", tmp_path / "p.o", source], check=True)
    link = ["ld", "-Ttext=0x7c00", "--oformat=binary", "-o", tmp_path / "p.bin", tmp_path / "p.o"]
    subprocess.run(link, check=True)
    sector = accelerator.PROBE_CODE.ljust(510, b"\0") + b"\x55\xaa"
    assert (tmp_path / "p.bin").read_bytes() == sector


async def test_auto_is_kvm_only_where_a_guest_ran_on_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    answers = [True, False]

    async def guest_runs(*_args: Any, **_kwargs: Any) -> bool:
        return answers.pop(0)

    monkeypatch.setattr(accelerator, "guest_runs", guest_runs)
    # Stands for the device node of a host with KVM.
    monkeypatch.setattr(accelerator, "KVM_DEVICE", tmp_path)
    nobody = cast(Hypervisor, None)
    remembered = tmp_path / "kvm.json"

    async def choose(setting: Any) -> str:
        return await accelerator.choose(
            setting, agent="a", hypervisor=nobody, run_dir=tmp_path, remembered=remembered
        )

    assert await choose("qemu") == "qemu"
    assert await choose("kvm") == "kvm"
    assert await choose("auto") == "kvm"
    assert await choose("auto") == "kvm", "remembered, not asked again"
    remembered.write_text(json.dumps({"v": 1, "boot_id": "of another boot", "kvm": True}))
    assert await choose("auto") == "qemu"
    monkeypatch.setattr(accelerator, "KVM_DEVICE", tmp_path / "absent")
    remembered.unlink()
    assert await choose("auto") == "qemu"


def test_a_run_leaves_a_line_at_its_start_and_one_at_its_end(tmp_path: Path) -> None:
    log = RunLog(tmp_path / "runlog")
    log.started(RUN, now=NOON)
    log.ended(RUN, start=NOON, now=NOON + timedelta(seconds=61.5), exit_status=7)
    start, end = log.lines()
    assert (tmp_path / "runlog" / "run-2026-03-01.jsonl").stat().st_mode & 0o007 == 0
    assert start == {"v": 1, "event": "start", "start": "2026-03-01T12:00:00.000Z", **vars(RUN)}
    assert end["end"] == "2026-03-01T12:01:01.500Z"
    assert (end["exit"], end["error"]) == (7, None)


def test_a_torn_line_takes_no_other_with_it(tmp_path: Path) -> None:
    log = RunLog(tmp_path)
    log.started(RUN, now=NOON)
    path = tmp_path / "run-2026-03-01.jsonl"
    path.write_bytes(path.read_bytes()[:-20])
    log.ended(RUN, start=NOON, now=NOON, exit_status=None, error="launch-failed")
    (only,) = log.lines()
    assert (only["event"], only["error"]) == ("end", "launch-failed")


def test_lines_are_kept_for_ninety_days_and_files_go_whole(tmp_path: Path) -> None:
    with pytest.raises(ConfigInvalid, match="89 days"):
        RunLog(tmp_path, keep_days=89)
    log = RunLog(tmp_path)
    (tmp_path / "run-notes.jsonl").touch()
    for day in (0, 1, 2):
        log.started(RUN, now=NOON + timedelta(days=day))
    assert log.expire(now=NOON + timedelta(days=90)) == ()
    gone = log.expire(now=NOON + timedelta(days=91))
    assert [path.name for path in gone] == ["run-2026-03-01.jsonl"]
    assert len(list(log.lines())) == 2
    assert (tmp_path / "run-notes.jsonl").exists()


def test_a_log_that_cannot_be_written_says_so(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    with pytest.raises(StorageFailed):
        RunLog(tmp_path / "file" / "log").started(RUN, now=NOON)
