"""Jobs of a real Grid Engine that run in the image they name."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import pytest

from tests.batch.bed import BedHost
from tests.batch.product import PREFIX
from tests.batch.site import AGENT, BedNode, Site
from tests.farm.process import eventually

pytestmark = [pytest.mark.root, pytest.mark.timeout(240)]

SLIDE = "cat /proc/cpuinfo; free\n"
IMAGE = ("-ac", "vm_name=ccin2p3")
ENDLESS = "echo started; while :; do echo tick; sleep 0.2; done\n"


@pytest.fixture(autouse=True)
def nothing_left(grid: Site) -> Iterator[None]:
    """No job leaves a guest, an instance or a lease behind, nor a queue in an error state."""
    yield
    # Of a test that has failed: the next one is not to suffer for it.
    grid.cell.admin("qdel", "-u", "*", check=False)
    eventually("nothing is left", lambda: grid.left() == {}, limit_s=90)
    assert set(grid.cell.states().values()) == {""}


def refusal(grid: Site, *arguments: str) -> str:
    """What qsub says when it takes no job."""
    done = grid.cell.submit("-q", "virt", *arguments, script="hostname\n", check=False)
    assert done.returncode == 1, done.stdout
    return done.stderr + done.stdout


def test_the_case_of_the_slides(grid: Site) -> None:
    job = grid.cell.qsub("-q", "virt", "-l", "vmem=2g", *IMAGE, script=SLIDE)
    grid.cell.wait(job)
    out = grid.cell.output(job)
    assert "QEMU Virtual CPU" in out
    total = re.search(r"Mem: +(\d+)", out)
    assert total is not None
    assert 1_990_000 < int(total[1]) < 2_097_152
    assert grid.cell.errors(job) == ""


def test_an_image_nobody_approved_is_refused_at_submission(grid: Site) -> None:
    said = refusal(grid, "-ac", "vm_name=nosuch")
    assert "image nosuch: the site list approves no such image" in said
    assert "is no image" in refusal(grid, "-ac", "vm_name=../../etc")
    assert "vmem=1m" in refusal(grid, "-l", "vmem=1m", *IMAGE)


def test_an_array_in_a_hostile_environment_and_a_job_that_names_no_image(grid: Site) -> None:
    evil = grid.cell.master.path("/tmp/evil")
    evil.mkdir(mode=0o777)
    evil.chmod(0o777)
    trap = "import os; open(f'/tmp/evil/ran-as-{os.getuid()}', 'w')\n"
    for name in ("sitecustomize.py", "agent.py", "click.py"):
        (evil / name).write_text(trap)
    for name in ("env", "timeout", "grep", "python3", "sh"):
        (evil / name).write_text(f"#!/bin/sh\n/usr/bin/touch /tmp/evil/ran-{name}\nexit 1\n")
        (evil / name).chmod(0o755)
    hostile = "PATH=/tmp/evil,PYTHONPATH=/tmp/evil,PYTHONHOME=/tmp/evil,VM_IMG=forged,VM_MEM_MIB=9"
    script = 'echo "$(hostname) $VM_IMG $SGE_TASK_ID"; exit $SGE_TASK_ID\n'
    array = grid.cell.qsub("-q", "virt", "-t", "1-2", *IMAGE, "-v", hostile, script=script)
    plain = grid.cell.qsub(
        "-q", "virt", "-v", "VM_IMG=ccin2p3", script='hostname; echo "=$VM_IMG"\n'
    )
    grid.cell.wait(plain)
    assert grid.cell.output(plain) in {"wn1\n=\n", "wn2\n=\n"}
    grid.cell.wait(array)
    for task in ("1", "2"):
        assert grid.cell.output(array, task=task) == f"guest ccin2p3 {task}\n"
    exits = {one["taskid"]: one["exit_status"] for one in grid.cell.accounted(array)}
    assert exits == {"1": "1", "2": "2"}
    assert list(evil.glob("ran-*")) == []


def test_a_running_job_is_suspended_resumed_and_deleted(grid: Site) -> None:
    job = grid.cell.qsub("-q", "virt@wn1", *IMAGE, script=ENDLESS)
    grid.cell.says(job, "tick")
    virsh = ("virsh", "-q", "-c", grid.libvirt["wn1"], "list", "--all")
    host = grid.node("wn1").host
    grid.cell.admin("qmod", "-sj", job)
    eventually("it is paused", lambda: "paused" in host.run(*virsh).stdout)
    grid.cell.admin("qmod", "-usj", job)
    eventually("it runs on", lambda: "running" in host.run(*virsh).stdout)
    before = len(grid.cell.output(job))
    eventually("it writes on", lambda: len(grid.cell.output(job)) > before)
    # What is changed later than the JSV has looked would be nobody's to check.
    altered = grid.cell.admin("qalter", "-ac", "vm_name=evil", job, check=False)
    assert "jsv_allowed_mod" in altered.stdout + altered.stderr
    grid.cell.qdel(job)


@contextmanager
def without_interpreter(host: BedHost) -> Iterator[None]:
    python = host.path(PREFIX / "bin" / "python")
    moved = python.with_name("moved")
    python.rename(moved)
    try:
        yield
    finally:
        moved.rename(python)


@pytest.mark.long
def test_a_node_without_an_interpreter_holds_the_job_and_keeps_its_queue(grid: Site) -> None:
    job = grid.cell.qsub("-q", "virt@wn1", "-h", *IMAGE, script="hostname\n")
    with without_interpreter(grid.bed.head):
        grid.cell.admin("qrls", job)
        grid.cell.becomes_held(job, limit_s=180)
        assert set(grid.cell.states().values()) == {""}
        told = grid.cell.errors(job)
        assert told.count(f"{PREFIX}/bin/python is not there") >= 3
        assert f"attempt 3 of 3 of job {job}.1 failed here: it is held" in told
    grid.cell.admin("qmod", "-cj", job)
    grid.cell.wait(job)
    assert grid.cell.output(job) == "guest\n"


@contextmanager
def frozen(node: BedNode) -> Iterator[None]:
    """The agent does not answer."""
    pid = str(node.pid)
    node.host.run("kill", "-STOP", pid)
    try:
        yield
    finally:
        node.host.run("kill", "-CONT", pid)


def hook_of(host: BedHost, name: str) -> str:
    """The pid of a hook that runs, or nothing."""
    pattern = f"^{PREFIX}/bin/python .* hooks gridengine {name}$"
    return host.run("pgrep", "-f", pattern, check=False).stdout.strip()


@pytest.mark.long
def test_a_hook_that_is_killed_runs_again(grid: Site) -> None:
    node = grid.node("wn2")
    with frozen(node):
        job = grid.cell.qsub("-q", "virt@wn2", *IMAGE, script="hostname\n")
        pid = eventually("the prolog waits", lambda: hook_of(node.host, "prolog"))
        node.host.run("kill", "-KILL", pid)
    grid.cell.wait(job)
    assert "was ended: no answer in time, or killed" in grid.cell.errors(job)
    assert grid.cell.output(job) == "guest\n"


@pytest.mark.long
def test_a_job_is_deleted_while_it_waits_and_while_its_prolog_runs(grid: Site) -> None:
    held = grid.cell.qsub("-q", "virt", "-h", *IMAGE, script="hostname\n")
    grid.cell.becomes(held, "hqw")
    grid.cell.qdel(held)
    node = grid.node("wn1")
    with frozen(node):
        job = grid.cell.qsub("-q", "virt@wn1", *IMAGE, script="hostname\n")
        eventually("the prolog waits", lambda: hook_of(node.host, "prolog"))
        grid.cell.admin("qdel", job)
    grid.cell.wait(job, limit_s=120)
    assert grid.cell.output(job) == ""


@pytest.mark.long
def test_a_job_is_deleted_while_its_epilog_runs(grid: Site) -> None:
    node = grid.node("wn1")
    job = grid.cell.qsub("-q", "virt@wn1", *IMAGE, script="echo hi; sleep 2\n")
    grid.cell.says(job, "hi")
    eventually("the guest has ended", lambda: grid.domains("wn1") == [], every_s=0.01)
    with frozen(node):
        if grid.cell.state(job):
            grid.cell.admin("qdel", job, check=False)
    grid.cell.wait(job, limit_s=120)


@pytest.mark.long
def test_jobs_outlive_a_restart_of_their_execd(grid: Site) -> None:
    node = grid.node("wn1")
    job = grid.cell.qsub("-q", "virt@wn1", *IMAGE, script="echo up; sleep 8; echo down; exit 3\n")
    grid.cell.says(job, "up")
    node.host.run("kill", "-KILL", str(grid.cell.execd_pid(node.host)))
    grid.cell.start_execd(node.host)
    grid.cell.wait(job, limit_s=90)
    assert grid.cell.output(job) == "up\ndown\n"
    assert grid.cell.accounted(job)[-1]["exit_status"] == "3"


@pytest.mark.long
def test_jobs_go_where_their_image_is_and_on_when_that_is_full(grid: Site) -> None:
    other = grid.bring(alias="affine", nodes="wn2")
    eventually("the cell knows", lambda: grid.held_by(other) == {"wn2"}, limit_s=60)
    jobs = [
        grid.cell.qsub(
            "-q", "virt", "-l", "vmem=256M", "-ac", "vm_name=affine", script="hostname\n"
        )
        for _ in range(3)
    ]
    for job in jobs:
        grid.cell.wait(job, limit_s=120)
    hosts = {one["hostname"] for job in jobs for one in grid.cell.accounted(job)}
    assert hosts == {"wn2"}


@pytest.mark.long
def test_a_denied_image_is_refused_and_a_queued_job_of_it_held(grid: Site) -> None:
    other = grid.bring(alias="doomed", nodes="wn1,wn2")
    queued = grid.cell.qsub("-q", "virt", "-h", "-ac", "vm_name=doomed", script="hostname\n")
    grid.farm.distrib("image", "deny", other.ref, "--reason", "a hole")
    eventually("the node knows", lambda: grid.node("wn1").state(other) == "blocked")
    eventually("the node knows", lambda: grid.node("wn2").state(other) == "blocked")
    assert "doomed" in refusal(grid, "-ac", "vm_name=doomed")
    grid.cell.admin("qrls", queued)
    grid.cell.becomes_held(queued)
    assert "not on the site list any more" in grid.cell.errors(queued)
    grid.cell.admin("qdel", queued)


@pytest.mark.long
def test_twenty_jobs_on_two_nodes(grid: Site) -> None:
    script = 'echo "$(hostname) $JOB_ID"\n'
    memory = ("-l", "vmem=256M")
    jobs = [grid.cell.qsub("-q", "virt", *memory, *IMAGE, script=script) for _ in range(20)]
    for job in jobs:
        grid.cell.wait(job, limit_s=200)
    assert [grid.cell.output(job) for job in jobs] == [f"guest {job}\n" for job in jobs]
    hosts = [one["hostname"] for job in jobs for one in grid.cell.accounted(job)]
    assert set(hosts) == {"wn1", "wn2"}
    assert len(hosts) == 20


def test_the_configuration_is_put_back_as_it_was(grid: Site) -> None:
    def configuration() -> str:
        shown = [grid.cell.admin("qconf", "-sconf", "global").stdout]
        shown += [grid.cell.admin("qconf", *what).stdout for what in (("-sq", "virt"), ("-sc",))]
        return "".join(line for text in shown for line in text.splitlines(True) if "#" not in line)

    def hooks(*arguments: str) -> dict[str, Any]:
        done = grid.cell.admin(AGENT, "hooks", "gridengine", *arguments, "--json", check=False)
        found: dict[str, Any] = json.loads(done.stdout)
        return found

    queue = ("--queue=virt", "--vmem=wn1=6G", "--vmem=wn2=6G")
    installed = configuration()
    assert hooks("install", *queue)["changes"] == []
    assert hooks("show")["intact"]
    planned = hooks("remove", "--dry-run")["changes"]
    assert configuration() == installed
    removed = hooks("remove")
    # Grid Engine keeps complexes as long as a host has reported a value of them.
    left = {one["name"]: one["why"] for one in removed["left"]}
    assert left.keys() <= {"vm_images", "vm_ready"}
    assert all("still referenced in host" in why for why in left.values())
    assert [one for one in planned if one["name"] not in left] == removed["changes"]
    bare = configuration()
    assert "distrib" not in bare
    assert re.search(r"jsv_allowed_mod +ac,h,i,e,o,j,M,N,p,w", bare)
    hooks("install", *queue)
    assert configuration() == installed
