"""The farm: certificates, a head, nodes; and an experiment that endorses images."""

from __future__ import annotations

import hashlib
import json
import os
import uuid
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from cryptography import x509

from agent.socket.client import ask
from distrib.errors import NetworkError
from distrib.trust.names import slash_form
from tests.farm.network import Host, Network, shaped_network
from tests.farm.process import BIN, CommandFailed, Daemon, answer, command, eventually

API_PORT, BROKER_PORT, SWARM_PORT = 18443, 18883, 16881
LIST_ID = "0d4b3b8e-54f0-4a53-8a6e-0a4f1a6a2c01"


@dataclass(frozen=True)
class Image:
    """An image of the experiment, with the signed list that endorses it."""

    file: Path
    signed_list: Path
    identifier: str
    version: str
    alias: str

    @property
    def ref(self) -> str:
        return f"{self.identifier}@{self.version}"

    @property
    def sha256(self) -> str:
        return hashlib.sha256(self.file.read_bytes()).hexdigest()


class Node:
    """A worker node: settings, state and cache in a directory, the agent as a process."""

    def __init__(self, farm: Farm, name: str, host: Host, settings: dict[str, Any]) -> None:
        self.name = name
        self.host = host
        self.directory = farm.directory / "nodes" / name
        self.directory.mkdir(parents=True)
        self.socket = self.directory / "agent.sock"
        self.agent: Daemon | None = None
        certificate = farm.pki / "site" / "certs" / name
        self._config = self.directory / "agent.toml"
        merged = {
            "node": name,
            "state_dir": str(self.directory / "state"),
            "socket": str(self.socket),
            "bus": {
                "host": farm.head_host.address,
                "port": BROKER_PORT,
                "ca": str(farm.pki / "site" / "ca.pem"),
                "cert": f"{certificate}.pem",
                "key": f"{certificate}.key",
                "keepalive_s": 5,
                "reconnect_max_s": 1.0,
            },
            "cache": {"directory": str(self.directory / "cache"), "capacity_bytes": 1 << 30}
            | settings.get("cache", {}),
            "swarm": {
                "address": host.address,
                "port": SWARM_PORT,
                "device_port": SWARM_PORT + 1,
                "stripe_port": SWARM_PORT + 2,
                "device_stripe_port": SWARM_PORT + 3,
            }
            | settings.get("swarm", {}),
            "trust": {"ca_directory": str(farm.pki / "site" / "trust")} | settings.get("trust", {}),
            "launch": settings.get("launch", {}),
            "scrub": settings.get("scrub", {}),
        }
        self._config.write_text(_toml(merged), "utf-8")

    @property
    def cache(self) -> Path:
        return self.directory / "cache"

    def start(self) -> None:
        """Start the agent and wait until it answers on its socket."""
        self.agent = Daemon(
            [*self.host.prefix, str(BIN / "distrib-agent"), "run", "--config", str(self._config)],
            log=self.directory / "agent.log",
        )
        eventually(f"{self.name} answers", self.answers, daemon=self.agent, limit_s=30)

    def answers(self) -> bool:
        """Whether the agent serves its socket (the file outlives an agent that was killed)."""
        try:
            ask(self.socket, "status")
        except NetworkError:
            return False
        return True

    def kill(self) -> None:
        """kill -9."""
        assert self.agent is not None
        self.agent.kill()

    def stop(self) -> None:
        if self.agent is not None and self.agent.running:
            assert self.agent.stop() == 0, self.agent.tail()

    def ask(self, *arguments: str, **options: Any) -> Any:
        """``distrib-agent ARGUMENTS --json`` on this node."""
        return answer(["distrib-agent", "--socket", str(self.socket), *arguments], **options)

    def run(self, *arguments: str, **options: Any) -> str:
        """``distrib-agent ARGUMENTS`` on this node; its output."""
        return command(["distrib-agent", "--socket", str(self.socket), *arguments], **options)

    def image(self, image: Image) -> dict[str, Any] | None:
        """What the agent says of an image at this moment, or None."""
        report = ask(self.socket, "status")["report"]
        found = [
            one
            for one in report["images"]
            if (one["identifier"], one["version"]) == (image.identifier, image.version)
        ]
        return found[0] if found else None

    def state(self, image: Image) -> str:
        found = self.image(image)
        return "unknown" if found is None else found["state"]

    def volume(self, image: Image) -> Path:
        """Where the bytes of an image are on this node."""
        infohash = (self.image(image) or {})["infohash"]
        state = self.directory / "state"
        homes = (self.cache / "volumes", state / "devices", state / "lvm")
        there = [file for home in homes if (file := home / infohash / "image.raw").exists()]
        return (there or [homes[0] / infohash / "image.raw"])[0]


class Farm:
    """A head and nodes; made by ``farm_on_loopback`` or ``farm_on_network``."""

    def __init__(self, directory: Path, head_host: Host, nodes: list[str]) -> None:
        self.directory = directory
        self.head_host = head_host
        self.pki = directory / "pki"
        self.state = directory / "head"
        self.nodes: dict[str, Node] = {}
        self.head: Daemon | None = None
        self._versions = 0
        self._authorised = False
        self._endorsed: list[dict[str, Any]] = []
        arguments = [f"--node={name}" for name in nodes]
        command(
            ["distrib", "testpki", "init", str(self.pki), *arguments, "--host", head_host.address]
        )

    def start_head(self) -> None:
        """``distrib up``, until its API answers."""
        self.head = Daemon(
            [
                *self.head_host.prefix,
                str(BIN / "distrib"),
                "up",
                f"--state={self.state}",
                f"--pki={self.pki}",
                f"--address={self.head_host.address}",
                f"--api-port={API_PORT}",
                f"--broker-port={BROKER_PORT}",
                f"--swarm-port={SWARM_PORT}",
            ],
            log=self.directory / "up.log",
        )
        eventually("the head is up", self._is_up, daemon=self.head, limit_s=60)

    def distrib(self, *arguments: str, **options: Any) -> str:
        """``distrib ARGUMENTS`` on the head, as its administrator; its output."""
        return command(
            ["distrib", *arguments],
            prefix=self.head_host.prefix,
            environment={"DISTRIB_CONFIG": str(self.state / "client.toml")},
            **options,
        )

    def ask(self, *arguments: str, **options: Any) -> Any:
        """The same with ``--json``, parsed."""
        return json.loads(self.distrib(*arguments, "--json", **options))

    def add_node(self, name: str, host: Host, **settings: Any) -> Node:
        """A node that is in the inventory; its agent is not started."""
        rack = settings.pop("rack", "R1")
        node = Node(self, name, host, settings)
        self.distrib("node", "add", name, f"--address={host.address}", f"--rack={rack}")
        self.nodes[name] = node
        return node

    def endorse(self, file: Path, *, alias: str, identifier: str | None = None) -> Image:
        """Sign a list of all images so far and this one, and authorise the endorser here."""
        image = self._named(file, alias, identifier)
        return self._signed([image])[0]

    def endorse_many(self, count: int, size_bytes: int) -> list[Image]:
        """New images of random bytes, in one list; none of them is taken in."""
        images = []
        for number in range(count):
            file = self.directory / f"many{number}.raw"
            file.write_bytes(os.urandom(size_bytes))
            images.append(self._named(file, file.stem, None))
        return self._signed(images)

    def _named(self, file: Path, alias: str, identifier: str | None) -> Image:
        """The next version, as an entry of the list that is signed next."""
        self._versions += 1
        identifier = identifier or str(uuid.uuid4())
        version = f"1.0.{self._versions}"
        entry = {
            "dc:identifier": identifier,
            "dc:title": alias,
            "dc:description": "an image of the tests",
            "hv:hypervisor": "qemu,kvm",
            "hv:size": file.stat().st_size,
            "hv:uri": file.as_uri(),
            "hv:version": version,
            "sl:arch": "x86_64",
            "sl:checksum:sha512": hashlib.sha512(file.read_bytes()).hexdigest(),
            "sl:comments": "",
            "sl:os": "Linux",
            "sl:osversion": "Debian 12",
        }
        # Leaving an image out of a newer list would revoke it; its new version replaces the old.
        self._endorsed = [
            one for one in self._endorsed if one["hv:image"]["dc:identifier"] != identifier
        ]
        self._endorsed.append({"hv:image": entry})
        return Image(file, file, identifier, version, alias)

    def _signed(self, images: list[Image]) -> list[Image]:
        plain = self.directory / f"list-{self._versions}.json"
        signed = plain.with_suffix(".smime")
        plain.write_text(json.dumps({"hv:imagelist": self._image_list()}), "utf-8")
        endorser = self.pki / "experiment" / "certs" / "Endorser"
        key_pair = [f"--cert={endorser}.pem", f"--key={endorser}.key"]
        command(["distrib", "list", "sign", str(plain), *key_pair, "-o", str(signed)])
        if not self._authorised:
            self._authorised = True
            certificate = x509.load_pem_x509_certificate(Path(f"{endorser}.pem").read_bytes())
            dn, ca = slash_form(certificate.subject), slash_form(certificate.issuer)
            self.distrib("endorser", "add", f"--dn={dn}", f"--ca={ca}")
        return [replace(image, signed_list=signed) for image in images]

    def approve(self, image: Image) -> dict[str, Any]:
        """``distrib image add``."""
        added: dict[str, Any] = self.ask(
            "image", "add", str(image.file), f"--list={image.signed_list}", f"--alias={image.alias}"
        )
        return added

    def publish(self, size_bytes: int, *, alias: str) -> Image:
        """A new image of random bytes, endorsed and approved."""
        file = self.directory / f"{alias}.raw"
        with file.open("wb") as out:
            for _ in range(0, size_bytes, 1 << 20):
                out.write(os.urandom(min(1 << 20, size_bytes)))
        image = self.endorse(file, alias=alias)
        self.approve(image)
        return image

    def stop(self) -> None:
        """End everything; each part has to end by itself, and cleanly."""
        for node in self.nodes.values():
            node.stop()
        if self.head is not None and self.head.running:
            self.head.stop()

    def _is_up(self) -> bool:
        if not (self.state / "client.toml").exists():
            return False
        try:
            self.distrib("node", "list")
        except CommandFailed:
            return False
        return True

    def _image_list(self) -> dict[str, Any]:
        return {
            "dc:identifier": LIST_ID,
            "dc:title": "Images of the tests",
            "dc:description": "made by the tests",
            "dc:source": "https://experiment.example.org/",
            "dc:date:created": "2026-01-01T00:00:00Z",
            "dc:date:expires": "2026-01-01T00:00:00Z",
            "hv:uri": "https://experiment.example.org/image.list",
            "hv:version": f"1.0.{self._versions}",
            "hv:endorser": {
                "hv:x509": {
                    "dc:creator": "Endorser",
                    "hv:ca": "",
                    "hv:dn": "",
                    "hv:email": "endorser@example.org",
                }
            },
            "hv:images": self._endorsed,
        }


@contextmanager
def farm_on_loopback(directory: Path, nodes: int, *, add: bool = True) -> Iterator[Farm]:
    """A farm on 127.0.9.x. Nodes are wn1, wn2, ... and in the inventory; no agent runs yet.

    Without ``add`` there are certificates for them only."""
    names = [f"wn{number}" for number in range(1, nodes + 1)]
    farm = Farm(directory, Loopback(1), names)
    try:
        farm.start_head()
        for number, name in enumerate(names, start=2):
            if add:
                farm.add_node(name, Loopback(number))
        yield farm
    finally:
        farm.stop()


@contextmanager
def farm_on_network(
    directory: Path, nodes: int, *, rate_mbit: float | None, names: int | None = None
) -> Iterator[tuple[Farm, Network]]:
    """A farm in network namespaces, each host on a link of ``rate_mbit`` each way.

    ``names`` is how many nodes get certificates, where some are added later."""
    called = [f"wn{number}" for number in range(1, (names or nodes) + 1)]
    with shaped_network() as network:
        farm = Farm(directory, network.add_host(rate_mbit=rate_mbit), called)
        try:
            farm.start_head()
            for name in called[:nodes]:
                farm.add_node(name, network.add_host(rate_mbit=rate_mbit))
            yield farm, network
        finally:
            farm.stop()


class Loopback(Host):
    """A host without a namespace: an address of the loopback network."""

    def __init__(self, number: int) -> None:
        super().__init__("", f"127.0.9.{number}")

    @property
    def prefix(self) -> tuple[str, ...]:
        return ()


def _toml(tree: dict[str, Any], path: str = "") -> str:
    plain = [f"{key} = {json.dumps(v)}" for key, v in tree.items() if not isinstance(v, dict)]
    tables = [
        f"\n[{path}{key}]\n{_toml(value, f'{path}{key}.')}"
        for key, value in tree.items()
        if isinstance(value, dict)
    ]
    return "\n".join(plain + tables)
