"""An agent as a process, which is killed again and again, and the site that it belongs to.

There is no broker: what the site says is put into the agent's state, signed as ever, while it is
dead. So a round takes as long as the agent's start and what is done in it.
"""

from __future__ import annotations

import base64
import hashlib
import json
import os
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager, suppress
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

from agent.socket.client import ask
from distrib.bus.messages import Desired, DesiredImage, Peer
from distrib.bus.schema import encode
from distrib.errors import DistribError, NetworkError
from distrib.trust.envelope import seal
from distrib.trust.imagelist import Endorser, Image
from distrib.trust.names import slash_form
from distrib.trust.signature import sign_smime
from distrib.trust.sitelist import ControllerKey, Origin, SiteImage, SiteList, render_site_list
from distrib.trust.testpki import Authority, Role
from tests.farm.farm import _toml
from tests.farm.process import BIN, ROOT, Daemon, eventually
from tests.pull.conftest import Published
from tests.uml.disks import NO_UDEV, run

NODE = "wn1"
ORIGIN = Origin("0d4b3b8e-54f0-4a53-8a6e-0a4f1a6a2c01", "1", "/CN=e", "/CN=ca", "0" * 128, 1)
KEY = Ed25519PrivateKey.from_private_bytes(b"\x07" * 32)


class Site:
    """Certificates, a site list of some images, and a seeder of them."""

    def __init__(self, directory: Path, images: dict[str, Published], address: str) -> None:
        """``images`` by ``UUID@VERSION``. ``stripes``: how nodes are told to fetch."""
        self.images = images
        self.stripes = 1
        self.address = address
        now = datetime.now(UTC)
        self.authority = Authority.create(directory / "site", "Site", now=now)
        catalogue = self.authority.issue(Role.CATALOGUE, now=now)
        self.authority.issue(Role.NODE, NODE, now=now, hosts=[NODE])
        certificate = catalogue.certificate
        site_list = SiteList(
            identifier="1f8b6e0c-6b1e-4c6a-9d6e-2f0f4c1d9a10",
            version=str(int(time.time())),
            created=now,
            expires=now + timedelta(hours=72),
            site="Site",
            endorser=Endorser(slash_form(certificate.subject), slash_form(certificate.issuer)),
            images=tuple(_entry(name, one) for name, one in images.items()),
            controller_keys=(ControllerKey.of(KEY.public_key()),),
        )
        self.site_list = sign_smime(render_site_list(site_list), certificate, catalogue.key)
        self.sha512 = {
            one.info.infohash: hashlib.sha512(one.data).hexdigest() for one in images.values()
        }
        self.size_bytes = {one.info.infohash: one.info.size_bytes for one in images.values()}
        self.names = {one.info.infohash: name for name, one in images.items()}

    @contextmanager
    def seeding(self, port: int, rate_bps: int) -> Iterator[Callable[[], dict[str, int]]]:
        """The seeder's process; gives what it has sent so far."""
        directories = [str(one.directory) for one in self.images.values()]
        command = [sys.executable, "-B", "-m", "tests.faults.seeder", self.address, str(port)]
        with subprocess.Popen(
            [*command, str(rate_bps), *directories],
            stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, cwd=ROOT,
        ) as seeder:  # fmt: skip
            assert seeder.stdin and seeder.stdout
            assert seeder.stdout.readline() == "seeding\n"
            self.seeder = Peer(node="seeder", address=self.address, port=port)

            def sent() -> dict[str, int]:
                assert seeder.stdin and seeder.stdout
                seeder.stdin.write("\n")
                seeder.stdin.flush()
                told: dict[str, int] = json.loads(seeder.stdout.readline())
                return told

            try:
                yield sent
            finally:
                seeder.stdin.close()
                seeder.wait(20)

    def desired(self, infohashes: Iterable[str]) -> bytes:
        images = []
        for infohash in infohashes:
            identifier, _, version = self.names[infohash].partition("@")
            images.append(
                DesiredImage(
                    identifier=identifier,
                    version=version,
                    infohash=infohash,
                    active=False,
                    # As another rollout: what failed is tried again.
                    rollout=f"r{time.monotonic_ns()}",
                    parents=(self.seeder,),
                    stripes=self.stripes,
                )
            )
        wanted = Desired(
            node=NODE,
            issued_at=datetime.now(UTC),
            generation=int(time.time()),
            images=tuple(images),
        )
        return seal("desired", encode(wanted).decode(), KEY)


class Victim:
    """A node whose agent is started, asked, and killed."""

    def __init__(
        self, directory: Path, site: Site, *, address: str, port: int, cache: dict[str, Any]
    ) -> None:
        self.directory = directory
        self.site = site
        self.state = directory / "state"
        self.cache = directory / "cache"
        self.socket = directory / "agent.sock"
        self.agent: Daemon | None = None
        for where in (directory, self.state, self.state / "torrents"):
            where.mkdir()
        (self.state / "site-list.smime").write_bytes(site.site_list)
        root = site.authority.directory
        settings = {
            "node": NODE,
            "state_dir": str(self.state),
            "socket": str(self.socket),
            "bus": {
                "host": address,
                "port": 9,
                "ca": str(root / "ca.pem"),
                "cert": str(root / "certs" / f"{NODE}.pem"),
                "key": str(root / "certs" / f"{NODE}.key"),
            },
            "cache": {"directory": str(self.cache), **cache},
            # So slow a link that a copy of an older version is always worth while.
            "swarm": {
                "address": address, "port": port, "device_port": port + 1,
                "stripe_port": port + 2, "link_bps": 4 << 20,
            },
            "trust": {"ca_directory": str(site.authority.trust_directory)},
        }  # fmt: skip
        self._config = directory / "agent.toml"
        self._config.write_text(_toml(settings))

    def start(self, desired: Iterable[str]) -> None:
        """With what the site desires from now on."""
        (self.state / "desired.json").write_bytes(self.site.desired(desired))
        for one in self.site.images.values():
            # An image that was evicted took its torrent along; the bus would bring it again.
            torrent = self.state / "torrents" / f"{one.info.infohash}.info"
            if not torrent.exists():
                torrent.write_bytes(one.raw_info)
        self.agent = Daemon(
            [str(BIN / "distrib-agent"), "run", "--config", str(self._config)],
            log=self.directory / "agent.log",
        )
        eventually("the agent answers", self._answers, daemon=self.agent, every_s=0.02)

    def _answers(self) -> bool:
        with suppress(NetworkError):
            return bool(ask(self.socket, "status"))
        return False

    def kill(self) -> None:
        assert self.agent is not None
        assert self.agent.running, self.agent.tail()
        self.agent.kill()

    def stop(self) -> None:
        if self.agent is not None and self.agent.running:
            self.agent.stop()

    def ask(self, op: str, **args: Any) -> Any:
        return ask(self.socket, op, **args)

    def meanwhile(self, op: str, **args: Any) -> threading.Thread:
        """Ask, in a thread, something whose answer may never come."""

        def asking() -> None:
            with suppress(DistribError, OSError, ValueError):
                ask(self.socket, op, **args)

        thread = threading.Thread(target=asking)
        thread.start()
        return thread

    # What is on the disk ----------------------------------------------------------------------

    def records(self) -> dict[str, str]:
        """The states of the volumes, as the disk has them."""
        found = {}
        for file in (self.state / "volumes").glob("*.json"):
            with suppress(OSError, ValueError):
                found[file.stem] = json.loads(file.read_bytes())["state"]
        return found

    def noted_bytes(self, infohash: str) -> int:
        """How much of an image is noted as there, for this boot."""
        file = self.state / "resume" / f"{infohash}.boot.json"
        try:
            document = json.loads(file.read_bytes())
        except FileNotFoundError:
            return 0
        bits = int.from_bytes(base64.b64decode(document["pieces"])).bit_count()
        piece = self.site.images[self.site.names[infohash]].info.piece_bytes
        return min(bits * piece, self.site.size_bytes[infohash])

    def volume(self, infohash: str) -> Path:
        for home in (self.cache / "volumes", self.state / "devices", self.state / "lvm"):
            if (home / infohash / "image.raw").exists():
                return home / infohash / "image.raw"
        raise AssertionError(f"no volume of {infohash}")

    def sha512(self, infohash: str) -> str:
        with self.volume(infohash).open("rb") as file:
            return hashlib.sha512(file.read(self.site.size_bytes[infohash])).hexdigest()

    def instances(self) -> set[str]:
        """The directories of instances that are there."""
        return {
            home.name
            for root in ("instances", "device-instances")
            if (self.cache / root).is_dir()
            for home in (self.cache / root).iterdir()
        }

    def accounted_bytes(self) -> int:
        """What volumes and instances take, by what is on the disk: images by their full size (a
        whole device), instances by what they were given."""
        total = 0
        for image in (self.cache / "volumes").glob("*/image.raw"):
            total += image.stat().st_size
        for link in (self.state / "devices").glob("*/image.raw"):
            with link.open("rb") as device:
                total += device.seek(0, os.SEEK_END)
        for described in self.cache.glob("*instances/*/instance.json"):
            told = json.loads(described.read_bytes())
            total += told["cow_bytes"] + told["scratch_bytes"]
        return total

    def loops_of(self, leases: Iterable[dict[str, Any]]) -> int:
        """How many loop devices the leases should have."""
        return sum(one["block"] for one in leases)

    def loops(self) -> set[str]:
        """Files of this node that loop devices are on."""
        told = subprocess.run(
            ["losetup", "--noheadings", "--output", "BACK-FILE"],
            capture_output=True, text=True, check=True,
        ).stdout  # fmt: skip
        return {line.strip() for line in told.splitlines() if str(self.cache) in line}

    def mounts(self) -> list[str]:
        return [
            line for line in Path("/proc/mounts").read_text().split() if str(self.cache) in line
        ]

    def strays(self) -> set[tuple[Path, int]]:
        """Half-made and half-removed things, each with its inode."""
        found = set()
        for root in (self.state, self.cache):
            for path in root.rglob("*"):
                if path.name.endswith((".new", ".gone", ".tmp", ".bad")):
                    with suppress(FileNotFoundError):
                        found.add((path, path.stat().st_ino))
        return found


class LvmVictim(Victim):
    """The same over a volume group: volumes and instances are what LVM says."""

    def __init__(self, *arguments: Any, vg: str, **settings: Any) -> None:
        super().__init__(*arguments, **settings)
        self._vg = vg

    def instances(self) -> set[str]:
        return {
            name.removeprefix("distrib-cow-")
            for name in self._volumes()
            if name.startswith("distrib-cow-")
        }

    def accounted_bytes(self) -> int:
        return sum(self._volumes().values())

    def loops_of(self, leases: Iterable[dict[str, Any]]) -> int:
        return 0

    def _volumes(self) -> dict[str, int]:
        """All of the group with the room that they take."""
        told = run(
            "lvs", "--noheadings", "--units", "b", "--nosuffix", "--config", NO_UDEV,
            "-o", "lv_name,lv_size", "--reportformat", "json", self._vg,
        ).stdout  # fmt: skip
        return {one["lv_name"]: int(one["lv_size"]) for one in json.loads(told)["report"][0]["lv"]}


def _entry(name: str, published: Published) -> SiteImage:
    identifier, _, version = name.partition("@")
    info = published.info
    sha512 = hashlib.sha512(published.data).hexdigest()
    return SiteImage(
        image=Image(identifier, version, "https://example.org/i", info.size_bytes, sha512),
        infohash=info.infohash,
        size_bytes=info.size_bytes,
        piece_bytes=info.piece_bytes,
        sha512=sha512,
        origin=ORIGIN,
    )
