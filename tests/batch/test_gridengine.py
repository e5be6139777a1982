"""Jobs of a real Grid Engine that run in the image they name."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import pytest

from agent.hooks.gridengine.names import image_id
from tests.batch.bed import BedHost
from tests.batch.product import PREFIX
from tests.batch.site import AGENT, BedNode, Site
from tests.farm.process import eventually

pytestmark = [
    pytest.mark.root,
    pytest.mark.timeout(240),
    pytest.mark.usefixtures("nothing_left"),
]

SLIDE = "cat /proc/cpuinfo; free\n"
IMAGE = ("-ac", "vm_name=ccin2p3")
ENDLESS = "echo started; while :; do echo tick; sleep 0.2; done\n"


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
    (accounted,) = grid.cell.accounted(job)
    (run,) = grid.runs(job)
    # The client's own share of it is a fraction of a second, and no disk.
    assert float(accounted["ru_utime"].rstrip("s")) >= round(run["cpu_s"], 2) > 1
    assert int(accounted["ru_inblock"]) >= run["read_bytes"] // 512 > 0


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
    array = grid.cell.qsub("-q", "virt@wn1", "-t", "1-2", *IMAGE, "-v", hostile, script=script)
    plain = grid.cell.qsub(
        "-q", "virt", "-v", "VM_IMG=ccin2p3", script='hostname; echo "=$VM_IMG"\n'
    )
    eventually("two guests at once on a node", lambda: len(grid.domains("wn1")) == 2)
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
    for change in (("-ac", "vm_name=evil"), ("-v", "VM_IMG=evil"), ("-l", "vmem=64M")):
        altered = grid.cell.admin("qalter", *change, job, check=False)
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


def test_a_node_without_an_interpreter_holds_the_job_and_keeps_its_queue(grid: Site) -> None:
    # A sensor that has no interpreter says no more, and nothing is sent to a node that is unheard.
    shown = ("qhost", "-h", "wn1", "-F", "vm_images")
    ours = f"+{image_id(grid.image.identifier)}+"
    eventually("it is offered", lambda: ours in grid.cell.admin(*shown).stdout, limit_s=60)
    job = grid.cell.qsub("-q", "virt@wn1", "-h", *IMAGE, script="hostname\n")
    with without_interpreter(grid.bed.head):
        grid.cell.admin("qrls", job)
        grid.cell.becomes_held(job, limit_s=90)
        assert set(grid.cell.states().values()) == {""}
        told = grid.cell.errors(job)
        assert told.count(f"{PREFIX}/bin/python is not there") >= 3
        assert f"attempt 3 of 3 of job {job}.1 failed here: it is held" in told
    # It does, and ends with 1 for a job that was requeued.
    grid.cell.admin("qmod", "-cj", job, check=False)
    grid.cell.wait(job)
    assert grid.cell.output(job) == "guest\n"


def test_an_image_on_no_host_comes_while_its_job_is_queued(grid: Site) -> None:
    image = grid.bring(alias="wanted")
    job = grid.cell.qsub("-q", "virt", "-ac", "vm_name=wanted", script="hostname\n")
    told = grid.cell.admin("qstat", "-j", job).stdout
    assert re.search(rf"hard resource_list:.*vm_images=\*\+{image_id(image.identifier)}\+\*", told)
    grid.cell.wait(job, limit_s=90)
    assert grid.cell.output(job) == "guest\n"
    assert grid.cell.errors(job) == ""
    (accounted,) = grid.cell.accounted(job)
    assert grid.node(accounted["hostname"]).state(image) in {"ready", "leased"}


@pytest.mark.long
def test_a_job_that_no_host_may_take_yet_can_tell_why(grid: Site) -> None:
    node = grid.node("wn1")
    node.kill()
    shown = ("qhost", "-h", "wn1", "-F", "vm_ready")
    try:
        eventually(
            "it is known", lambda: "vm_ready=0" in grid.cell.admin(*shown).stdout, limit_s=60
        )
        job = grid.cell.qsub("-q", "virt@wn1", *IMAGE, script="hostname\n")
        why = grid.cell.admin("qalter", "-w", "p", job, check=False).stdout
        # What the JSV knows of hosts is some seconds old: it may have asked for the image, too.
        offers = r'cannot run at host "wn1" because it offers only hl:(vm_ready=false|vm_images=\+)'
        assert re.search(offers, why), why
        assert grid.cell.state(job) == "qw"
    finally:
        node.start()
    grid.cell.wait(job, limit_s=90)
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
def test_a_denied_image_is_refused_and_queued_jobs_of_it_held(grid: Site) -> None:
    here = grid.bring(alias="doomed", nodes="wn1,wn2")
    eventually("the cell knows", lambda: grid.held_by(here) == {"wn1", "wn2"}, limit_s=60)
    nowhere = grid.bring(alias="unborn")
    hold = ("-q", "virt", "-h")
    jobs = {
        alias: grid.cell.qsub(*hold, "-ac", f"vm_name={alias}", script="hostname\n")
        for alias in ("doomed", "unborn")
    }
    for image in (here, nowhere):
        grid.farm.distrib("image", "deny", image.ref, "--reason", "a hole")
    for node in grid.nodes:
        eventually("the node knows", lambda node=node: node.state(here) == "blocked")
    # Also the one that waits for the image to come to a host: none will ever hold it.
    for alias, job in jobs.items():
        assert f"image {alias} is not on the site list any more" in refusal(
            grid, "-ac", f"vm_name={alias}"
        )
        grid.cell.admin("qrls", job)
    for job in jobs.values():
        grid.cell.becomes_held(job)
        assert "not on the site list any more" in grid.cell.errors(job)
        grid.cell.admin("qdel", job)


@pytest.mark.long
def test_twenty_jobs_on_two_nodes(grid: Site) -> None:
    script = 'echo "$(hostname) $JOB_ID"\n'
    memory = ("-l", "vmem=256M")
    jobs = [grid.cell.qsub("-q", "virt", *memory, *IMAGE, script=script) for _ in range(20)]
    for job in jobs:
        grid.cell.wait(job, limit_s=200)
    lost = {job: grid.cell.errors(job) for job in jobs if grid.cell.output(job) != f"guest {job}\n"}
    assert lost == {}
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


@pytest.mark.long
def test_nothing_is_left_once_hosts_report_no_more(grid: Site) -> None:
    def remove() -> dict[str, Any]:
        done = grid.cell.admin(AGENT, "hooks", "gridengine", "remove", "--json", check=False)
        found: dict[str, Any] = json.loads(done.stdout)
        return found

    remove()
    for node in grid.nodes:
        grid.cell.restart_execd(node.host)
    eventually("nothing is left", lambda: remove()["left"] == [], limit_s=60, every_s=1)
    complexes = grid.cell.admin("qconf", "-sc").stdout
    assert "vm_" not in complexes
    queue = ("--queue=virt", "--vmem=wn1=6G", "--vmem=wn2=6G")
    grid.cell.admin(AGENT, "hooks", "gridengine", "install", *queue)
    eventually("hosts report again", lambda: grid.held_by(grid.image) == {"wn1", "wn2"}, limit_s=60)
