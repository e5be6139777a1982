"""What fails under jobs of a real Grid Engine: each completes or is told why; no queue suffers."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass

import pytest

from tests.batch.site import ROOT, BedNode, Site
from tests.farm.farm import Image
from tests.farm.process import eventually

pytestmark = [
    pytest.mark.root,
    pytest.mark.timeout(400),
    pytest.mark.usefixtures("nothing_left"),
]

SCRIPT = "echo up; sleep 4; echo down\n"
LIBVIRT = "/run/distrib/libvirt"
LONG_COUNT = 50


@dataclass(frozen=True)
class Victim:
    """A job that runs, or is about to, on a node."""

    grid: Site
    node: BedNode
    job: str
    image: Image

    def runs(self) -> None:
        """Wait until its guest says so."""
        self.grid.cell.says(self.job, "up", limit_s=150)


@contextmanager
def qemu_killed(victim: Victim) -> Iterator[None]:
    victim.runs()
    host = victim.node.host
    for domain in victim.grid.domains(victim.node.name):
        host.run("pkill", "-KILL", "-f", f"guest={domain}[, ]")
    yield


@contextmanager
def agent_killed(victim: Victim) -> Iterator[None]:
    victim.runs()
    victim.node.kill()
    victim.node.start()
    yield


@contextmanager
def agent_upgraded(victim: Victim) -> Iterator[None]:
    victim.runs()
    victim.node.stop()
    victim.node.start()
    yield


@contextmanager
def libvirtd_killed(victim: Victim) -> Iterator[None]:
    victim.runs()
    host = victim.node.host
    host.run("kill", "-KILL", host.path(f"{LIBVIRT}/libvirtd.pid").read_text().strip())
    host.run(ROOT / "scripts" / "libvirt-private", "start", LIBVIRT)
    yield


@contextmanager
def image_revoked(victim: Victim) -> Iterator[None]:
    victim.runs()
    victim.grid.farm.distrib("image", "deny", victim.image.ref, "--reason", "a hole", "--kill")
    yield


@contextmanager
def disc_full(victim: Victim) -> Iterator[None]:
    """There is no room for an instance; the job was held back until now."""
    instances = str(victim.node.cache / "instances")
    eventually("no other instance", lambda: victim.grid.left() == {}, limit_s=90)
    victim.node.host.run("mount", "-t", "tmpfs", "-o", "size=8k,mode=755", "tmpfs", instances)
    try:
        victim.grid.cell.admin("qrls", victim.job)
        yield
    finally:
        victim.node.host.run("umount", instances)


Fault = Callable[[Victim], AbstractContextManager[None]]
FAULTS: tuple[Fault, ...] = (
    qemu_killed,
    agent_killed,
    libvirtd_killed,
    disc_full,
    agent_upgraded,
    image_revoked,
)


def named(fault: Fault) -> str:
    return str(fault.__name__)  # type: ignore[attr-defined]


def over(grid: Site, job: str) -> bool:
    state = grid.cell.state(job)
    return state == "" or "E" in state


def story(grid: Site, fault: Fault, *, node: str, image: Image, name: str) -> str:
    """One job, one fault; how the job ended: ``done`` or ``held``."""
    hold = ("-h",) if fault is disc_full else ()
    what = ("-q", f"virt@{node}", "-l", "vmem=256M", "-ac", f"vm_name={name}")
    job = grid.cell.qsub(*what, *hold, script=SCRIPT)
    victim = Victim(grid, grid.node(node), job, image)
    with fault(victim):
        eventually(f"job {job} is over or held", lambda: over(grid, job), limit_s=150)
    assert set(grid.cell.states().values()) == {""}
    errors = grid.cell.errors(job)
    if grid.cell.state(job):
        # Held: with 100, and a reason.
        assert any(line.startswith("distrib") for line in errors.splitlines()), errors
        grid.cell.admin("qdel", job)
        return "held"
    *before, last = grid.cell.accounted(job)
    assert last["exit_status"] == "0", errors
    assert grid.cell.output(job).endswith("up\ndown\n")
    # Where it was run again: with 99, and a reason.
    assert {one["exit_status"] for one in before} <= {"99"}
    assert not before or any(line.startswith("distrib") for line in errors.splitlines())
    return "done"


def test_a_job_whose_qemu_is_killed_is_run_again(grid: Site) -> None:
    assert story(grid, qemu_killed, node="wn1", image=grid.image, name="ccin2p3") == "done"


@pytest.mark.long
def test_a_job_that_finds_no_room_is_held_with_the_reason(grid: Site) -> None:
    assert story(grid, disc_full, node="wn2", image=grid.image, name="ccin2p3") == "held"


@pytest.mark.long
@pytest.mark.timeout(7200)
def test_fifty_faults(grid: Site) -> None:
    ends: dict[str, list[str]] = {named(fault): [] for fault in FAULTS}
    for number in range(LONG_COUNT):
        fault = FAULTS[number % len(FAULTS)]
        node = ("wn1", "wn2")[number // len(FAULTS) % 2]
        image, name = grid.image, "ccin2p3"
        if fault is image_revoked:
            name = f"revoked{number}"
            image = grid.bring(alias=name, nodes=node)
            eventually("the cell knows", lambda one=image: grid.held_by(one), limit_s=60)
        ends[named(fault)].append(story(grid, fault, node=node, image=image, name=name))
        print(number + 1, named(fault), node, ends[named(fault)][-1], flush=True)
        eventually("nothing is left", lambda: grid.left() == {}, limit_s=90)
    assert set(ends["image_revoked"]) == set(ends["disc_full"]) == {"held"}
    for fault in ("qemu_killed", "agent_killed", "libvirtd_killed", "agent_upgraded"):
        assert set(ends[fault]) == {"done"}
