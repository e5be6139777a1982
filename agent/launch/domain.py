"""The libvirt domain of one launch, as a value. Pure; ``domain_xml`` writes it.

A guest is thrown away after its job: every way in which it can stop ends the domain.
"""

from __future__ import annotations

import re
import uuid
from dataclasses import dataclass
from pathlib import PurePosixPath
from typing import Final, Literal
from xml.etree import ElementTree as ET

from distrib.errors import ConfigInvalid

NAMESPACE = "urn:distrib:launch:v1"
"""XML namespace of the metadata by which an agent finds its own domains again."""

CHANNELS = ("distrib.stdout", "distrib.stderr", "distrib.result", "distrib.files")
"""Virtio-serial ports from the guest, by the names that it looks for."""

CONTROL = "distrib.control"
"""The virtio-serial port to the guest: the names of signals for its job, one a line."""

SCRATCH_SERIAL = "distrib-scratch"
"""Serial number of the scratch disk: the only blank disk that a guest may format."""

_UUIDS = uuid.UUID("6f0f0c39-4a0c-5a0b-9c0e-3c1d6d1f2b57")
_ID = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,62}")
_CPU = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,62}")

Accelerator = Literal["kvm", "qemu"]
Virtualisation = Literal["kvm", "qemu", "xen-pv", "xen-hvm"]
Machine = Literal["pc", "q35"]
Bus = Literal["virtio", "virtio-scsi", "scsi", "ide", "sata"]
CacheMode = Literal["auto", "none", "writeback", "writethrough", "directsync", "unsafe"]
IoMode = Literal["auto", "native", "threads", "io_uring"]
NicModel = Literal["virtio", "e1000"]

_BYPASS: Final = frozenset({"none", "directsync"})
"""Cache modes with O_DIRECT, which native AIO needs."""


@dataclass(frozen=True)
class Disk:
    """A disk of the guest. ``path`` is absolute; ``block`` says that it is a block device.

    ``bus``: ``virtio`` and ``virtio-scsi`` need drivers in the image; ``scsi`` (an LSI adapter),
    ``ide`` and ``sata`` are emulated. ``cache`` and ``io``: ``auto`` goes past the page cache for
    a device, and through it, without flushes, for a file. ``relabel`` lets libvirt give the file
    to QEMU's account, and with it the sealed base that it stands on, which stays given: so it is
    off unless asked for."""

    path: PurePosixPath
    format: Literal["raw", "qcow2"]
    block: bool = False
    bus: Bus = "virtio"
    cache: CacheMode = "auto"
    io: IoMode = "auto"
    relabel: bool = False

    def __post_init__(self) -> None:
        if self.io == "native" and self.cache not in _BYPASS | {"auto"}:
            raise ConfigInvalid(
                f"disk I/O mode native needs cache mode none or directsync, not {self.cache}",
                path=str(self.path),
            )

    @property
    def driver_modes(self) -> dict[str, str]:
        """``cache`` and ``io`` as libvirt takes them."""
        cache = self.cache
        if cache == "auto":
            # A file is an instance that dies with its lease, so the guest's flushes protect
            # nothing, and the page cache shares the base among the guests.
            cache = "none" if self.block or self.io == "native" else "unsafe"
        io = self.io
        if io == "auto" and self.block and cache in _BYPASS:
            io = "native"
        return {"cache": cache} | ({} if io == "auto" else {"io": io})


@dataclass(frozen=True)
class Nic:
    """A network card: on a libvirt network (private NAT) or on a bridge of the host (public).

    On a bridge libvirt's filter ``clean-traffic`` lets out only what bears the card's own MAC and
    IP addresses."""

    kind: Literal["network", "bridge"]
    source: str
    model: NicModel = "virtio"
    mac: str | None = None


@dataclass(frozen=True)
class Share:
    """A directory of the host that the guest mounts over 9p by its ``tag``. QEMU must run as
    whoever owns it: what the guest's root may do there is what QEMU may. ``identity``: device and
    inode of what was looked at."""

    path: PurePosixPath
    tag: str = "distrib-work"
    identity: tuple[int, int] | None = None


@dataclass(frozen=True)
class DomainSpec:
    """All that a domain is made from. Channel files and ``console_log`` must exist: created by
    libvirt they would belong to whom libvirt likes.

    ``cpu``: ``auto`` (the host's with KVM, QEMU's own otherwise), ``host-passthrough``,
    ``host-model``, or the name of a model. ``run_as``: (uid, gid) of the QEMU process.
    ``opennebula_iso``: a second disc, for guests that look for the label CONTEXT."""

    agent: str
    lease: str
    accelerator: Virtualisation
    memory_mib: int
    vcpus: int
    root: Disk
    context_iso: PurePosixPath
    console_log: PurePosixPath
    channels: tuple[PurePosixPath, ...]
    machine: Machine = "pc"
    cpu: str = "auto"
    scratch: Disk | None = None
    nic: Nic | None = None
    share: Share | None = None
    opennebula_iso: PurePosixPath | None = None
    run_as: tuple[int, int] | None = None
    unlabelled: bool = False

    def __post_init__(self) -> None:
        for what, text in (("agent", self.agent), ("lease", self.lease)):
            if not _ID.fullmatch(text):
                raise ConfigInvalid(
                    f"not usable as the name of an {what} in a domain: {text!r}",
                    hint="letters, digits, dot, dash and underscore, at most 63",
                )
        if not _CPU.fullmatch(self.cpu):
            raise ConfigInvalid(f"not the name of a CPU model: {self.cpu!r}")
        if not 16 <= self.memory_mib <= 4 << 20:
            raise ConfigInvalid(f"memory of a guest: 16 MiB to 4 TiB, not {self.memory_mib} MiB")
        if not 1 <= self.vcpus <= 512:
            raise ConfigInvalid(f"CPUs of a guest: 1 to 512, not {self.vcpus}")
        if len(self.channels) != len(CHANNELS):
            raise ConfigInvalid(f"a guest has the channels {', '.join(CHANNELS)}")
        if self.xen and self.share is not None:
            raise ConfigInvalid(
                "Xen has no 9p: no directory is shared with a guest",
                hint="without --share it is copied",
            )
        self._check_buses()
        self._check_paths()

    def _check_buses(self) -> None:
        for disk in self.disks:
            if disk.bus == "ide" and self.machine == "q35":
                raise ConfigInvalid(
                    "machine q35 has no IDE", hint="bus sata, or machine pc", path=str(disk.path)
                )
            if self.xen and disk.bus not in {"virtio", "ide"}:
                raise ConfigInvalid(f"Xen has no bus {disk.bus}", path=str(disk.path))

    def _check_paths(self) -> None:
        paths = [disk.path for disk in self.disks]
        paths += [self.context_iso, self.console_log, *self.channels]
        paths += [self.share.path] if self.share else []
        paths += [self.opennebula_iso] if self.opennebula_iso else []
        for path in paths:
            # libvirt takes a relative path as relative to the daemon's own directory.
            if not path.is_absolute():
                raise ConfigInvalid(f"not an absolute path: {path}", path=str(path))

    @property
    def disks(self) -> tuple[Disk, ...]:
        """Root, and scratch if there is one."""
        return (self.root,) if self.scratch is None else (self.root, self.scratch)

    @property
    def xen(self) -> bool:
        """Whether it is a domain of Xen's."""
        return self.accelerator in {"xen-pv", "xen-hvm"}

    @property
    def name(self) -> str:
        """The domain's name: unique among the agents that share one libvirt."""
        return domain_name(self.agent, self.lease)

    @property
    def uuid(self) -> str:
        """The domain's UUID: follows from agent and lease, so it is known before it exists."""
        return domain_uuid(self.agent, self.lease)


def domain_name(agent: str, lease: str) -> str:
    """The name of the domain of a lease."""
    return f"distrib-{agent}-{lease}"


def domain_uuid(agent: str, lease: str) -> str:
    """The UUID of the domain of a lease."""
    return str(uuid.uuid5(_UUIDS, f"{agent}/{lease}"))


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
