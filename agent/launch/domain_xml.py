"""A domain as XML for ``virDomainCreateXML``. Pure.

Format: https://libvirt.org/formatdomain.html (tests hold it against libvirt's own schema).
"""

from __future__ import annotations

from pathlib import PurePosixPath
from xml.etree import ElementTree as ET

from agent.launch.domain import CHANNELS, CONTROL, NAMESPACE, SCRATCH_SERIAL, Disk, DomainSpec, Nic

_SERIAL_LINES = 4
"""A PC has four: the fourth channel is missing there, and no directory comes back."""
_HOST_CPUS = {"host-passthrough", "host-model"}
_PREFIX = {"virtio": "vd", "virtio-scsi": "sd", "scsi": "sd", "sata": "sd", "ide": "hd"}


def to_xml(spec: DomainSpec) -> str:
    """The domain's XML."""
    domain = ET.Element("domain", type="xen" if spec.xen else spec.accelerator)
    _text(domain, "name", spec.name)
    _text(domain, "uuid", spec.uuid)
    metadata = ET.SubElement(domain, "metadata")
    ET.register_namespace("distrib", NAMESPACE)
    ET.SubElement(metadata, f"{{{NAMESPACE}}}launch", agent=spec.agent, lease=spec.lease)
    _text(domain, "memory", str(spec.memory_mib), unit="MiB")
    _text(domain, "vcpu", str(spec.vcpus))
    _system(domain, spec)
    if spec.accelerator != "xen-pv":
        _processor(domain, spec)
    ET.SubElement(domain, "clock", offset="utc")
    for event in ("on_poweroff", "on_reboot", "on_crash"):
        _text(domain, event, "destroy")
    devices = ET.SubElement(domain, "devices")
    _disks(devices, spec)
    if spec.xen:
        _xen_ports(devices, spec)
    else:
        _virtio_ports(devices, spec)
    if spec.share:
        _share(devices, spec.share.path, spec.share.tag)
    if spec.nic:
        _nic(devices, spec.nic, xen=spec.xen)
    if not spec.xen:
        ET.SubElement(devices, "memballoon", model="none")
        random = ET.SubElement(devices, "rng", model="virtio")
        _text(random, "backend", "/dev/urandom", model="random")
    if spec.run_as is not None:
        label = ET.SubElement(domain, "seclabel", type="static", model="dac", relabel="yes")
        _text(label, "label", f"+{spec.run_as[0]}:+{spec.run_as[1]}")
    elif spec.unlabelled:
        ET.SubElement(domain, "seclabel", type="none")
    return ET.tostring(domain, encoding="unicode")


def _text(parent: ET.Element, tag: str, text: str, **attributes: str) -> ET.Element:
    element = ET.SubElement(parent, tag, attributes)
    element.text = text
    return element


def _system(domain: ET.Element, spec: DomainSpec) -> None:
    if spec.accelerator == "xen-pv":
        # The kernel is the image's own: pygrub reads it from its first partition.
        _text(domain, "bootloader", "pygrub")
        _text(ET.SubElement(domain, "os"), "type", "linux", arch="x86_64", machine="xenpv")
        return
    system = ET.SubElement(domain, "os")
    machine = "xenfv" if spec.xen else spec.machine
    _text(system, "type", "hvm", arch="x86_64", machine=machine)
    ET.SubElement(system, "boot", dev="hd")


def _processor(domain: ET.Element, spec: DomainSpec) -> None:
    features = ET.SubElement(domain, "features")
    ET.SubElement(features, "acpi")
    ET.SubElement(features, "apic")
    if spec.accelerator == "qemu":
        # QEMU's translation buffer is 1 GiB of address space otherwise: too much under a
        # batch system's limit, and no faster for one job.
        _text(ET.SubElement(features, "tcg"), "tb-cache", "128", unit="MiB")
    cpu = spec.cpu
    if cpu == "auto":
        if spec.accelerator != "kvm":
            return
        cpu = "host-passthrough"
    if cpu in _HOST_CPUS:
        ET.SubElement(domain, "cpu", mode=cpu, check="none")
    else:
        _text(
            ET.SubElement(domain, "cpu", mode="custom", match="exact", check="none"), "model", cpu
        )


def _disks(devices: ET.Element, spec: DomainSpec) -> None:
    serials = ("distrib-root", SCRATCH_SERIAL)
    for disk, letter, serial in zip(spec.disks, "ab", serials, strict=False):
        _disk(devices, disk, target=letter, serial=serial, xen=spec.xen)
    discs = [spec.context_iso, *([spec.opennebula_iso] if spec.opennebula_iso else [])]
    bus = _disc_bus(spec)
    for iso, letter in zip(discs, "cd", strict=False):
        _cdrom(devices, iso, bus=bus, letter=letter)
    if spec.xen:
        return
    ET.SubElement(devices, "controller", type="usb", model="none")
    buses = {disk.bus for disk in spec.disks}
    if "scsi" in buses:
        ET.SubElement(devices, "controller", type="scsi", index="0", model="lsilogic")
    elif bus == "scsi" or "virtio-scsi" in buses:
        ET.SubElement(devices, "controller", type="scsi", index="0", model="virtio-scsi")


def _disc_bus(spec: DomainSpec) -> str:
    if spec.accelerator == "xen-pv":
        return "xen"
    if spec.machine == "pc":
        # Every kernel that boots on machine "pc" finds it; SATA needs ahci, which cloud kernels
        # leave out.
        return "ide"
    # q35 has no IDE: an image with virtio has virtio-scsi, another one has SATA.
    return "scsi" if spec.root.bus in {"virtio", "virtio-scsi"} else "sata"


def _disk(devices: ET.Element, disk: Disk, *, target: str, serial: str, xen: bool) -> None:
    element = ET.SubElement(devices, "disk", type="block" if disk.block else "file", device="disk")
    driver = {"name": "qemu", "type": disk.format, **disk.driver_modes}
    if not xen:
        # Stop, not report: a full snapshot must end the launch, not become the job's I/O error.
        driver["error_policy"] = "stop"
    ET.SubElement(element, "driver", driver)
    source = ET.SubElement(element, "source", {"dev" if disk.block else "file": str(disk.path)})
    if not disk.relabel:
        ET.SubElement(source, "seclabel", model="dac", relabel="no")
    bus: str = "scsi" if disk.bus == "virtio-scsi" else disk.bus
    prefix = _PREFIX[disk.bus]
    if xen and disk.bus == "virtio":
        prefix, bus = "xvd", "xen"
    ET.SubElement(element, "target", dev=prefix + target, bus=bus)
    _text(element, "serial", serial)


def _cdrom(devices: ET.Element, iso: PurePosixPath, *, bus: str, letter: str) -> None:
    element = ET.SubElement(devices, "disk", type="file", device="cdrom")
    ET.SubElement(element, "driver", name="qemu", type="raw")
    ET.SubElement(element, "source", file=str(iso))
    prefix = {"ide": "hd", "xen": "xvd"}.get(bus, "sd")
    ET.SubElement(element, "target", dev=prefix + letter, bus=bus)
    ET.SubElement(element, "readonly")


def _virtio_ports(devices: ET.Element, spec: DomainSpec) -> None:
    ET.SubElement(devices, "controller", type="virtio-serial", index="0")
    _serial(devices, spec.console_log, port=0)
    for name, path in zip(CHANNELS, spec.channels, strict=True):
        channel = ET.SubElement(devices, "channel", type="file")
        ET.SubElement(channel, "source", path=str(path), append="on")
        ET.SubElement(channel, "target", type="virtio", name=name)
    # libvirt chooses the socket's path: an address is short, ours may be long.
    control = ET.SubElement(devices, "channel", type="unix")
    ET.SubElement(control, "source", mode="bind")
    ET.SubElement(control, "target", type="virtio", name=CONTROL)


def _xen_ports(devices: ET.Element, spec: DomainSpec) -> None:
    """Xen has no virtio-serial: the ports are further serial lines (ttyS1...) or consoles
    (hvc1...), in the same order."""
    for port, path in enumerate((spec.console_log, *spec.channels)):
        if spec.accelerator == "xen-hvm":
            if port < _SERIAL_LINES:
                _serial(devices, path, port=port)
        else:
            console = ET.SubElement(devices, "console", type="file")
            ET.SubElement(console, "source", path=str(path), append="on")
            ET.SubElement(console, "target", type="xen", port=str(port))


def _serial(devices: ET.Element, path: PurePosixPath, *, port: int) -> None:
    serial = ET.SubElement(devices, "serial", type="file")
    ET.SubElement(serial, "source", path=str(path), append="on")
    ET.SubElement(serial, "target", port=str(port))


def _share(devices: ET.Element, path: PurePosixPath, tag: str) -> None:
    element = ET.SubElement(devices, "filesystem", type="mount", accessmode="squash")
    ET.SubElement(element, "source", dir=str(path))
    ET.SubElement(element, "target", dir=tag)


def _nic(devices: ET.Element, nic: Nic, *, xen: bool) -> None:
    interface = ET.SubElement(devices, "interface", type=nic.kind)
    if nic.mac:
        ET.SubElement(interface, "mac", address=nic.mac)
    ET.SubElement(interface, "source", {nic.kind: nic.source})
    # Xen's own card, without a model, is what virtio is elsewhere.
    if not (xen and nic.model == "virtio"):
        ET.SubElement(interface, "model", type=nic.model)
    if nic.kind == "bridge":
        # The farm's own network: no other guest's addresses may be borrowed there.
        ET.SubElement(interface, "filterref", filter="clean-traffic")
