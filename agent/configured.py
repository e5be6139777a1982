"""Stores and swarm sessions, as the settings name them."""

from __future__ import annotations

from functools import partial

from agent.cache.device import DeviceStore
from agent.cache.file import FileStore
from agent.cache.lvm import LvmStore
from agent.cache.store import Store
from agent.pull.further import SourceMaker
from agent.pull.over_ssh import TsunamiMaker
from agent.pull.ranges import HttpMaker, PathMaker
from agent.pull.stripes import second_of
from agent.pull.tsunami import SshAccess
from agent.settings import AgentSettings
from distrib.errors import ConfigInvalid
from distrib.swarm.profile import Link, lan_profile
from distrib.swarm.session import Backend, SwarmSession
from distrib.tsunami.keys import Identity


def sessions_of(settings: AgentSettings) -> dict[str, SwarmSession]:
    """Two sessions, one for each stripe, for each kind of volume that the settings name, not
    running yet."""
    swarm = settings.swarm
    kinds: list[tuple[Backend, int, int]] = [("pread", swarm.port, swarm.stripe_port)]
    if settings.cache.devices or settings.cache.lvm.vg:
        kinds.append(("posix", swarm.device_port, swarm.device_stripe_port))
    return {
        key: SwarmSession(
            lan_profile(address=swarm.address, port=port, link=Link(swarm.link_bps)),
            backend=backend,
        )
        for backend, first, second in kinds
        for key, port in ((backend, first), (second_of(backend), second))
    }


def stripe_ports_of(settings: AgentSettings) -> tuple[int, int]:
    """Where images of the default store are served, by stripe."""
    swarm = settings.swarm
    if settings.cache.store == "file":
        return swarm.port, swarm.stripe_port
    return swarm.device_port, swarm.device_stripe_port


def makers_of(settings: AgentSettings) -> list[SourceMaker]:
    """The sources beside the swarm. Raises NotFound or OperatorError where a key is of no use."""
    found: list[SourceMaker] = []
    tsunami, sources = settings.tsunami, settings.sources
    if tsunami.identity is not None:
        identity = partial(Identity.read, tsunami.identity)
        identity()
        found.append(TsunamiMaker(SshAccess(identity, tsunami.peer_user, tsunami.authorities)))
    if sources.paths:
        found.append(PathMaker(sources.paths))
    if sources.web_seeds:
        bus = settings.bus
        found.append(
            HttpMaker(
                ca=bus.ca,
                cert=bus.cert,
                key=bus.key,
                ca_directory=settings.trust.ca_directory,
                seeders=sources.seeders,
            )
        )
    return found


def stores_of(settings: AgentSettings) -> list[Store]:
    """The stores, the one for new volumes first. Raises ConfigInvalid where that one has no room
    named."""
    cache = settings.cache
    stores: list[Store] = [FileStore(cache.directory, cache.capacity_bytes)]
    if cache.devices:
        stores.append(
            DeviceStore(
                cache.devices,
                settings.state_dir / "devices",
                instances_dir=cache.directory / "device-instances",
                instances_capacity_bytes=cache.capacity_bytes,
            )
        )
    if cache.lvm.vg:
        stores.append(
            LvmStore(
                cache.lvm.vg,
                settings.state_dir / "lvm",
                pvs=cache.lvm.pvs,
                capacity_bytes=cache.lvm.capacity_bytes,
                wipe=cache.lvm.wipe,
                tool_timeout_s=cache.lvm.timeout_s,
            )
        )
    if cache.store not in {store.name for store in stores}:
        needed = "cache.lvm.vg" if cache.store == "lvm" else "cache.devices"
        raise ConfigInvalid(
            f"cache.store = {cache.store!r}, and {needed} is not set",
            hint=f"set {needed}",
            key=needed,
        )
    stores.sort(key=lambda store: store.name != cache.store)
    return stores
