"""What LSF is told, in its own formats: no LSF is run here."""

from __future__ import annotations

from pathlib import Path

import pytest
from click.testing import CliRunner

from agent.cli.lsf import launch_arguments, lsf
from agent.hooks.lsf.formats import (
    elim_line,
    map_lines,
    memory_mib,
    parameters,
    requirement,
    resource,
    shared_lines,
)
from distrib.errors import Revoked
from tests.batch.node import ALIAS, UUID, AgentThatSays, status

WANT = {"image": ALIAS, "identifier": UUID, "versions": ["1.0"]}
HELD = resource(UUID)
OTHER = resource("0d4b3b8e-54f0-4a53-8a6e-0a4f1a6a2c01")


def read_elim(line: str) -> dict[str, float]:
    """As LIM reads a report: a number of resources, then as many names and values."""
    count, *pairs = line.split()
    assert len(pairs) == 2 * int(count)
    return {name: float(value) for name, value in zip(pairs[::2], pairs[1::2], strict=True)}


def test_an_elim_reports_every_resource_each_time() -> None:
    wanted = ["tmp2", HELD, OTHER]
    assert read_elim(elim_line(status(), wanted)) == {"vm_ready": 1, HELD: 1, OTHER: 0}
    assert read_elim(elim_line(None, wanted)) == {"vm_ready": 0, HELD: 0, OTHER: 0}
    assert read_elim(elim_line(status(state="pulling"), wanted))[HELD] == 0


def test_the_elim_runs_as_lim_runs_it(tmp_path: Path) -> None:
    with AgentThatSays(tmp_path / "sock", status=status()) as socket:
        done = CliRunner().invoke(
            lsf,
            ["elim", "--every", "1", "--reports", "2"],
            obj=socket,
            env={"LSF_RESOURCES": f"{HELD} {OTHER}"},
        )
    assert done.exit_code == 0
    assert [read_elim(line)[HELD] for line in done.output.splitlines()] == [1, 1]


def test_resources_are_declared_for_every_image() -> None:
    shared = [line.split() for line in shared_lines([UUID, UUID])]
    # RESOURCENAME TYPE INTERVAL INCREASING DESCRIPTION: five columns.
    assert shared == [[name, "Numeric", "30", "N", "(distrib)"] for name in ("vm_ready", HELD)]
    assert map_lines([UUID]) == ["vm_ready [default]", f"{HELD} [default]"]


@pytest.mark.parametrize(
    ("asked", "becomes"),
    [
        ("", f"select[vm_ready==1] order[{HELD}]"),
        ("select[mem>9 || ut<1]", f"select[(mem>9 || ut<1) && vm_ready==1] order[{HELD}]"),
        ("order[ut:pg]", f"select[vm_ready==1] order[ut:pg:{HELD}]"),
        ("rusage[mem=512]", f"select[vm_ready==1] rusage[mem=512] order[{HELD}]"),
    ],
)
def test_what_a_user_asks_for_stays(asked: str, becomes: str) -> None:
    assert requirement(asked, HELD) == becomes


def test_memory_is_what_a_job_reserves() -> None:
    assert memory_mib("select[x] rusage[tmp=3, mem=2048]") == 2048
    assert memory_mib("select[mem>9]") is None


def submit(socket: Path, directory: Path, image: str, asked: str = "") -> tuple[int, str, str, str]:
    """Run the esub as bsub does: exit status, changed options and environment, what it says."""
    directory.mkdir(exist_ok=True)
    files = {name: directory / name for name in ("PARM", "MODIFY", "MODIFY_ENV")}
    for file in files.values():
        file.write_text("")
    files["PARM"].write_text(f'LSB_SUB_QUEUE="normal"\nLSB_SUB_RES_REQ="{asked}"\n')
    environment = {
        f"LSB_SUB_{name}FILE": str(file)
        for name, file in zip(("PARM_", "MODIFY_", "MODIFY_ENV"), files.values(), strict=True)
    }
    environment |= {"LSB_SUB_ABORT_VALUE": "97", "DISTRIB_LSF_RESOURCES": HELD}
    done = CliRunner().invoke(
        lsf, ["esub", image], obj=socket, env=environment, standalone_mode=False
    )
    return (
        int(done.return_value),
        files["MODIFY"].read_text(),
        files["MODIFY_ENV"].read_text(),
        done.output,
    )


def test_an_esub_asks_for_a_host_that_holds_the_image(tmp_path: Path) -> None:
    with AgentThatSays(tmp_path / "sock", want=WANT) as socket:
        status_, options, environment, _ = submit(socket, tmp_path / "a", ALIAS, "rusage[mem=512]")
    assert status_ == 0
    wanted = f"select[vm_ready==1] rusage[mem=512] order[{HELD}]"
    assert parameters(options) == {"LSB_SUB_RES_REQ": wanted}
    assert parameters(environment) == {"VM_IMG": ALIAS, "VM_MEM_MIB": "512"}


def test_an_esub_refuses_with_the_status_that_lsf_names(tmp_path: Path) -> None:
    with AgentThatSays(tmp_path / "sock", error=Revoked(f"image {ALIAS}: denied")) as socket:
        refused = submit(socket, tmp_path / "a", ALIAS)
    assert refused == (97, "", "", f"distrib: image {ALIAS}: denied\n")
    assert submit(tmp_path / "nobody", tmp_path / "a", "../etc")[0] == 97
    assert submit(tmp_path / "nobody", tmp_path / "a", ALIAS, "rusage[mem=1]")[0] == 97


def test_an_agent_that_is_away_costs_the_affinity_only(tmp_path: Path) -> None:
    status_, options, _, _ = submit(tmp_path / "nobody", tmp_path / "a", ALIAS)
    assert status_ == 0
    assert parameters(options) == {"LSB_SUB_RES_REQ": "select[vm_ready==1]"}


def test_a_pre_exec_pends_for_a_node_and_exits_for_a_refusal(tmp_path: Path) -> None:
    def pre(socket: Path, image: str) -> int:
        environment = {"VM_IMG": image, "LSB_JOBID": "12"}
        done = CliRunner().invoke(
            lsf, ["pre", "--wait", "0"], obj=socket, env=environment, standalone_mode=False
        )
        return int(done.return_value)

    with AgentThatSays(tmp_path / "a", status=status(), want=WANT) as socket:
        assert pre(socket, ALIAS) == 0
    with AgentThatSays(tmp_path / "b", status=status(state="pulling"), want=WANT) as socket:
        assert pre(socket, ALIAS) == 1
    with AgentThatSays(tmp_path / "c", error=Revoked("denied")) as socket:
        assert pre(socket, ALIAS) == 99
    assert pre(tmp_path / "nobody", ALIAS) == 1
    assert pre(tmp_path / "nobody", "") == 0


def test_a_script_goes_along_and_a_program_is_the_guests(tmp_path: Path) -> None:
    script = tmp_path / "job"
    script.write_text("#!/bin/sh\n")
    environ = {"VM_IMG": ALIAS, "VM_MEM_MIB": "512", "LSB_DJOB_NUMPROC": "2", "LSB_JOBID": "12"}
    found = launch_arguments(environ, (str(script), "a"))
    assert "--command" not in found
    assert found[-4:] == ["--", ALIAS, str(script), "a"]
    text = " ".join(found)
    assert "--node-fault 99 --refused 100 --memory 512 --vcpus 2" in text
    assert "--command" in launch_arguments(environ, ("hostname",))
