"""The context disc: its files read back, its bounds, and the script that cloud-init guests run."""

from __future__ import annotations

import email
import io
import os
import subprocess
from pathlib import Path

import pycdlib
import pytest

from agent.launch.context import (
    LABEL,
    MAX_FILE_BYTES,
    JobPart,
    SitePart,
    files_of,
    opennebula_files_of,
    write_disc,
)
from agent.launch.runner import RUNNER
from distrib.errors import ConfigInvalid, OperatorError

JOB = JobPart(instance_id="wn001-l-1", script=b"#!/bin/sh\nid\n")


def _read(path: Path) -> tuple[str, dict[str, bytes], dict[str, bytes]]:
    iso = pycdlib.PyCdlib()
    iso.open(str(path))
    try:
        label = iso.pvd.volume_identifier.decode().strip()
        found: list[dict[str, bytes]] = []
        for key in ("rr_path", "joliet_path"):
            files = {}
            for child in iso.list_children(**{key: "/"}):
                if child is None or child.is_dir():
                    continue
                name = (
                    child.rock_ridge.name().decode()
                    if key == "rr_path"
                    else child.file_identifier().decode("utf-16-be")
                )
                data = io.BytesIO()
                iso.get_file_from_iso_fp(data, **{key: f"/{name}"})
                files[name] = data.getvalue()
            found.append(files)
    finally:
        iso.close()
    return label, found[0], found[1]


def test_every_file_comes_back_by_its_name(tmp_path: Path) -> None:
    site = SitePart(
        {"context.sh": b"A=1\n", "a-file-with.a.long-name_of-the-site": os.urandom(5000)}
    )
    files = files_of(site, JOB)
    write_disc(tmp_path / "context.iso", files)
    label, rock_ridge, joliet = _read(tmp_path / "context.iso")
    assert label == LABEL == "cidata"
    assert rock_ridge == joliet == files
    assert {"meta-data", "user-data", "job.sh", "args", "environment", "context.sh"} < set(files)


def test_cloud_init_sees_a_new_instance() -> None:
    assert files_of(SitePart(), JOB)["meta-data"].startswith(b"instance-id: wn001-l-1\n")
    assert files_of(SitePart(), JOB)["user-data"] == RUNNER.encode()


def test_the_sites_user_data_comes_before_the_job() -> None:
    site = SitePart({"user-data": b"#cloud-config\npackages: [jq]\n"})
    message = email.message_from_bytes(files_of(site, JOB)["user-data"])
    first, second = message.get_payload()
    assert (first.get_content_type(), second.get_content_type()) == (
        "text/plain",
        "text/x-shellscript",
    )
    assert "packages: [jq]" in first.get_payload()
    assert second.get_payload().strip() == RUNNER.strip()


def test_an_opennebula_guest_finds_the_runner_on_a_disc_of_its_own(tmp_path: Path) -> None:
    site = SitePart({"context.sh": b"SITE=cc"})
    write_disc(tmp_path / "one.iso", opennebula_files_of(site, JOB), label="CONTEXT")
    label, files, _ = _read(tmp_path / "one.iso")
    assert (label, set(files)) == ("CONTEXT", {"context.sh"})
    # As its scripts do: sourced, decoded, run.
    (tmp_path / "context.sh").write_bytes(files["context.sh"])
    said = subprocess.run(
        ["sh", "-c", '. "$1"; echo "$SITE"; printf %s "$START_SCRIPT_BASE64" | base64 -d', "sh",
         tmp_path / "context.sh"],
        check=True,
        capture_output=True,
    )  # fmt: skip
    assert said.stdout.decode() == "cc\n" + RUNNER


def test_inputs_are_on_the_disc_under_their_names(tmp_path: Path) -> None:
    given = {"stdin": tmp_path / "a", "files": tmp_path / "b"}
    data = {"stdin": os.urandom(3 << 20), "files": b""}
    for name, path in given.items():
        path.write_bytes(data[name])
    write_disc(tmp_path / "context.iso", files_of(SitePart(), JOB), given=given)
    _, files, joliet = _read(tmp_path / "context.iso")
    assert files == joliet
    assert (files["stdin"], files["files.tar"]) == (data["stdin"], b"")


def test_a_hepix_guest_keeps_how_its_prolog_ended_and_runs_the_job_last() -> None:
    files = files_of(SitePart({"prolog.sh": b"#!/bin/bash\ntrue\n", "epilog.sh": b"echo e\n"}), JOB)
    assert b"trap" in files["prolog.sh"]
    assert files["site-epilog.sh"] == b"echo e\n"
    assert b"runner.sh" in files["epilog.sh"]
    python = b"#!/usr/bin/python3\n"
    assert files_of(SitePart({"prolog.sh": python}), JOB)["prolog.sh"] == python


def test_the_sites_folder_is_read_without_hidden_files(tmp_path: Path) -> None:
    (tmp_path / "prolog.sh").write_bytes(b"true\n")
    (tmp_path / ".prolog.sh.swp").write_bytes(b"x")
    assert SitePart.from_directory(tmp_path).files == {"prolog.sh": b"true\n"}
    (tmp_path / "folder").mkdir()
    with pytest.raises(ConfigInvalid, match="not a plain file"):
        SitePart.from_directory(tmp_path)


@pytest.mark.parametrize(
    "files",
    [
        {"job.sh": b"x"},
        {"../x": b""},
        {"a b": b""},
        {"key.pem": b"-----BEGIN RSA PRIVATE KEY-----\n"},
        {"key.asc": b"-----BEGIN PGP PRIVATE KEY BLOCK-----\n"},
        {"host.keytab": b"\5\2"},
        {"id_ed25519": b"x"},
        {"site-epilog.sh": b"true\n"},
    ],
)
def test_what_does_not_belong_on_a_disc_is_refused(files: dict[str, bytes]) -> None:
    with pytest.raises(ConfigInvalid):
        SitePart(files)


def test_a_job_that_cannot_be_carried_is_refused() -> None:
    with pytest.raises(OperatorError, match="empty"):
        JobPart(instance_id="i", script=b" \n")
    with pytest.raises(OperatorError, match="larger"):
        JobPart(instance_id="i", script=b"x" * (MAX_FILE_BYTES + 1))
    with pytest.raises(OperatorError, match="environment variable"):
        JobPart(instance_id="i", script=b"x", environment={"A=B;rm": "1"})
    with pytest.raises(OperatorError, match="NUL"):
        JobPart(instance_id="i", script=b"x", args=["a\0b"])


def _run_runner(tmp_path: Path, site: SitePart, job: JobPart) -> dict[str, bytes]:
    """Run user-data as a guest with cloud-init would, its ports being plain files."""
    context, ports = tmp_path / "context", tmp_path / "ports"
    context.mkdir()
    ports.mkdir()
    for name, data in files_of(site, job).items():
        (context / name).write_bytes(data)
    for name in ("stdout", "stderr", "result", "files"):
        (ports / f"distrib.{name}").touch()
    environment = {
        "PATH": os.environ["PATH"],
        "TMPDIR": str(tmp_path),
        "DISTRIB_CONTEXT": str(context),
        "DISTRIB_PORTS": str(ports),
        "DISTRIB_RUN": str(tmp_path),
        "DISTRIB_POWEROFF": f"touch {tmp_path}/off",
    }
    subprocess.run(
        ["sh", "-s"], input=RUNNER.encode(), env=environment, check=True, timeout=30,
        capture_output=True,
    )  # fmt: skip
    assert (tmp_path / "off").exists()
    return {path.name.removeprefix("distrib."): path.read_bytes() for path in ports.iterdir()}


def test_the_runner_keeps_the_contract(tmp_path: Path) -> None:
    said = _run_runner(
        tmp_path,
        SitePart({"context.sh": b"SITE=cc\n", "prolog.sh": b'[ "$1" = start ]\n'}),
        JobPart(
            instance_id="i",
            script=b"""printf '%s|' "$@" "$NAME" $SITE; printf '\\377\\0'; echo e >&2; exit 7\n""",
            args=["a b", "", "o'clock", "\udcff"],
            environment={"NAME": "x\ny"},
        ),
    )
    assert said == {
        "stdout": b"a b||o'clock|\xff|x\ny|cc|\xff\0",
        "stderr": b"e\n",
        "result": b"ready\n7\n",
        "files": b"",
    }


OF_THE_SITE = SitePart(
    {
        "prolog.sh": b'echo "prolog $1" >>"$TMPDIR/order"\n',
        "epilog.sh": b'echo "epilog $1" >>"$TMPDIR/order"\n',
    }
)
OWN = b'echo "own $1 for $NAME" | tee -a "$TMPDIR/order"\n'


def test_a_jobs_own_script_makes_its_guest_ready_and_the_sites_word_is_the_last(
    tmp_path: Path,
) -> None:
    job = JobPart(
        instance_id="i",
        script=b'echo job >>"$TMPDIR/order"; exit 3\n',
        environment={"NAME": "alice"},
        context=OWN,
    )
    said = _run_runner(tmp_path, OF_THE_SITE, job)
    assert (said["result"], said["stdout"]) == (b"ready\n3\n", b"")
    assert said["stderr"] == b"own start for alice\n"
    order = (tmp_path / "order").read_text().splitlines()
    assert order == [
        *("prolog start", "own start for alice", "epilog start", "job"),
        *("own stop for alice", "epilog stop", "prolog stop"),
    ]


def test_a_jobs_own_script_that_fails_is_the_jobs_failure(tmp_path: Path) -> None:
    job = JobPart(instance_id="i", script=b"echo never\n", context=b"#!/bin/sh\necho no; exit 6\n")
    said = _run_runner(tmp_path, OF_THE_SITE, job)
    assert (said["result"], said["stdout"]) == (b"ready\n6\n", b"")
    assert said["stderr"].splitlines() == [
        b"no",
        b"the job's context script ended with 6: the job is not run",
    ]
    assert (tmp_path / "order").read_text().splitlines()[-1] == "prolog stop"


def test_the_runner_says_why_it_cannot_run_a_job(tmp_path: Path) -> None:
    said = _run_runner(tmp_path, SitePart({"prolog.sh": b"exit 4\n"}), JOB)
    assert said == {"stdout": b"", "stderr": b"", "result": b"failed prolog-4\n", "files": b""}
