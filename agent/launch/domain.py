"""The libvirt domain of one launch, as a value and as XML. Pure.

Format: https://libvirt.org/formatdomain.html (tests hold it against libvirt's own schema).
A guest is thrown away after its job: every way in which it can stop ends the domain.
"""

from __future__ import annotations

import re
import uuid
from dataclasses import dataclass
from pathlib import PurePosixPath
from typing import Literal
from xml.etree import ElementTree as ET

from distrib.errors import ConfigInvalid

NAMESPACE = "urn:distrib:launch:v1"
"""XML namespace of the metadata by which an agent finds its own domains again."""

CHANNELS = ("distrib.stdout", "distrib.stderr", "distrib.result")
"""Virtio-serial ports, by the names that the guest looks for."""

SCRATCH_SERIAL = "distrib-scratch"
"""Serial number of the scratch disk: the only blank disk that a guest may format."""

_UUIDS = uuid.UUID("6f0f0c39-4a0c-5a0b-9c0e-3c1d6d1f2b57")
_ID = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,62}")

Accelerator = Literal["kvm", "qemu"]


@dataclass(frozen=True)
class Disk:
    """A disk of the guest. ``path`` is absolute; ``block`` says that it is a block device.

    ``bus`` is ``virtio``, or ``ide`` for images without virtio drivers. ``relabel`` lets
    libvirt give the file to QEMU's account, and with it the sealed base that it stands on, which
    stays given: so it is off unless asked for."""

    path: PurePosixPath
    format: Literal["raw", "qcow2"]
    block: bool = False
    bus: Literal["virtio", "ide"] = "virtio"
    relabel: bool = False


@dataclass(frozen=True)
class Nic:
    """A network card: on a libvirt network (private NAT) or on a bridge of the host (public)."""

    kind: Literal["network", "bridge"]
    source: str
    model: Literal["virtio", "e1000"] = "virtio"
    mac: str | None = None


@dataclass(frozen=True)
class DomainSpec:
    """All that a domain is made from. Channel files and ``console_log`` must exist: created by
    libvirt they would belong to whom libvirt likes."""

    agent: str
    lease: str
    accelerator: Accelerator
    memory_mib: int
    vcpus: int
    root: Disk
    context_iso: PurePosixPath
    console_log: PurePosixPath
    channels: tuple[PurePosixPath, PurePosixPath, PurePosixPath]
    scratch: Disk | None = None
    nic: Nic | None = None
    unlabelled: bool = False

    def __post_init__(self) -> None:
        for what, text in (("agent", self.agent), ("lease", self.lease)):
            if not _ID.fullmatch(text):
                raise ConfigInvalid(
                    f"not usable as the name of an {what} in a domain: {text!r}",
                    hint="letters, digits, dot, dash and underscore, at most 63",
                )
        if not 16 <= self.memory_mib <= 4 << 20:
            raise ConfigInvalid(f"memory of a guest: 16 MiB to 4 TiB, not {self.memory_mib} MiB")
        if not 1 <= self.vcpus <= 512:
            raise ConfigInvalid(f"CPUs of a guest: 1 to 512, not {self.vcpus}")
        paths = [self.root.path, self.context_iso, self.console_log, *self.channels]
        paths += [self.scratch.path] if self.scratch else []
        for path in paths:
            # libvirt takes a relative path as relative to the daemon's own directory.
            if not path.is_absolute():
                raise ConfigInvalid(f"not an absolute path: {path}", path=str(path))

    @property
    def name(self) -> str:
        """The domain's name: unique among the agents that share one libvirt."""
        return f"distrib-{self.agent}-{self.lease}"

    @property
    def uuid(self) -> str:
        """The domain's UUID: follows from agent and lease, so it is known before it exists."""
        return str(uuid.uuid5(_UUIDS, f"{self.agent}/{self.lease}"))


@dataclass(frozen=True)
class Owner:
    """Whose a domain is, as its metadata says."""

    agent: str
    lease: str


def owner_of(metadata_xml: str) -> Owner | None:
    """Read our metadata element; None when it is not one."""
    try:
        # From our own libvirt's store, written by to_xml; parsed without external entities.
        element = ET.fromstring(metadata_xml)  # noqa: S314
    except ET.ParseError:
        return None
    agent, lease = element.get("agent"), element.get("lease")
    if element.tag.rpartition("}")[2] != "launch" or not agent or not lease:
        return None
    return Owner(agent=agent, lease=lease)


def to_xml(spec: DomainSpec) -> str:
    """The domain's XML for ``virDomainCreateXML``."""
    domain = ET.Element("domain", type=spec.accelerator)
    _text(domain, "name", spec.name)
    _text(domain, "uuid", spec.uuid)
    metadata = ET.SubElement(domain, "metadata")
    ET.register_namespace("distrib", NAMESPACE)
    ET.SubElement(metadata, f"{{{NAMESPACE}}}launch", agent=spec.agent, lease=spec.lease)
    _text(domain, "memory", str(spec.memory_mib), unit="MiB")
    _text(domain, "vcpu", str(spec.vcpus))
    system = ET.SubElement(domain, "os")
    _text(system, "type", "hvm", arch="x86_64", machine="pc")
    ET.SubElement(system, "boot", dev="hd")
    features = ET.SubElement(domain, "features")
    ET.SubElement(features, "acpi")
    ET.SubElement(features, "apic")
    if spec.accelerator == "kvm":
        ET.SubElement(domain, "cpu", mode="host-passthrough", check="none")
    else:
        # QEMU's translation buffer is 1 GiB of address space otherwise: too much under a
        # batch system's limit, and no faster for one job.
        _text(ET.SubElement(features, "tcg"), "tb-cache", "128", unit="MiB")
    ET.SubElement(domain, "clock", offset="utc")
    for event in ("on_poweroff", "on_reboot", "on_crash"):
        _text(domain, event, "destroy")
    devices = ET.SubElement(domain, "devices")
    _disk(devices, spec.root, target="a", serial="distrib-root")
    if spec.scratch:
        _disk(devices, spec.scratch, target="b", serial=SCRATCH_SERIAL)
    _cdrom(devices, spec.context_iso)
    ET.SubElement(devices, "controller", type="usb", model="none")
    ET.SubElement(devices, "controller", type="virtio-serial", index="0")
    serial = ET.SubElement(devices, "serial", type="file")
    ET.SubElement(serial, "source", path=str(spec.console_log), append="on")
    ET.SubElement(serial, "target", port="0")
    for name, path in zip(CHANNELS, spec.channels, strict=True):
        channel = ET.SubElement(devices, "channel", type="file")
        ET.SubElement(channel, "source", path=str(path), append="on")
        ET.SubElement(channel, "target", type="virtio", name=name)
    if spec.nic:
        _nic(devices, spec.nic)
    ET.SubElement(devices, "memballoon", model="none")
    random = ET.SubElement(devices, "rng", model="virtio")
    _text(random, "backend", "/dev/urandom", model="random")
    if spec.unlabelled:
        ET.SubElement(domain, "seclabel", type="none")
    return ET.tostring(domain, encoding="unicode")


def _text(parent: ET.Element, tag: str, text: str, **attributes: str) -> ET.Element:
    element = ET.SubElement(parent, tag, attributes)
    element.text = text
    return element


def _disk(devices: ET.Element, disk: Disk, *, target: str, serial: str) -> None:
    element = ET.SubElement(devices, "disk", type="block" if disk.block else "file", device="disk")
    # A device goes past the page cache. A file is an instance that dies with its lease, so the
    # guest's flushes protect nothing, and the page cache shares the base among the guests.
    caching = {"cache": "none", "io": "native"} if disk.block else {"cache": "unsafe"}
    # Stop, not report: a full snapshot must end the launch, not become the job's I/O error.
    ET.SubElement(
        element,
        "driver",
        {"name": "qemu", "type": disk.format, "error_policy": "stop", **caching},
    )
    source = ET.SubElement(element, "source", {"dev" if disk.block else "file": str(disk.path)})
    if not disk.relabel:
        ET.SubElement(source, "seclabel", model="dac", relabel="no")
    prefix = "vd" if disk.bus == "virtio" else "hd"
    ET.SubElement(element, "target", dev=prefix + target, bus=disk.bus)
    _text(element, "serial", serial)


def _cdrom(devices: ET.Element, iso: PurePosixPath) -> None:
    element = ET.SubElement(devices, "disk", type="file", device="cdrom")
    ET.SubElement(element, "driver", name="qemu", type="raw")
    ET.SubElement(element, "source", file=str(iso))
    # IDE: every kernel that boots on machine "pc" finds it; SATA needs ahci, which cloud
    # kernels leave out.
    ET.SubElement(element, "target", dev="hdc", bus="ide")
    ET.SubElement(element, "readonly")


def _nic(devices: ET.Element, nic: Nic) -> None:
    interface = ET.SubElement(devices, "interface", type=nic.kind)
    if nic.mac:
        ET.SubElement(interface, "mac", address=nic.mac)
    ET.SubElement(interface, "source", {nic.kind: nic.source})
    ET.SubElement(interface, "model", type=nic.model)
