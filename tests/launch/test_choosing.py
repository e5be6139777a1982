"""What a job gets of what it asks for: by image, by site, by request."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest

from agent.cache.holders import Holder, JobHolder, TimeHolder
from agent.cache.leases import Lease
from agent.launch.choosing import Job, gets_site_part, machine_for, require_room
from agent.launch.domain import Nic
from agent.launching import Launcher, _name_of, _within_grant
from agent.settings import AgentSettings, HardwareSettings, LaunchSettings
from agent.socket.caller import Caller
from distrib.errors import Forbidden, LaunchFailed
from tests.trust.conftest import NOW, World, world

__all__ = ["world"]

JOB = Job(script=b"true\n")
OLD = HardwareSettings(bus="ide", nic="e1000", opennebula=True)


def test_an_image_without_virtio_gets_what_it_can_drive(world: World) -> None:
    image = replace(world.site_image(), aliases=("old",))
    settings = LaunchSettings(
        hardware=HardwareSettings(cpu="host-model"),
        images={"old": OLD, image.identifier: HardwareSettings(machine="pc", bus="sata")},
        default_network="private",
    )
    machine = machine_for(JOB, image, settings)
    assert machine.hardware.bus == "sata", "the UUID before the alias"
    assert (machine.hardware.cpu, machine.opennebula) == ("host-model", True)
    assert machine.nic == Nic("network", "default", "e1000")
    other = machine_for(JOB, world.site_image(), LaunchSettings(images={"old": OLD}))
    assert (other.hardware.bus, other.nic, other.opennebula) == ("virtio", None, False)
    asked = machine_for(replace(JOB, bus="virtio-scsi"), image, settings)
    assert asked.hardware.bus == "virtio-scsi"


def test_a_job_asks_within_the_sites_limits(world: World) -> None:
    settings = LaunchSettings(max_memory_mib=4096, max_vcpus=4, wall_limit_s=100)
    image = world.site_image()
    machine = machine_for(replace(JOB, memory_mib=4096, wall_limit_s=1000), image, settings)
    assert (machine.memory_mib, machine.wall_s) == (4096, 100)
    for asked in (replace(JOB, memory_mib=4097), replace(JOB, vcpus=5)):
        with pytest.raises(Forbidden, match="more than a guest may have"):
            machine_for(asked, image, settings)
    with pytest.raises(Forbidden, match="network public"):
        machine_for(replace(JOB, network="public"), image, settings)


def test_a_guest_larger_than_its_node_is_one_line(world: World) -> None:
    machine = machine_for(replace(JOB, memory_mib=4096), world.site_image(), LaunchSettings())
    require_room(machine, 4096)
    with pytest.raises(LaunchFailed, match=r"4096 MiB is larger than .* \(4095 MiB\)"):
        require_room(machine, 4095)


def test_a_users_own_image_never_comes_to_the_bridge(world: World) -> None:
    settings = LaunchSettings(networks=("private", "public"), default_network="public")
    image = world.site_image()
    own = replace(image, audience=("alice",))
    assert machine_for(JOB, image, settings).nic == Nic("bridge", "br0")
    assert machine_for(JOB, own, settings).nic == Nic("network", "default")
    with pytest.raises(Forbidden, match="not approved for all"):
        machine_for(replace(JOB, network="public"), own, settings)
    assert gets_site_part(image)
    assert not gets_site_part(own)


@pytest.mark.parametrize("for_all", [True, False])
def test_a_launch_of_a_users_own_image_has_neither_the_bridge_nor_the_sites_part(
    world: World, tmp_path: Path, for_all: bool
) -> None:
    site_context = tmp_path / "site"
    site_context.mkdir()
    (site_context / "prolog.sh").write_text("#!/bin/sh\n")
    launch = {"networks": ["public"], "default_network": "public", "site_context": site_context}
    settings = AgentSettings.model_validate(
        {"node": "n1", "state_dir": tmp_path, "launch": launch | {"qemu_user": ""}}
    )
    image = replace(world.site_image(), audience="all" if for_all else ("alice",))
    lease = Lease(
        lease="l-1",
        infohash=image.infohash,
        image=image.ref,
        store="file",
        user="alice",
        holder=TimeHolder(NOW),
        since=NOW,
        device=str(tmp_path / "disk"),
    )
    launcher = Launcher(settings, clock=lambda: NOW)
    caller = Caller(pid=1, uid=1000, user="alice", admin=False)
    spec = launcher._spec(lease, image, JOB, caller, "qemu")
    assert list(spec.site.files) == (["prolog.sh"] if for_all else [])
    assert spec.nic == (Nic("bridge", "br0") if for_all else Nic("network", "default"))


def leased_by(holder: Holder) -> Lease:
    return Lease(
        lease="l-1",
        infohash="0" * 64,
        image="x@1",
        store="file",
        user="a",
        holder=holder,
        since=NOW,
    )


def test_a_batch_jobs_guest_has_what_the_scheduler_gave_whatever_its_user_says() -> None:
    holder = JobHolder("gridengine", "7.1", ("/bin/true",), memory_mib=512, vcpus=2)
    given = _within_grant(JOB, leased_by(holder))
    assert (given.memory_mib, given.vcpus) == (512, 2)
    for asked in (replace(JOB, memory_mib=513), replace(JOB, vcpus=3)):
        with pytest.raises(Forbidden, match=r"more than job gridengine:7\.1 was given"):
            _within_grant(asked, leased_by(holder))
    assert _within_grant(replace(JOB, vcpus=3), leased_by(TimeHolder(NOW))).vcpus == 3


def test_a_guest_is_not_accounted_to_a_job_whose_lease_it_does_not_have() -> None:
    holder = JobHolder("gridengine", "7.1", ("/bin/true",))
    assert _name_of(replace(JOB, name="gridengine:8.1"), leased_by(holder)) == "gridengine:7.1"
    with pytest.raises(Forbidden, match="a lease of its own"):
        _name_of(replace(JOB, name="gridengine:7.1"), leased_by(TimeHolder(NOW)))
    assert _name_of(replace(JOB, name="lsf:7"), leased_by(TimeHolder(NOW))) == "lsf:7"


def test_settings_by_image_are_dumped_as_they_are_read(tmp_path: Path) -> None:
    file = tmp_path / "agent.toml"
    file.write_text('node = "n1"\n[launch.images.old]\nbus = "ide"\n')
    settings = AgentSettings.load(file=file, environ={})
    assert settings.launch.images == {"old": HardwareSettings(bus="ide")}
    file.write_text(settings.as_toml())
    assert AgentSettings.load(file=file, environ={}) == settings
