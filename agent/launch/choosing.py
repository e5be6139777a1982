"""What a job gets of what it asks for: hardware by image, network, memory, site part. Pure."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path

from agent.launch.domain import Bus, Nic, NicModel
from agent.launch.spec import Hardware
from agent.settings import HardwareSettings, LaunchSettings
from distrib.errors import ConfigInvalid, Forbidden, LaunchFailed
from distrib.trust.sitelist import SiteImage

MIB = 1 << 20


@dataclass(frozen=True)
class Job:
    """What a caller wants to run. ``wall_limit_s`` bounds it below the site's own limit;
    ``inputs``: what it brings (``spec.INPUTS``); ``share``: a directory to share instead;
    ``context``: a script of its own that makes the guest ready for it."""

    script: bytes
    args: tuple[str, ...] = ()
    environment: Mapping[str, str] = field(default_factory=dict)
    memory_mib: int | None = None
    vcpus: int | None = None
    wall_limit_s: float | None = None
    network: str | None = None
    bus: Bus | None = None
    nic: NicModel | None = None
    inputs: tuple[str, ...] = ()
    share: Path | None = None
    name: str = ""
    context: bytes = b""


@dataclass(frozen=True)
class Machine:
    """A guest's machine."""

    hardware: Hardware
    nic: Nic | None
    opennebula: bool
    memory_mib: int
    vcpus: int
    wall_s: float


def machine_for(job: Job, image: SiteImage, settings: LaunchSettings) -> Machine:
    """Raises Forbidden for more than the site lets a job have."""
    wanted = _hardware(image, settings)
    memory_mib, vcpus = job.memory_mib or settings.memory_mib, job.vcpus or settings.vcpus
    for what, asked, most in (
        ("memory_mib", memory_mib, settings.max_memory_mib),
        ("vcpus", vcpus, settings.max_vcpus),
    ):
        if asked > most:
            raise Forbidden(
                f"{asked} is more than a guest may have",
                hint=f"at most {most} (setting launch.max_{what})",
            )
    return Machine(
        hardware=Hardware(
            machine=wanted.machine or "pc",
            cpu=wanted.cpu or "auto",
            bus=job.bus or wanted.bus or "virtio",
            cache=wanted.cache or "auto",
            io=wanted.io or "auto",
        ),
        nic=_nic(job, image, settings, model=job.nic or wanted.nic or "virtio"),
        opennebula=bool(wanted.opennebula),
        memory_mib=memory_mib,
        vcpus=vcpus,
        wall_s=min(job.wall_limit_s or settings.wall_limit_s, settings.wall_limit_s),
    )


def require_room(machine: Machine, node_mib: int) -> None:
    """Raises LaunchFailed for a guest larger than its node: QEMU would begin, and be killed when
    the guest uses what it was promised."""
    if machine.memory_mib > node_mib:
        raise LaunchFailed(
            f"a guest of {machine.memory_mib} MiB is larger than this node's memory"
            f" ({node_mib} MiB)",
            hint="ask for less, or for a node with more",
        )


def gets_site_part(image: SiteImage) -> bool:
    """The site's scripts are for images that are approved for all: another one is a user's own,
    and its root reads the disc."""
    return image.is_for_all


def _hardware(image: SiteImage, settings: LaunchSettings) -> HardwareSettings:
    """The image's own, by its UUID before its aliases, over that of all."""
    chosen = settings.hardware.model_dump()
    for name in (*image.aliases, image.identifier):
        if (own := settings.images.get(name)) is not None:
            chosen |= own.model_dump(exclude_none=True)
    return HardwareSettings.model_validate(chosen)


def _nic(job: Job, image: SiteImage, settings: LaunchSettings, *, model: NicModel) -> Nic | None:
    network = job.network or settings.default_network
    if job.network is not None and network not in (*settings.networks, settings.default_network):
        raise Forbidden(
            f"network {network} is not for jobs here",
            hint=f"there are {', '.join(settings.networks)} (setting launch.networks)",
        )
    if network == "public" and not image.is_for_all:
        if job.network is not None:
            raise Forbidden(
                f"image {image.ref} is not approved for all: no public network for it",
                hint="ask for network private",
                image=image.ref,
            )
        network = "private"
    if network == "none":
        return None
    if network == "private":
        return Nic("network", settings.private_network, model)
    if network == "public":
        return Nic("bridge", settings.public_bridge, model)
    raise ConfigInvalid(f"no network is called {network}", hint="none, private or public")
