"""What a guest took, in the file that Grid Engine's execution daemon reads."""

from __future__ import annotations

from pathlib import Path

import pytest
from click.testing import CliRunner

from agent.cli.gridengine import epilog
from agent.hooks.gridengine.usage import add_guests, with_guests

OURS = (
    "exit_status=3\nru_utime=0.210000\nru_stime=0.1\nru_maxrss=20000\nru_inblock=8\nru_oublock=0\n"
)
RUN = {
    "cpu_s": 12.5,
    "peak_memory_bytes": 256 << 20,
    "read_bytes": 1 << 20,
    "written_bytes": 4096,
}


def test_times_and_bytes_are_added_and_memory_is_the_greater() -> None:
    assert with_guests(OURS, [RUN]).splitlines() == [
        "exit_status=3",
        "ru_utime=12.710000",
        "ru_stime=0.1",
        "ru_maxrss=262144",
        "ru_inblock=2056",
        "ru_oublock=8",
    ]
    assert "ru_maxrss=20000\n" in with_guests(OURS, [RUN | {"peak_memory_bytes": 1}])


def test_what_is_not_understood_stays_as_it_is() -> None:
    odd = "ru_utime=1.2.3\nru_maxrss=\nwhat\n"
    assert with_guests(odd, [RUN]) == odd
    # A launch that failed took nothing that was counted.
    assert with_guests("ru_utime=0.2\n", [{"exit": None}]) == "ru_utime=0.200000\n"


def test_a_job_that_never_ran_has_no_usage(tmp_path: Path) -> None:
    assert not add_guests(tmp_path, [RUN])
    assert list(tmp_path.iterdir()) == []
    (tmp_path / "usage").write_text(OURS)
    (tmp_path / "usage").chmod(0o640)
    assert add_guests(tmp_path, [RUN])
    assert [file.name for file in tmp_path.iterdir()] == ["usage"]
    assert (tmp_path / "usage").stat().st_mode & 0o777 == 0o640


def test_nothing_is_accounted_in_a_directory_that_is_no_shepherds(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "config").touch()
    (tmp_path / "usage").write_text("ru_utime=1.0\n")
    (tmp_path / ".usage.partial").symlink_to(tmp_path / "of root's")
    monkeypatch.setattr(
        "agent.hooks.gridengine.job.ask", lambda *_, **__: {"runs": [{"cpu_s": 5.0}]}
    )
    environ = {"JOB_ID": "7", "SGE_TASK_ID": "1", "SGE_JOB_SPOOL_DIR": str(tmp_path)}
    done = CliRunner().invoke(epilog, [], obj=tmp_path / "socket", env=environ)
    assert "no shepherd" in done.output
    assert not (tmp_path / "of root's").exists()
