"""Jobs of a real Slurm that run in the image they name."""

from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import Path

import pytest

from agent.hooks.slurm.names import feature
from tests.batch.cluster import HOST_MIB, NODE_MIB, SlurmSite, slurm_site
from tests.batch.product import PREFIX
from tests.batch.site import AGENT
from tests.farm.process import eventually

pytestmark = [pytest.mark.root, pytest.mark.timeout(240)]

IMAGE = "--comment=vm_name=ccin2p3"
SLIDE = "#!/bin/sh\ncat /proc/cpuinfo; free\nexit 7\n"


@pytest.fixture(scope="module")
def cluster(tmp_path_factory: pytest.TempPathFactory, guest_image: Path) -> Iterator[SlurmSite]:
    """A site whose batch system is Slurm."""
    with slurm_site(tmp_path_factory.mktemp("slurm"), guest_image, burst_buffer=False) as made:
        yield made


@pytest.fixture(autouse=True)
def nothing_left(cluster: SlurmSite) -> Iterator[None]:
    """No job leaves a guest, an instance or a lease behind, nor a node that is drained."""
    yield
    eventually("nothing is left", lambda: cluster.left() == [], limit_s=60)
    eventually("the node is idle", lambda: cluster.state() == "idle", limit_s=30)


def test_a_job_runs_in_the_image_that_its_comment_names(cluster: SlurmSite) -> None:
    assert feature(cluster.image.identifier) in cluster.features()
    job = cluster.sbatch(IMAGE, "--mem=512", "--hold", script=SLIDE)
    preferred = cluster.master.run("squeue", "-h", "-j", job, "-O", "Prefer:50").stdout
    assert preferred.strip() == feature(cluster.image.identifier)
    cluster.master.run("scontrol", "release", job)
    shown = cluster.becomes(job, "FAILED", "COMPLETED")
    out = cluster.output(job)
    assert "QEMU Virtual CPU" in out
    total = re.search(r"Mem: +(\d+)", out)
    assert total is not None
    assert 460_000 < int(total[1]) < 524_288
    assert shown["ExitCode"] == "7:0"


def refusal(cluster: SlurmSite, *arguments: str) -> str:
    """What sbatch says when it takes no job."""
    done = cluster.submit(*arguments, script="#!/bin/sh\nhostname\n", check=False)
    assert done.returncode != 0, done.stdout
    return done.stderr


def test_what_the_site_does_not_approve_is_refused_at_submission(cluster: SlurmSite) -> None:
    assert "image nosuch: the site list approves no such image" in refusal(
        cluster, "--comment=vm_name=nosuch"
    )
    assert "is no image" in refusal(cluster, "--comment=vm_name=;../../etc/$(id)")
    assert "is no image" in refusal(cluster, "--comment=vm_name=$(id)")
    assert "ask for --nodes=1" in refusal(cluster, IMAGE, "--nodes=2")
    assert "64M or more" in refusal(cluster, IMAGE, "--mem=10")


def test_each_task_of_an_array_has_its_guest_and_none_once_its_image_is_denied(
    cluster: SlurmSite,
) -> None:
    image = cluster.bring("doomed")
    comment = "--comment=vm_name=doomed"
    say = '#!/bin/sh\necho "$(hostname) $SLURM_ARRAY_TASK_ID"; exit $SLURM_ARRAY_TASK_ID\n'
    array = cluster.sbatch(comment, "--mem=256", "--array=3-4", script=say)
    for task in ("3", "4"):
        shown = cluster.becomes(f"{array}_{task}", "FAILED", "COMPLETED", limit_s=120)
        assert cluster.output(f"{array}_{task}") == f"guest {task}\n"
        assert shown["ExitCode"] == f"{task}:0"
    queued = cluster.sbatch(comment, "--array=3-4", "--hold", script=say)
    cluster.farm.distrib("image", "deny", image.ref, "--reason", "a hole")
    eventually("the node knows", lambda: cluster.node.state(image) == "blocked")
    # Under another name than before: an answer of the agent's is used again for some seconds.
    told = refusal(cluster, f"--comment=vm_name={image.identifier}")
    assert len([line for line in told.splitlines() if "site list" in line]) == 1
    cluster.master.run("scontrol", "release", queued)
    for task in ("3", "4"):
        shown = cluster.becomes(f"{queued}_{task}", "FAILED", "COMPLETED", limit_s=120)
        [line] = cluster.output(f"{queued}_{task}").splitlines()
        assert line.startswith(f"distrib: image doomed ({image.identifier}) is not on the site")
        assert shown["ExitCode"] == "100:0"


def test_a_job_that_asks_for_more_memory_than_there_is_ends_with_one_line(
    cluster: SlurmSite,
) -> None:
    more = f"--mem={NODE_MIB + 1024}"
    assert "Requested node configuration is not available" in refusal(cluster, IMAGE, more)
    # slurm.conf promises what the node does not have: another node might.
    job = cluster.sbatch(
        *(IMAGE, f"--mem={HOST_MIB + 1024}", "--open-mode=append"),
        script="#!/bin/sh\nhostname\n",
    )
    eventually("it is queued again", lambda: cluster.job(job)["Restarts"] == "1", limit_s=60)
    cluster.master.run("scancel", job)
    cluster.becomes(job, "CANCELLED")
    first, *_ = cluster.output(job).splitlines()
    assert f"a guest of {HOST_MIB + 1024} MiB is larger than this node's memory" in first
    assert f"({HOST_MIB} MiB)" in first
    assert cluster.state() in {"idle", "comp", "mix", "alloc"}


def test_the_environment_names_no_image(cluster: SlurmSite) -> None:
    plain = cluster.sbatch(
        script='#!/bin/sh\nhostname; echo "$VM_IMG"\n', VM_IMG="ccin2p3", SLURM_JOB_COMMENT="x"
    )
    cluster.becomes(plain, "COMPLETED")
    assert cluster.output(plain) == "wn1\nccin2p3\n"


@pytest.mark.long
def test_an_image_is_settled_at_submission(cluster: SlurmSite) -> None:
    held = cluster.sbatch(IMAGE, "--hold", script="#!/bin/sh\nhostname; echo $VM_IMG $1\n")
    for comment in ("Comment=vm_name=evil", "Comment="):
        done = cluster.master.run("scontrol", "update", f"JobId={held}", comment, check=False)
        assert done.returncode != 0
    assert cluster.job(held)["Comment"] == "vm_name=ccin2p3"
    cluster.master.run("scontrol", "release", held)
    cluster.becomes(held, "COMPLETED")
    assert cluster.output(held) == "guest\nccin2p3\n"


def test_a_node_that_cannot_lease_says_so_and_is_not_drained(cluster: SlurmSite) -> None:
    job = cluster.sbatch(IMAGE, "--hold", "--open-mode=append", script="#!/bin/sh\nhostname\n")
    cluster.node.stop()
    cluster.master.run("scontrol", "release", job)
    eventually("it is queued again", lambda: cluster.job(job)["Restarts"] == "1", limit_s=40)
    assert cluster.state() in {"idle", "comp", "mix", "alloc"}
    assert "distrib: agent at /run/distrib/agent.sock" in cluster.output(job)
    cluster.master.run("scancel", job)
    cluster.becomes(job, "CANCELLED")
    cluster.node.start()


@pytest.mark.long
def test_a_running_job_is_suspended_resumed_and_cancelled(cluster: SlurmSite) -> None:
    job = cluster.sbatch(IMAGE, script="#!/bin/sh\necho up; while :; do sleep 0.2; done\n")
    cluster.says(job, "up")
    host = cluster.node.host
    virsh = ("virsh", "-q", "-c", cluster.libvirt, "list", "--all")
    cluster.master.run("scontrol", "suspend", job)
    eventually("it is paused", lambda: "paused" in host.run(*virsh).stdout)
    cluster.master.run("scontrol", "resume", job)
    eventually("it runs on", lambda: "running" in host.run(*virsh).stdout)
    # What the lease's probe looks for once the prolog is long past.
    host.run("pgrep", "-U", "0", "-f", rf"^slurmstepd: \[{job}\.")
    alive = f"{cluster.hooks}/alive"
    host.run(alive, job)
    cluster.master.run("scancel", job, user="alice")
    cluster.becomes(job, "CANCELLED")
    eventually("its lease may go", lambda: host.run(alive, job, check=False).returncode == 1)


def test_the_configuration_is_put_back_as_it_was(cluster: SlurmSite) -> None:
    conf = cluster.master.path("/etc/slurm/slurm.conf")
    installed = conf.read_text()
    assert "nothing to do" in cluster.master.run(AGENT, "hooks", "slurm", "install").stdout
    cluster.master.run(AGENT, "hooks", "slurm", "remove")
    assert "distrib" not in conf.read_text()
    assert list(conf.parent.glob("*.lua")) == []
    cluster.master.run(AGENT, "hooks", "slurm", "install")
    assert conf.read_text() == installed


@pytest.mark.long
def test_a_node_without_an_interpreter_holds_the_job_and_is_not_drained(cluster: SlurmSite) -> None:
    job = cluster.sbatch(IMAGE, "--hold", "--open-mode=append", script="#!/bin/sh\nhostname\n")
    python = cluster.master.path(PREFIX / "bin" / "python")
    moved = python.with_name("moved")
    python.rename(moved)
    try:
        cluster.master.run("scontrol", "release", job)
        eventually("it is held", lambda: "held" in cluster.job(job)["Reason"].lower(), limit_s=120)
    finally:
        moved.rename(python)
    told = cluster.output(job)
    assert told.count(f"{PREFIX}/bin/python is not there") == 3
    assert f"attempt 3 of 3 of job {job} failed on wn1: it is held" in told
    cluster.master.run("scontrol", "release", job)
    cluster.becomes(job, "COMPLETED", limit_s=90)
    assert cluster.output(job).endswith("guest\n")
