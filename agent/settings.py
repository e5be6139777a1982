"""The settings of the agent: file, environment (``DISTRIB_AGENT_...``), flags."""

from __future__ import annotations

from pathlib import Path
from typing import ClassVar, Literal, Self

from pydantic import Field, model_validator

from distrib.bus.mqtt import BusSettings
from distrib.config import AbsolutePath, Section, Settings

GIB = 1024**3
DEFAULT_FILE = Path("/etc/distrib/agent.toml")


class LvmSettings(Section):
    """Store "lvm"."""

    vg: str | None = Field(None, description="volume group that volumes are made in")
    pvs: tuple[AbsolutePath, ...] = Field(
        (), description="physical volumes that may be used; none named: all of the group"
    )
    capacity_bytes: int = Field(
        0, ge=0, description="quota on own bytes in the group; 0: all that it has"
    )
    wipe: Literal["discard", "zero", "none"] = Field(
        "discard",
        description="what happens to a job's bytes when its lease ends; a scratch disk is zeroed"
        " before it is given in any case",
    )
    extend_at_percent: float = Field(
        70.0, gt=0, le=100, description="a snapshot that is so full is extended by half"
    )
    extend_limit_bytes: int = Field(
        32 * GIB, ge=0, description="what a snapshot is extended to at most; 0: never extended"
    )
    watch_interval_s: float = Field(10.0, gt=0, description="how often snapshots are looked at")
    timeout_s: float = Field(60.0, gt=0, description="limit of each call of LVM's tools")


class CacheSettings(Section):
    """The block cache."""

    store: Literal["file", "device", "lvm"] = Field(
        "file", description='where new volumes go: "file", "device" or "lvm"'
    )
    directory: AbsolutePath = Field(
        Path("/var/lib/distrib/cache"), description="volumes and instances of the file store"
    )
    capacity_bytes: int = Field(
        100 * GIB, ge=0, description="quota on own bytes of the file store, volumes and instances"
    )
    low_watermark: float = Field(
        0.8, gt=0, le=1, description="share of the quota that an eviction goes down to"
    )
    high_watermark: float = Field(
        0.95, gt=0, le=1, description="share of the quota above which is evicted unasked"
    )
    devices: tuple[AbsolutePath, ...] = Field(
        (), description="block devices of the device store, one volume each"
    )
    cow_bytes: int = Field(
        2 * GIB, ge=0, description="room that a job's instance may fill, unless it asks for other"
    )
    expose: Literal["file", "loop"] = Field(
        "file",
        description='instances of stores with files: "file", or "loop" for a block device with'
        " direct I/O, unless a job asks for the other",
    )
    max_cow_bytes: int = Field(
        16 * GIB,
        ge=0,
        description="most room that an ordinary user may ask for an instance; a guest of the agent"
        " that has written more is ended",
    )
    max_scratch_bytes: int = Field(
        64 * GIB, ge=0, description="most scratch room that an ordinary user may ask for"
    )
    disk_bps: int = Field(
        200_000_000,
        gt=0,
        description="rate at which the cache's disk copies, bytes per second, until copies were"
        " timed: a new version is copied from an older one where that beats fetching it",
    )
    max_lease_s: float = Field(
        7 * 86400.0, gt=0, description="longest time that an ordinary user may lease for"
    )
    lvm: LvmSettings = LvmSettings()


class ScrubSettings(Section):
    """Reading sealed images again in the background."""

    every_days: float = Field(
        14.0, ge=0, description="each image is read again within so many days; 0: never"
    )
    rate_bps: int = Field(8_000_000, gt=0, description="bytes per second that are read at most")


class SwarmSettings(Section):
    """BitTorrent."""

    address: str = Field("0.0.0.0", description="address to listen on and connect from")  # noqa: S104
    port: int = Field(6881, ge=1, le=65535, description="TCP port of the file store's session")
    device_port: int = Field(6882, ge=1, le=65535, description="the same for block devices")
    stripe_port: int = Field(
        6883, ge=1, le=65535, description="TCP port for every second piece, where trees are planned"
    )
    device_stripe_port: int = Field(6884, ge=1, le=65535, description="the same for block devices")
    link_bps: int = Field(
        125_000_000, gt=0, description="rate of the node's link, bytes per second: sizes buffers"
    )
    interface: str = Field(
        "", description="interface that carries the swarm's traffic; empty: found by the address"
    )
    download_bps: int = Field(0, ge=0, description="cap of each pull, bytes per second; 0: none")
    upload_bps: int = Field(0, ge=0, description="cap of what each image is served with; 0: none")


class TsunamiSettings(Section):
    """Pieces over SSH."""

    user: str | None = Field(
        None,
        description="account that peers log in to, whose keys may run `serve-pieces` only;"
        " it may ask the agent for pieces",
    )
    ssh_port: int = Field(
        0, ge=0, le=65535, description="where this node's sshd serves pieces; 0: it does not"
    )
    identity: AbsolutePath | None = Field(
        None, description="private key to log in to peers with; none: pieces never come over SSH"
    )
    peer_user: str = Field("distrib", description="account at the peers")
    authorities: tuple[str, ...] = Field(
        (), description="keys that sign host keys of the farm, where the site has an SSH authority"
    )


class SourcesSettings(Section):
    """Further ways to an image, beside the swarm and SSH."""

    paths: tuple[AbsolutePath, ...] = Field(
        (),
        description="mounted directories (GPFS, NFS) with images as the head's store has them:"
        " `<infohash>/image.raw` and `image.torrent`",
    )
    web_seeds: bool = Field(True, description="whether seeders are asked over HTTPS, too")
    seeders: tuple[str, ...] = Field(
        ("seeder",), description="CNs of their certificates: nobody else is taken for a seeder"
    )
    stalled_s: float = Field(
        5.0,
        ge=0.5,
        le=25.0,
        description="with transport `auto`: a swarm that brings nothing for so long is helped, the"
        " controller is asked for further leave as often, and who helps is kept for twice as long",
    )


class TrustSettings(Section):
    """What the agent believes."""

    ca_directory: AbsolutePath = Field(
        Path("/etc/distrib/trust"), description="the site's CA (HASH.0, *.pem) and CRLs (HASH.r0)"
    )
    max_age_s: float = Field(
        72 * 3600, gt=0, description="age of the site list past which no new lease is given"
    )
    alarm_age_s: float = Field(6 * 3600, gt=0, description="age that is reported as an alarm")
    clock_skew_s: int = Field(300, ge=0, le=3600, description="allowed difference of clocks")


class HardwareSettings(Section):
    """The machine of guests of one image, where it differs from the others'."""

    machine: Literal["pc", "q35"] | None = Field(None, description="machine type")
    cpu: str | None = Field(
        None,
        pattern=r"^[A-Za-z0-9][A-Za-z0-9._-]{0,62}$",
        description='"auto", "host-passthrough", "host-model" or the name of a model',
    )
    bus: Literal["virtio", "virtio-scsi", "scsi", "ide", "sata"] | None = Field(
        None, description='disks: "scsi", "ide" and "sata" are emulated, for images without virtio'
    )
    cache: Literal["auto", "none", "writeback", "writethrough", "directsync", "unsafe"] | None = (
        Field(None, description="cache mode of the disks")
    )
    io: Literal["auto", "native", "threads", "io_uring"] | None = Field(
        None, description="I/O mode of the disks"
    )
    nic: Literal["virtio", "e1000"] | None = Field(None, description="network card")
    opennebula: bool | None = Field(
        None, description="a second context disc, labelled CONTEXT, for OpenNebula's guests"
    )


class LaunchSettings(Section):
    """Virtual machines."""

    libvirt_uri: str = Field("qemu:///system", description="libvirt's connection URI")
    libvirt_limit_s: float = Field(60.0, gt=0, description="limit of each call of libvirt")
    hypervisor: Literal["auto", "kvm", "qemu", "xen-pv", "xen-hvm"] = Field(
        "auto",
        description='"auto" takes KVM only where a guest really starts with it; for Xen'
        ' (paravirtual, or with hardware virtualisation) `libvirt_uri` is "xen:///system"',
    )
    qemu_user: str | None = Field(
        None,
        description="account that libvirt runs QEMU as, where that is not root:"
        " a job's disks are given to it",
    )
    memory_mib: int = Field(1024, ge=64, description="guest memory unless the job asks for other")
    max_memory_mib: int = Field(1 << 22, ge=64, description="most memory that a job may ask for")
    vcpus: int = Field(1, ge=1, le=256, description="guest CPUs unless the job asks for other")
    max_vcpus: int = Field(256, ge=1, le=256, description="most CPUs that a job may ask for")
    only_in_jobs: bool = Field(
        False,
        description="guests run only in leases that a batch system's prolog took for its job",
    )
    boot_limit_s: float = Field(300.0, gt=0, description="a guest silent for so long is ended")
    wall_limit_s: float = Field(
        7 * 86400.0, gt=0, description="a job that runs longer is ended, unless it asks for less"
    )
    terminate_s: float = Field(
        10.0, ge=0, description="time that a job has from SIGTERM to the end of its guest"
    )
    reconnect_s: float = Field(
        120.0,
        gt=0,
        description="how long a guest runs on without the command that launched it, when the agent"
        " was restarted",
    )
    files_limit_bytes: int = Field(
        GIB,
        ge=0,
        lt=4 * GIB,
        description="largest input of a job, and largest directory that comes back",
    )
    console_keep_days: float = Field(
        14.0, ge=0, description="how long console logs of failed launches are kept; 0: not at all"
    )
    site_context: AbsolutePath | None = Field(
        None, description="directory with the site's part of the context disc"
    )
    default_network: Literal["none", "private", "public"] = Field(
        "none", description="network of a guest unless the job asks for another"
    )
    networks: tuple[Literal["none", "private", "public"], ...] = Field(
        ("none", "private"), description="networks that a job may ask for"
    )
    private_network: str = Field("default", description='"private": libvirt\'s network with NAT')
    public_bridge: str = Field("br0", description='"public": the host\'s bridge')
    share_roots: tuple[AbsolutePath, ...] = Field(
        (),
        description="directories below which a job's own directory may be shared with its guest"
        " (9p, QEMU runs as the job's user); none: it is copied",
    )
    hardware: HardwareSettings = HardwareSettings()
    images: dict[str, HardwareSettings] = Field(
        {}, description="hardware by image, UUID or alias: what differs from `hardware`"
    )

    @model_validator(mode="after")
    def _one_hypervisor(self) -> Self:
        if self.hypervisor.startswith("xen-") != self.libvirt_uri.startswith("xen"):
            raise ValueError(
                f"hypervisor {self.hypervisor} is none of libvirt's at {self.libvirt_uri}:"
                " xen-pv and xen-hvm are those of xen:///system"
            )
        return self


class AgentSettings(Settings):
    """Everything the agent can be told."""

    ENV_PREFIX: ClassVar[str] = "DISTRIB_AGENT"

    node: str = Field(
        pattern=r"^[a-z0-9][a-z0-9.-]{0,62}$",
        description="the node's name: the CN of its certificate",
    )
    state_dir: AbsolutePath = Field(
        Path("/var/lib/distrib/agent"), description="the agent's own state"
    )
    socket: AbsolutePath = Field(Path("/run/distrib/agent.sock"), description="the local socket")
    admin_groups: tuple[str, ...] = Field(
        (), description="groups whose members may do everything on the socket"
    )
    schedulers: tuple[str, ...] = Field(
        ("sgeadmin", "slurm", "condor", "lsfadmin"),
        description="accounts of batch systems, which may ask whether an image is approved for any"
        " user, and ask for it in that user's name",
    )
    leases_per_user: int = Field(64, ge=1, description="leases that one user may hold at a time")
    log_level: Literal["debug", "info", "warning", "error"] = Field(
        "info", description="least severe log line that is written"
    )
    bus: BusSettings = BusSettings()
    cache: CacheSettings = CacheSettings()
    scrub: ScrubSettings = ScrubSettings()
    swarm: SwarmSettings = SwarmSettings()
    tsunami: TsunamiSettings = TsunamiSettings()
    sources: SourcesSettings = SourcesSettings()
    trust: TrustSettings = TrustSettings()
    launch: LaunchSettings = LaunchSettings()
