"""The domain's XML: valid by libvirt's own schema, and what the launcher promises in it."""

from __future__ import annotations

import shutil
import subprocess
from dataclasses import replace
from pathlib import Path, PurePosixPath
from typing import Any, Literal, cast
from xml.etree import ElementTree as ET

import pytest

from agent.cache.holders import TimeHolder
from agent.cache.leases import Lease
from agent.launch.accelerator import choose
from agent.launch.choosing import Job
from agent.launch.domain import (
    CHANNELS,
    CONTROL,
    NAMESPACE,
    Disk,
    DomainSpec,
    Nic,
    Owner,
    Share,
    owner_of,
)
from agent.launch.domain_xml import to_xml
from agent.launching import Launcher
from agent.settings import AgentSettings
from agent.socket.caller import Caller
from distrib.errors import ConfigInvalid
from tests.trust.conftest import NOW, World, world

__all__ = ["world"]

RUN = PurePosixPath("/run/l-1")
PLAIN = DomainSpec(
    agent="wn001",
    lease="l-5f1c0a",
    accelerator="qemu",
    memory_mib=2048,
    vcpus=2,
    root=Disk(PurePosixPath("/cache/root.qcow2"), "qcow2"),
    context_iso=RUN / "context.iso",
    console_log=RUN / "console.log",
    channels=(RUN / "stdout", RUN / "stderr", RUN / "result", RUN / "files"),
)
VARIANTS = {
    "plain": PLAIN,
    "kvm on a device, with scratch": replace(
        PLAIN,
        accelerator="kvm",
        root=Disk(PurePosixPath("/dev/vg0/l-1"), "raw", block=True),
        scratch=Disk(PurePosixPath("/dev/vg0/l-1-scratch"), "raw", block=True),
    ),
    "emulated disks, relabelled, no label": replace(
        PLAIN,
        root=Disk(PurePosixPath("/cache/root.raw"), "raw", bus="ide", relabel=True),
        scratch=Disk(PurePosixPath("/cache/s.raw"), "raw", bus="ide", relabel=True),
        unlabelled=True,
    ),
    "q35, virtio-scsi, two discs, a share, another account": replace(
        PLAIN,
        machine="q35",
        cpu="Nehalem",
        root=Disk(PurePosixPath("/cache/root.qcow2"), "qcow2", bus="virtio-scsi", io="threads"),
        scratch=Disk(PurePosixPath("/cache/s.raw"), "raw", bus="virtio-scsi", cache="none"),
        opennebula_iso=RUN / "opennebula.iso",
        share=Share(PurePosixPath("/home/alice/job")),
        run_as=(1000, 1000),
    ),
    "q35 without virtio": replace(
        PLAIN,
        machine="q35",
        root=Disk(PurePosixPath("/cache/root.raw"), "raw", bus="sata", cache="writeback"),
        nic=Nic("network", "default", model="e1000"),
    ),
    "an emulated scsi adapter": replace(
        PLAIN,
        root=Disk(PurePosixPath("/cache/r.raw"), "raw", bus="scsi", cache="none", io="io_uring"),
    ),
    "the host's cpu model": replace(PLAIN, accelerator="kvm", cpu="host-model"),
    "xen, hardware virtualisation": replace(
        PLAIN,
        accelerator="xen-hvm",
        root=Disk(PurePosixPath("/dev/vg0/l-1"), "raw", block=True, bus="ide"),
        nic=Nic("bridge", "xenbr0", model="e1000"),
    ),
    "xen, paravirtual": replace(
        PLAIN,
        accelerator="xen-pv",
        root=Disk(PurePosixPath("/dev/vg0/l-1"), "raw", block=True),
        scratch=Disk(PurePosixPath("/dev/vg0/l-1-scratch"), "raw", block=True),
        nic=Nic("bridge", "xenbr0"),
    ),
    "private network": replace(PLAIN, nic=Nic("network", "default")),
    "public bridge": replace(
        PLAIN, nic=Nic("bridge", "br0", model="e1000", mac="52:54:00:12:34:56")
    ),
}


def _parse(spec: DomainSpec) -> ET.Element:
    return ET.fromstring(to_xml(spec))  # noqa: S314


@pytest.mark.parametrize("name", VARIANTS)
def test_libvirts_schema_accepts_it(name: str, tmp_path: Path) -> None:
    _validate(VARIANTS[name], tmp_path)


def _validate(spec: DomainSpec, tmp_path: Path) -> None:
    if shutil.which("virt-xml-validate") is None or shutil.which("xmllint") is None:
        pytest.skip("virt-xml-validate is not installed on this machine")
    path = tmp_path / "domain.xml"
    path.write_text(to_xml(spec))
    done = subprocess.run(
        ["virt-xml-validate", path, "domain"], check=False, capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr


@pytest.mark.parametrize("hypervisor", ["xen-pv", "xen-hvm"])
async def test_a_setting_makes_guests_of_xen(
    hypervisor: Literal["xen-pv", "xen-hvm"], world: World, tmp_path: Path
) -> None:
    launch = {"hypervisor": hypervisor, "libvirt_uri": "xen:///system"}
    launch |= {"default_network": "private", "hardware": {"bus": "virtio"}}
    settings = AgentSettings.model_validate({"node": "n1", "state_dir": tmp_path, "launch": launch})
    kind = await choose(
        settings.launch.hypervisor,
        agent="n1",
        hypervisor=cast(Any, None),
        run_dir=tmp_path,
    )
    image = world.site_image()
    lease = Lease(
        lease="l-1",
        infohash=image.infohash,
        image=image.ref,
        store="lvm",
        user="alice",
        holder=TimeHolder(NOW),
        since=NOW,
        device="/dev/vg0/l-1",
        block=True,
    )
    caller = Caller(pid=1, uid=1000, user="alice", admin=False)
    launcher = Launcher(settings, clock=lambda: NOW)
    domain = launcher._spec(lease, image, Job(script=b"true\n"), caller, kind).domain()
    assert domain.accelerator == hypervisor
    assert _parse(domain).get("type") == "xen"
    _validate(domain, tmp_path)
    with pytest.raises(ConfigInvalid, match="no 9p"):
        replace(domain, share=Share(PurePosixPath("/home/alice/job")))


@pytest.mark.parametrize(
    ("hypervisor", "uri"), [("xen-pv", "qemu:///system"), ("auto", "xen:///system")]
)
def test_xen_is_another_libvirts(hypervisor: str, uri: str) -> None:
    flags = {"node": "n1", "launch.hypervisor": hypervisor, "launch.libvirt_uri": uri}
    with pytest.raises(ConfigInvalid, match="xen:///system"):
        AgentSettings.load(file=None, flags=flags)


def test_libvirt_may_not_give_the_sealed_base_to_qemus_account() -> None:
    label = _parse(PLAIN).find("devices/disk[@device='disk']/source/seclabel")
    assert label is not None
    assert (label.get("model"), label.get("relabel")) == ("dac", "no")


def test_every_way_to_stop_ends_the_domain() -> None:
    domain = _parse(PLAIN)
    for event in ("on_poweroff", "on_reboot", "on_crash"):
        assert domain.findtext(event) == "destroy"


def test_a_guest_has_no_network_unless_it_is_asked_for() -> None:
    assert _parse(PLAIN).find("devices/interface") is None
    card = _parse(VARIANTS["public bridge"]).find("devices/interface")
    assert card is not None
    assert card.find("source[@bridge='br0']") is not None


def test_a_card_on_a_bridge_lets_out_only_its_own_addresses() -> None:
    for name, spec in VARIANTS.items():
        for card in _parse(spec).findall("devices/interface"):
            filters = [one.get("filter") for one in card.findall("filterref")]
            assert filters == (["clean-traffic"] if card.get("type") == "bridge" else []), name


def test_a_guest_with_a_share_runs_as_the_shares_owner() -> None:
    domain = _parse(VARIANTS["q35, virtio-scsi, two discs, a share, another account"])
    assert domain.findtext("seclabel/label") == "+1000:+1000"
    assert len(domain.findall("devices/disk[@device='cdrom']")) == 2


def test_native_io_is_not_combined_with_the_page_cache() -> None:
    with pytest.raises(ConfigInvalid, match="native"):
        Disk(PurePosixPath("/r"), "raw", cache="writeback", io="native")
    assert Disk(PurePosixPath("/r"), "raw", io="native").driver_modes["cache"] == "none"


def test_a_device_goes_past_the_page_cache_and_a_full_disk_stops_the_guest() -> None:
    drivers = _parse(VARIANTS["kvm on a device, with scratch"]).findall(
        "devices/disk[@device='disk']/driver"
    )
    assert [(d.get("cache"), d.get("io"), d.get("type")) for d in drivers] == [
        ("none", "native", "raw"),
        ("none", "native", "raw"),
    ]
    for driver in drivers:
        assert driver.get("error_policy") == "stop"


def test_the_channels_have_the_names_that_guests_look_for() -> None:
    targets = _parse(PLAIN).findall("devices/channel/target")
    assert tuple(target.get("name") for target in targets) == (*CHANNELS, CONTROL)


def test_metadata_tells_whose_a_domain_is() -> None:
    element = _parse(PLAIN).find(f"metadata/{{{NAMESPACE}}}launch")
    assert element is not None
    assert owner_of(ET.tostring(element, encoding="unicode")) == Owner("wn001", "l-5f1c0a")
    assert owner_of("<launch agent='a'/>") is None
    assert owner_of("<other agent='a' lease='l'/>") is None
    assert owner_of("not xml") is None


def test_the_uuid_is_known_before_the_domain_exists() -> None:
    assert PLAIN.uuid == replace(PLAIN, memory_mib=64).uuid
    assert PLAIN.uuid != replace(PLAIN, agent="wn002").uuid
    assert PLAIN.uuid != replace(PLAIN, lease="l-2").uuid


@pytest.mark.parametrize(
    "fields",
    [
        {"lease": "l/../x"},
        {"lease": ""},
        {"agent": "a b"},
        {"memory_mib": 1},
        {"vcpus": 0},
        {"context_iso": PurePosixPath("context.iso")},
        {"root": Disk(PurePosixPath("root.raw"), "raw")},
        {"cpu": "a<b"},
        {"machine": "q35", "root": Disk(PurePosixPath("/r"), "raw", bus="ide")},
        {"accelerator": "xen-pv", "root": Disk(PurePosixPath("/r"), "raw", bus="sata")},
        {"channels": (RUN / "stdout",)},
    ],
)
def test_what_cannot_be_a_domain_is_refused(fields: dict[str, object]) -> None:
    with pytest.raises(ConfigInvalid):
        replace(PLAIN, **fields)  # type: ignore[arg-type]


def test_text_from_outside_stays_text() -> None:
    path = PurePosixPath("/run/a'b\"<&>/root.raw")
    source = _parse(replace(PLAIN, root=Disk(path, "raw"))).find("devices/disk/source")
    assert source is not None
    assert source.get("file") == str(path)
