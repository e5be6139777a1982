"""What HTCondor is told, in its own formats: no HTCondor is run here."""

from __future__ import annotations

import itertools
import json
import os
import subprocess
from pathlib import Path

import pytest
from click.testing import CliRunner

from agent.cli.htcondor import htcondor, launch_arguments
from agent.hooks.htcondor.ads import answer, job_image, machine
from agent.hooks.htcondor.classad import dump, parse
from distrib.errors import NoSpace, Revoked
from tests.batch.node import ALIAS, UUID, AgentThatSays, status

JOB = f'ClusterId = 12\nProcId = 3\nOwner = "alice"\nVmName = "{ALIAS}"\nRequestMemory = 1 + 1\n'


def test_a_machine_says_what_it_holds_by_every_name() -> None:
    ad = machine(status())
    assert ad["DistribLeasable"] is True
    assert str(ad["DistribImages"]).split(",") == [UUID, f"{UUID}@1.0", ALIAS, f"{ALIAS}@1.0"]
    assert ad["DistribImage_" + UUID.replace("-", "_")] == "1.0"
    assert machine(None) == {"DistribLeasable": False, "DistribImages": ""}
    assert machine(status(leasable=False))["DistribImages"] == ""


def test_an_ad_is_read_as_it_is_written() -> None:
    given = {"Text": 'a "b" \\ c', "Number": -7, "Flag": True}
    assert parse("\n".join(dump(given))) == {"text": 'a "b" \\ c', "number": -7, "flag": True}
    # A line break in a value would be another attribute.
    assert len("\n".join(dump({"HookStatusMessage": "a\nHookStatusCode = 0"})).splitlines()) == 1
    assert parse('A == 1\nB=?=2\nC = ifThenElse(x, "y", 1)\n') == {"c": None}


def test_only_a_literal_names_an_image() -> None:
    assert job_image(parse(JOB)) == ALIAS
    assert job_image(parse('vmname = "x"\n')) == "x"
    assert job_image(parse('VmName = strcat("c", "d")\n')) is None
    assert job_image(parse('Args = "VmName"\n')) is None


def test_a_refused_job_is_held_and_a_fault_of_the_node_makes_it_idle() -> None:
    held = answer(Revoked("image x: denied", hint="take another"))
    assert held == {
        "HookStatusCode": 100,
        "HookStatusMessage": "distrib: image x: denied (take another)",
    }
    assert int(str(answer(NoSpace("full"))["HookStatusCode"])) >= 300
    assert answer(None) == {}


def test_the_cron_job_prints_an_ad_and_publishes_it(tmp_path: Path) -> None:
    runner = CliRunner()
    with AgentThatSays(tmp_path / "sock", status=status()) as socket:
        out = runner.invoke(htcondor, ["ad"], obj=socket).output
    lines = out.splitlines()
    assert lines[-1] == "-"
    assert parse("\n".join(lines[:-1]))["distribleasable"] is True
    away = runner.invoke(htcondor, ["ad"], obj=tmp_path / "nobody").output
    assert away == 'DistribLeasable = false\nDistribImages = ""\n-\n'


def test_the_prepare_hook_answers_on_standard_output(tmp_path: Path) -> None:
    def prepare(socket: Path, ad: str) -> str:
        done = CliRunner().invoke(htcondor, ["prepare", "--wait", "0"], obj=socket, input=ad)
        assert done.exit_code == 0
        return done.output

    want = {"image": ALIAS, "identifier": UUID, "versions": ["1.0"]}
    with AgentThatSays(tmp_path / "a", status=status(), want=want) as socket:
        assert prepare(socket, JOB) == ""
        assert prepare(socket, "ClusterId = 1\n") == ""
    with AgentThatSays(tmp_path / "b", status=status(state="pulling"), want=want) as socket:
        waits = parse(prepare(socket, JOB))
    assert waits["hookstatuscode"] == 300
    assert "did not come to this node" in str(waits["hookstatusmessage"])
    with AgentThatSays(tmp_path / "c", error=Revoked(f"image {ALIAS}: denied")) as socket:
        assert parse(prepare(socket, JOB))["hookstatuscode"] == 100
    assert parse(prepare(tmp_path / "nobody", JOB))["hookstatuscode"] == 300


def test_a_job_gets_what_its_slot_has() -> None:
    slot = parse("Memory = 2048\nCpus = 2\n")
    environ = {"_CONDOR_SCRATCH_DIR": "/scratch", "PATH": "/evil", "X": "1", "_CONDOR_SLOT": "s1"}
    found = launch_arguments(parse(JOB), slot, ("./job", "a"), environ)
    text = " ".join(found)
    assert "--memory 2048 --vcpus 2 --workdir /scratch" in text
    assert "--env X=1" in text
    assert "PATH=/evil" not in text
    assert found[-4:] == ["--", ALIAS, "./job", "a"]


@pytest.mark.parametrize(
    ("asked", "slot", "memory", "vcpus"),
    [
        ("RequestMemory = 512\nRequestCpus = 1\n", "Memory = 2048\nCpus = 2\n", 512, 1),
        ("RequestMemory = 4096\n", "Memory = 2048\nCpus = 2\n", 2048, 2),
        # An expression: what was cut out of the machine for it is a number.
        ("RequestMemory = 1 + 1\nMemoryProvisioned = 768\n", "Memory = 2048\n", 768, None),
        ("RequestMemory = 1 + 1\n", "", None, None),
    ],
)
def test_a_job_gets_what_it_asked_for_and_no_more_than_its_slot(
    asked: str, slot: str, memory: int | None, vcpus: int | None
) -> None:
    found = launch_arguments(parse(f'VmName = "x"\n{asked}'), parse(slot), ("./job",), {})
    given = dict(itertools.pairwise(found))
    assert given.get("--memory") == (None if memory is None else str(memory))
    assert given.get("--vcpus") == (None if vcpus is None else str(vcpus))


def test_the_wrappers_are_told_as_json_and_taken_away(tmp_path: Path) -> None:
    def run(*arguments: str) -> dict[str, object]:
        done = CliRunner().invoke(
            htcondor,
            [*arguments, "--json", "--directory", str(tmp_path / "lib")],
            obj=Path("/run/x.sock"),
        )
        told: dict[str, object] = json.loads(done.output)
        return told

    files = [str(tmp_path / "lib" / name) for name in ("prepare", "wrapper")]
    assert run("install", "--dry-run")["changed"] == files
    installed = run("install")
    assert installed["changed"] == files
    assert "USER_JOB_WRAPPER" in str(installed["configuration"])
    assert run("install")["changed"] == []
    (tmp_path / "lib" / "wrapper").write_text("#!/bin/sh\n# the site's own\n")
    assert run("remove")["changed"] == files[:1]
    assert run("remove")["changed"] == []


@pytest.fixture
def wrappers(tmp_path: Path) -> Path:
    """The wrappers, of an installation whose interpreter says what it was called with."""
    made = CliRunner().invoke(
        htcondor, ["install", "--directory", str(tmp_path / "lib")], obj=Path("/run/x.sock")
    )
    assert made.exit_code == 0
    assert "DISTRIB_HOOK_PREPARE_JOB = " in made.output
    return tmp_path / "lib"


def run_wrapper(wrappers: Path, *, ad: str, python: str) -> tuple[int, str, str]:
    """Exit status, output, what is in the error file; ``python``: in the interpreter's place."""
    file = wrappers / "wrapper"
    fake = wrappers / "python"
    fake.write_text(f"#!/bin/sh\n{python}\n")
    fake.chmod(0o755)
    lines = file.read_text().splitlines()
    called = next(line for line in lines if line.startswith("[ ! -x ")).split()[3]
    file.write_text(file.read_text().replace(called, str(fake)))
    (wrappers / "ad").write_text(ad)
    failed = wrappers / "failed"
    variables = {"_CONDOR_JOB_AD": str(wrappers / "ad"), "_CONDOR_WRAPPER_ERROR_FILE": str(failed)}
    done = subprocess.run(
        [file, "/bin/echo", "on the host"],
        env={"PATH": os.environ["PATH"], **variables},
        capture_output=True,
        text=True,
        check=False,
    )
    return done.returncode, done.stdout, failed.read_text() if failed.exists() else ""


def test_a_job_without_an_image_runs_as_before(wrappers: Path) -> None:
    assert run_wrapper(wrappers, ad="A = 1\n", python="exit 3") == (0, "on the host\n", "")


def test_a_jobs_status_is_its_own_and_a_fault_is_not_taken_for_one(wrappers: Path) -> None:
    ran = run_wrapper(wrappers, ad=JOB, python="echo '{\"exit\": 99}' >$DISTRIB_OUTCOME; exit 99")
    assert ran == (99, "", "")
    fault = '{"error": {"message": "full", "exit": 5}}'
    failed = run_wrapper(wrappers, ad=JOB, python=f"echo '{fault}' >$DISTRIB_OUTCOME; exit 99")
    assert failed == (1, "", f"distrib: {fault}\n")


def test_a_client_that_is_killed_is_no_job_that_ended(wrappers: Path) -> None:
    status, _, said = run_wrapper(wrappers, ad=JOB, python="kill -9 $$")
    assert status == 1
    assert "could not be run or watched (status 137)" in said
