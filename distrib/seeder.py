"""The seeder: serves the images of its store that the site list approves, and tells the bus.

The torrents lie beside the images (``images/<infohash>/``, docs/formats/head-state.md). Their info
dictionaries go out retained; nodes hold them against the site list, so a seeder is not trusted.
"""

from __future__ import annotations

import asyncio
from collections.abc import Collection
from datetime import UTC, datetime
from pathlib import Path
from typing import ClassVar, Literal

import structlog
from pydantic import Field

from distrib.bus.messages import FarmMap, SeederPresence
from distrib.bus.mqtt import Bus, BusSettings, Publication
from distrib.bus.schema import decode, encode
from distrib.bus.topics import Topics
from distrib.config import Section, Settings
from distrib.errors import (
    ConfigInvalid,
    DistribError,
    MessageInvalid,
    StorageFailed,
    TorrentMismatch,
)
from distrib.swarm import IMAGE_FILE, TORRENT_FILE
from distrib.swarm.classes import Place, Zones, see
from distrib.swarm.pieces import piece_hashes
from distrib.swarm.profile import Link, lan_profile
from distrib.swarm.session import SwarmSession
from distrib.swarm.torrent import check_info, info_of
from distrib.swarm.transfer import Transfer
from distrib.trust.directory import load_trust_directory
from distrib.trust.envelope import open_envelope
from distrib.trust.sitelist import SiteImage, SiteList, verify_site_list
from distrib.tsunami.store import tell_served
from distrib.webseed import WebSeedSettings, serving_web

log = structlog.get_logger(__name__)

TEN_GIGABIT_BPS = 1_250_000_000

STORE_POLL_S = 1.0
"""How often the store is looked at for images that are on the site list and not here yet."""


class SeederSwarmSettings(Section):
    """BitTorrent."""

    address: str = Field("0.0.0.0", description="address to listen on and connect from")  # noqa: S104
    announce: str = Field("", description="address that nodes reach the seeder at, if another")
    port: int = Field(6881, ge=1, le=65535, description="TCP port")
    link_bps: int = Field(
        0,
        ge=0,
        description="rate of the link, bytes per second: the relay plan begins as many chains here"
        " as it carries, and buffers are sized by it; 0, not known: one chain, and buffers for"
        " 10 Gbit/s",
    )
    connections: int = Field(2000, gt=0, description="most peers at a time")
    upload_bps: int = Field(0, ge=0, description="cap per image, bytes per second; 0: none")


class SeederSshSettings(Section):
    """Pieces over SSH: an sshd on this machine runs `distrib serve-pieces` for nodes' keys."""

    port: int = Field(0, ge=0, le=65535, description="port of that sshd; 0: there is none")
    host_keys: tuple[Path, ...] = Field(
        (Path("/etc/ssh/ssh_host_ed25519_key.pub"),), description="its host keys, .pub files"
    )


class SeederSettings(Settings):
    """Everything the seeder can be told."""

    ENV_PREFIX: ClassVar[str] = "DISTRIB_SEEDER"

    name: str = Field(
        "seeder", pattern=r"^[a-z0-9][a-z0-9.-]{0,62}$", description="the CN of its certificate"
    )
    images_dir: Path = Field(Path("/var/lib/distrib/images"), description="the head's image store")
    ca_directory: Path = Field(
        Path("/etc/distrib/trust"), description="the site's CA (HASH.0, *.pem) and CRLs (HASH.r0)"
    )
    log_level: Literal["debug", "info", "warning", "error"] = Field(
        "info", description="least severe log line that is written"
    )
    bus: BusSettings = BusSettings()
    swarm: SeederSwarmSettings = SeederSwarmSettings()
    ssh: SeederSshSettings = SeederSshSettings()
    web: WebSeedSettings = WebSeedSettings()


class Seeder:
    """Seeds what the newest accepted site list names and the store holds."""

    def __init__(self, settings: SeederSettings, session: SwarmSession) -> None:
        self._settings = settings
        self._session = session
        self._topics = Topics(settings.bus.prefix)
        self._site_list: SiteList | None = None
        self._seeding: dict[str, Transfer] = {}
        self._infos: dict[str, bytes] = {}
        self._complaints: dict[str, str] = {}
        self._farm_waiting = b""
        self._farm_refused = b""
        self._farm_generation = 0
        self._zones = Zones()
        self._wake = asyncio.Event()
        self._bus = Bus(
            settings.bus,
            client_id=settings.name,
            will=Publication(
                self._topics.seeder(settings.name),
                encode(SeederPresence(seeder=settings.name, online=False)),
                qos=1,
                retain=True,
            ),
            on_connect=self._publish_all,
        )
        self._port = settings.swarm.port
        self._host_keys = tuple(map(_host_key, settings.ssh.host_keys)) if settings.ssh.port else ()

    async def run(self, stop: asyncio.Event, port: int) -> None:
        """Seed until ``stop``."""
        self._port = port
        self._bus.subscribe(self._topics.site_list, self._on_site_list)
        self._bus.subscribe(self._topics.farm, self._on_farm)
        async with self._bus.running():
            stopping = asyncio.create_task(stop.wait(), name="seeder stop")
            try:
                while not stopping.done():
                    await self._follow()
                    await asyncio.to_thread(self._tell_served)
                    waking = asyncio.create_task(self._wake.wait(), name="seeder wake")
                    await asyncio.wait(
                        {stopping, waking},
                        timeout=STORE_POLL_S,
                        return_when=asyncio.FIRST_COMPLETED,
                    )
                    waking.cancel()
                    self._wake.clear()
            finally:
                stopping.cancel()
                self._publish_presence(online=False)

    def _on_site_list(self, topic: str, message: bytes) -> None:
        try:
            verdict = verify_site_list(
                message,
                # Read each time: fetch-crl replaces the CRLs under us.
                trust=load_trust_directory(self._settings.ca_directory),
                now=datetime.now(UTC),
                last_version=self._site_list.version if self._site_list else None,
            )
            self._site_list = verdict.require()
            self._farm_refused = b""
        except DistribError as error:
            log.warning("refused", topic=topic, code=error.code, why=error.message)
            return
        self._wake.set()

    @property
    def serves(self) -> Collection[str]:
        """The info-hashes of what is served."""
        return self._seeding.keys()

    def admits(self, address: str) -> bool:
        """Whether somebody at this address is served: by the farm's map, and nobody without."""
        return self._zones.admits(address)

    def _tell_served(self) -> None:
        if self._settings.ssh.port and self._settings.images_dir.is_dir():
            try:
                tell_served(self._settings.images_dir, tuple(self._seeding))
            except OSError as error:
                log.warning("not-served-over-ssh", why=str(error))

    def _on_farm(self, topic: str, message: bytes) -> None:
        self._farm_waiting = message
        self._wake.set()

    def _admit(self, site_list: SiteList) -> None:
        """Serve who has a place in the farm; a map that the site list does not prove waits."""
        message = self._farm_waiting
        if not message or message == self._farm_refused:
            return
        try:
            payload = open_envelope(message, kind="farm", keys=site_list.keys())
            farm = decode(FarmMap, payload.encode(), what="farm")
            if farm.generation < self._farm_generation:
                raise MessageInvalid(f"farm: {farm.generation} again", hint="an old one: ignored")
            places = [Place(one.rack, one.room, one.networks) for one in farm.places]
            zones = see(places, own=(), foreign=farm.foreign)
        except (DistribError, ValueError) as error:
            self._farm_refused = message
            log.warning("refused", topic=self._topics.farm, why=str(error))
            return
        self._farm_waiting, self._farm_refused = b"", b""
        self._farm_generation = farm.generation
        self._zones = zones
        self._session.admit(zones)

    async def _follow(self) -> None:
        """Seed what is approved and here; stop serving what is not approved any more."""
        if self._site_list is None:
            return
        self._admit(self._site_list)
        approved = {image.infohash: image for image in self._site_list.images}
        changed = False
        for infohash in set(self._seeding) - set(approved):
            await self._drop(infohash)
            # An empty retained payload deletes the topic.
            self._bus.retain(self._topics.torrent(infohash), b"")
            changed = True
        for infohash, transfer in list(self._seeding.items()):
            if transfer.fault is not None:
                self._complain(approved[infohash], transfer.fault.message)
                await self._drop(infohash)
                changed = True
        for infohash, image in approved.items():
            if infohash not in self._seeding:
                changed |= await self._seed(image)
        if changed:
            self._announce()

    async def _seed(self, image: SiteImage) -> bool:
        directory = self._settings.images_dir / image.infohash
        torrent_file = directory / TORRENT_FILE
        if not torrent_file.exists():
            return False
        try:
            torrent = await asyncio.to_thread(torrent_file.read_bytes)
            raw_info = info_of(torrent)
            info = check_info(
                raw_info,
                infohash=image.infohash,
                size_bytes=image.size_bytes,
                piece_bytes=image.piece_bytes,
            )
            piece_hashes(torrent, info)
            _check_size(directory / IMAGE_FILE, info.size_bytes)
            transfer = self._session.add(info, torrent, directory, seed=True)
        except (OSError, TorrentMismatch, StorageFailed) as error:
            self._complain(image, str(error))
            return False
        transfer.limit(download_bps=0, upload_bps=self._settings.swarm.upload_bps)
        self._seeding[image.infohash] = transfer
        self._infos[image.infohash] = raw_info
        self._bus.retain(self._topics.torrent(image.infohash), raw_info)
        log.info("seeding", image=image.ref, infohash=image.infohash)
        return True

    async def _drop(self, infohash: str) -> None:
        self._infos.pop(infohash, None)
        await self._session.remove(self._seeding.pop(infohash))

    def _complain(self, image: SiteImage, why: str) -> None:
        """Once for each thing that is wrong; it is tried again all the while."""
        if self._complaints.get(image.infohash) != why:
            log.warning("not-seeded", image=image.ref, why=why)
        self._complaints[image.infohash] = why

    def _publish_all(self) -> None:
        """After each connection: a broker that lost its data has the torrents again."""
        for infohash, raw_info in self._infos.items():
            self._bus.retain(self._topics.torrent(infohash), raw_info)
        self._announce()

    def _announce(self) -> None:
        self._publish_presence(online=True)

    def _publish_presence(self, *, online: bool) -> None:
        swarm, ssh, web = self._settings.swarm, self._settings.ssh, self._settings.web
        address = swarm.announce or swarm.address
        presence = SeederPresence(
            seeder=self._settings.name,
            online=online,
            address=address,
            port=self._port,
            link_bps=swarm.link_bps,
            ssh_port=ssh.port,
            host_keys=self._host_keys if ssh.port else (),
            web_seed=web.url or (f"https://{address}:{web.port}/images" if web.port else ""),
            infohashes=tuple(sorted(self._seeding)),
            sent_at=datetime.now(UTC),
        )
        self._bus.retain(self._topics.seeder(self._settings.name), encode(presence))


async def run_seeder(settings: SeederSettings, stop: asyncio.Event) -> None:
    """Run a seeder until ``stop`` is set. Raises OperatorError when it cannot listen."""
    swarm = settings.swarm
    profile = lan_profile(
        address=swarm.address,
        port=swarm.port,
        # What is too large for a slow link costs little there; the other way round it costs rate.
        link=Link(swarm.link_bps or TEN_GIGABIT_BPS),
        connections=swarm.connections,
    )
    session = SwarmSession(profile, backend="pread")
    # Nobody has a place before there is a map.
    session.admit(Zones())
    async with session.running() as port:
        log.info("seeder-ready", name=settings.name, port=port)
        seeder = Seeder(settings, session)
        async with serving_web(
            settings.web,
            settings.bus,
            settings.images_dir,
            seeder,
            ca_directory=settings.ca_directory,
        ):
            await seeder.run(stop, port)


def _host_key(file: Path) -> str:
    try:
        return " ".join(file.read_text("ascii").split()[:2])
    except (OSError, UnicodeDecodeError) as error:
        raise ConfigInvalid(
            f"ssh.host_keys: {file}: {error}", hint="name the .pub files of the sshd's host keys"
        ) from None


def _check_size(image: Path, size_bytes: int) -> None:
    found = image.stat().st_size
    if found != size_bytes:
        raise StorageFailed(
            f"{image}: {found} bytes, the torrent says {size_bytes}",
            hint="the store is damaged: approve the image again",
        )
