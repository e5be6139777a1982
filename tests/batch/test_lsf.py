"""What LSF is told, in its own formats: no LSF is run here."""

from __future__ import annotations

import json
import os
import subprocess
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner

from agent.cli.lsf import lsf
from agent.hooks.lsf import steps, wrappers
from agent.hooks.lsf.formats import (
    elim_line,
    map_lines,
    memory_mib,
    parameters,
    requirement,
    resource,
    shared_lines,
)
from agent.hooks.lsf.steps import Grant, grant_in, job_of, launch_arguments
from agent.hooks.lsf.wrappers import NAMES
from distrib.errors import Conflict, NodeError, NotFound, OperatorError, Revoked
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
    assert memory_mib("select[type == any] order[r15s:pg] rusage[mem=2048.00]") == 2048
    assert memory_mib("rusage[mem=1.5G]") == 1536
    assert memory_mib("rusage[tmp=9:mem=512/task:duration=5]", slots=4) == 2048
    assert memory_mib("rusage[mem=512/host]", slots=4) == 512


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
    found = launch_arguments(environ, (str(script), "a"), leased=False)
    assert "--command" not in found
    assert found[-4:] == ["--", ALIAS, str(script), "a"]
    text = " ".join(found)
    assert "--node-fault 99 --refused 100 --name lsf:12 --memory 512 --vcpus 2" in text
    assert "--command" in launch_arguments(environ, ("hostname",), leased=False)
    # What was changed after the submission (bmod) is in LSF's own words only.
    changed = environ | {"LSB_EFFECTIVE_RSRCREQ": "rusage[mem=768.00/task]"}
    assert "--memory 1536 " in " ".join(launch_arguments(changed, ("hostname",), leased=False))


def test_in_the_lease_of_a_job_the_lease_says_how_much_there_is() -> None:
    environ = {"VM_IMG": ALIAS, "VM_MEM_MIB": "9999", "LSB_JOBID": "12", "LSB_JOBINDEX": "3"}
    found = launch_arguments(environ, ("hostname",), leased=True)
    assert " ".join(found).startswith("launch --node-fault 99 --refused 100 --lease lsf:12.3")
    assert "--memory" not in found
    assert found[-2:] == ["--", "hostname"], "no image: it is the lease's"


def test_a_job_is_a_number_and_of_an_array_its_index_too() -> None:
    assert job_of({"LSB_JOBID": "12", "LSB_JOBINDEX": "0"}) == "12"
    assert job_of({"LSB_JOBID": "12"}) == "12"
    assert job_of({"LSB_JOBID": "12", "LSB_JOBINDEX": "3"}) == "12.3"
    for wrong in ({}, {"LSB_JOBID": "1;2"}, {"LSB_JOBID": "1", "LSB_JOBINDEX": "-1"}):
        with pytest.raises(OperatorError, match="are no job"):
            job_of(wrong)


def test_what_a_job_was_given_is_lsfs_word() -> None:
    told = "alice|2|select[type == local] order[r15s:pg] rusage[mem=1024.00] span[hosts=1]\n"
    assert grant_in(told) == Grant("alice", 1024, 2)
    assert grant_in("alice|-|-") == Grant("alice", None, None)
    for wrong in ("", "Job <12> is not found", "alice|1|a\nbob|1|b"):
        with pytest.raises(NodeError, match="no job in the answer"):
            grant_in(wrong)


@pytest.fixture
def host(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A host whose ``bjobs`` says what stands in the file ``bjobs.says``; its state is apart."""
    (tmp_path / "bin").mkdir()
    program = tmp_path / "bin" / "bjobs"
    program.write_text(f"#!/bin/sh\n. {tmp_path}/bjobs.says\n")
    program.chmod(0o755)
    post = tmp_path / "bin" / "bpost"
    post.write_text(f'#!/bin/sh\necho "$*" >>{tmp_path}/posted\n')
    post.chmod(0o755)
    monkeypatch.setenv("PATH", f"{tmp_path}/bin:{os.environ['PATH']}")
    monkeypatch.setattr(steps, "STATE", tmp_path / "state")
    monkeypatch.setattr(wrappers, "STATE", tmp_path / "state")
    return tmp_path


def bjobs_says(host: Path, text: str, *, status: int = 0) -> None:
    (host / "bjobs.says").write_text(f"printf '%s\\n' '{text}'; exit {status}\n")


@pytest.mark.root
def test_a_pre_exec_of_root_takes_the_lease_and_the_post_exec_gives_it_back(host: Path) -> None:
    bjobs_says(host, "bob|2|rusage[mem=512.00]")
    leases: dict[str, Any] = {}

    def lease(args: dict[str, Any]) -> dict[str, Any]:
        leases[f"lsf:{args['holder']['job']}"] = args
        return {"lease": "l-1"}

    def release(args: dict[str, Any]) -> dict[str, Any]:
        if leases.pop(args["lease"], None) is None:
            raise NotFound(f"no lease {args['lease']} of yours")
        return {"released": "l-1"}

    def held(_args: dict[str, Any]) -> dict[str, Any]:
        return {"leases": list(leases.values())}

    environment = {"VM_IMG": ALIAS, "LSB_JOBID": "12", "LSB_JOBINDEX": "3", "LSFUSER": "root"}

    def call(socket: Path, *arguments: str) -> int:
        done = CliRunner().invoke(
            lsf, arguments, obj=socket, env=environment, standalone_mode=False
        )
        return int(done.return_value)

    with AgentThatSays(host / "sock", lease=lease, release=release, leases=held) as socket:
        assert call(socket, "pre", "--alive", "/lib/alive") == 0
        [given] = leases.values()
        assert (given["image"], given["user"]) == (ALIAS, "bob"), "not whom the environment says"
        holder = given["holder"]
        assert (holder["memory_mib"], holder["vcpus"]) == (512, 2)
        assert holder["probe"] == ["/lib/alive", "12.3"]
        assert steps.has_lease(socket, "12.3")
        assert not steps.has_lease(socket, "12")
        assert call(socket, "post") == 0
        assert leases == {}
        assert call(socket, "post") == 0, "nothing is left to give back"
        bjobs_says(host, "LSF is down", status=255)
        assert call(socket, "pre", "--alive", "/lib/alive") == 1


@pytest.fixture
def programs(host: Path) -> Path:
    """LSF's programs, as they are installed on the host."""
    with AgentThatSays(host / "agent", status=status()) as socket:
        arguments = ["install", "--directory", str(host / "lib"), "--bindir", str(host / "bin")]
        first = CliRunner().invoke(lsf, [*arguments, "--json"], obj=socket)
        again = CliRunner().invoke(lsf, [*arguments, "--json"], obj=socket)
    told = json.loads(first.output)
    assert told["changed"] == [str(host / "lib" / name) for name in NAMES]
    assert f"PRE_EXEC = {host}/lib/pre" in told["configuration"]["lsb.queues"]
    assert f"POST_EXEC = {host}/lib/post" in told["configuration"]["lsb.queues"]
    assert json.loads(again.output)["changed"] == []
    return host / "lib"


def run(program: Path, *arguments: str, **environ: str) -> int:
    return subprocess.run([program, *arguments], env=environ, check=False).returncode


def test_a_job_lives_as_lsf_says_and_where_that_is_not_known(programs: Path, host: Path) -> None:
    for says, status_, ended in (
        ("RUN", 0, False),
        ("USUSP", 0, False),
        ("UNKWN", 0, False),
        ("DONE", 0, True),
        ("EXIT", 0, True),
        ("Job <12> is not found", 255, True),
        ("Failed in LSF library call", 255, False),
        ("PEND", 0, True),
    ):
        bjobs_says(host, says, status=status_)
        assert run(programs / "alive", "12") == (1 if ended else 0), says
    (host / "state").mkdir()
    (host / "state" / "12").touch()
    assert run(programs / "alive", "12") == 0, "its PRE_EXEC has just leased"
    assert run(programs / "alive", "12; rm -rf /") == 0, "nothing that LSF would know"


def test_jobs_without_an_image_are_not_touched(programs: Path) -> None:
    assert run(programs / "pre", LSB_JOBID="12") == 0
    assert run(programs / "post", LSB_JOBID="12") == 0
    assert run(programs / "starter", "/bin/sh", "-c", "exit 7") == 7


def test_a_pre_exec_of_an_agent_that_is_away_has_the_job_pend(programs: Path, host: Path) -> None:
    bjobs_says(host, "alice|1|-")
    assert run(programs / "pre", LSB_JOBID="12", VM_IMG=ALIAS, PYTHONPATH="/evil") == 1
    assert run(programs / "pre", LSB_JOBID="12", LSB_JOBINDEX="3", VM_IMG=ALIAS) == 1
    first, second = (host / "posted").read_text().splitlines()
    assert first.startswith("-d distrib: agent at ")
    assert (first.split()[-1], second.split()[-1]) == ("12", "12[3]")
    assert run(programs / "post", LSB_JOBID="12", VM_IMG=ALIAS) == 0
    assert run(programs / "pre", LSB_JOBID="1 2", VM_IMG=ALIAS) == 99


def test_the_programs_are_taken_away_and_nobody_elses(programs: Path, host: Path) -> None:
    own = "#!/bin/sh\n# the site's own, for this distribution and distrib-agent\n"
    (programs / "post").write_text(own)
    arguments = ["remove", "--directory", str(programs), "--json"]
    told = json.loads(CliRunner().invoke(lsf, arguments, obj=host / "agent").output)
    assert len(told["changed"]) == len(NAMES) - 1
    assert [file.name for file in programs.iterdir()] == ["post"]
    with AgentThatSays(host / "agent2", status=status()) as socket:
        refused = CliRunner().invoke(lsf, ["install", *arguments[1:3]], obj=socket)
    assert isinstance(refused.exception, Conflict)
    assert [(file.name, file.read_text()) for file in programs.iterdir()] == [("post", own)]
    done = CliRunner().invoke(lsf, arguments[:-1], obj=host / "agent")
    assert done.output == "nothing to do\n"


def test_what_lsf_has_to_know_is_told_as_lines_or_as_json(tmp_path: Path) -> None:
    with AgentThatSays(tmp_path / "sock", status=status()) as socket:
        told = CliRunner().invoke(lsf, ["resources", "--json"], obj=socket).output
        lines = CliRunner().invoke(lsf, ["resources"], obj=socket).output.splitlines()
    assert json.loads(told)["lsf.shared, Resource section"] == shared_lines([UUID])
    assert "# lsb.queues" in lines
    assert "LSB_PRE_POST_EXEC_USER=root" in lines
