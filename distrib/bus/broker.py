"""A private mosquitto: its configuration, its access rules, and the child process that runs it.

Who may do what follows from the certificate alone: its CN is the user, and the client id as well,
so that no node can push another off the broker by taking its client id, and a client that comes
back after a cut takes the place of its own dead connection.
"""

from __future__ import annotations

import asyncio
import getpass
import os
import shutil
import signal
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path

import structlog
from pydantic import Field

from distrib.bus import crl
from distrib.bus.crl import CrlFile
from distrib.bus.schema import MESSAGE_MAX_BYTES
from distrib.bus.topics import DEFAULT_PREFIX
from distrib.child import Child
from distrib.config import Section
from distrib.errors import ConfigInvalid, ToolMissing

log = structlog.get_logger(__name__)

PACKET_OVERHEAD_BYTES = 64 * 1024
QUEUED_MESSAGES = 100_000
"""A controller that connects is sent three retained messages of every node at once; mosquitto's
default of 1000 would drop what is beyond it."""

QUEUED_BYTES = 256 * 1024 * 1024
"""Of one client: what waits for a controller that is away must not fill the memory."""

_MEANT = ("does not contain '%c' or '%u'", "should not be run as root")
"""Warnings about what is meant: topics that all may read, and the account that started us."""

_SBIN = ("/usr/sbin", "/usr/local/sbin")


class BrokerSettings(Section):
    """The embedded broker."""

    address: str = Field("127.0.0.1", description="address that the broker listens on")
    port: int = Field(8883, ge=1, le=65535, description="TLS port of the broker")
    ca: Path = Field(description="the site's CA: who has a certificate of it may connect")
    cert: Path = Field(description="the broker's certificate")
    key: Path = Field(description="its private key")
    crl: Path | None = Field(
        None,
        description="CRL of the site's CA (PEM), or the directory that holds it; followed, and"
        " must be in date: who is revoked is cut off",
    )
    prefix: str = Field(
        DEFAULT_PREFIX, pattern=r"^[\w-]+(/[\w-]+)*$", description="first part of every topic"
    )
    seeders: tuple[str, ...] = Field(("seeder",), description="CNs of the seeders' certificates")


def broker_acl(prefix: str, seeders: tuple[str, ...] = ("seeder",)) -> str:
    """The access rules of docs/formats/messages.md. ``%u`` is the CN of the certificate."""
    own_topics = ("presence", "report", "request", "event")
    lines = [
        "user controller",
        f"topic read {prefix}/#",
        *(
            f"topic write {prefix}/{leaf}"
            for leaf in ("site-list", "crl", "farm", "controller/sync")
        ),
        *(f"topic write {prefix}/node/+/{leaf}" for leaf in ("desired", "orders")),
        # Retained topics of a node that is forgotten are cleared.
        *(f"topic write {prefix}/node/+/{leaf}" for leaf in ("presence", "report")),
    ]
    for seeder in seeders:
        lines += [
            "",
            f"user {seeder}",
            f"topic write {prefix}/seeder/{seeder}/presence",
            f"topic readwrite {prefix}/torrent/+",
            f"topic read {prefix}/farm",
        ]
    lines += [
        "",
        *(f"pattern write {prefix}/node/%u/{leaf}" for leaf in own_topics),
        *(f"pattern read {prefix}/node/%u/{leaf}" for leaf in ("desired", "orders")),
        *(f"pattern read {prefix}/{leaf}" for leaf in ("site-list", "crl", "farm", "torrent/+")),
    ]
    return "\n".join(lines) + "\n"


def broker_config(settings: BrokerSettings, state_dir: Path, *, crl: Path | None = None) -> str:
    """mosquitto.conf (2.0) for one TLS listener with client certificates."""
    lines = [
        "# Written by distrib at every start of the broker: changes are lost.",
        "per_listener_settings false",
        "allow_anonymous false",
        f"acl_file {state_dir / 'acl'}",
        f"listener {settings.port} {settings.address}",
        f"cafile {settings.ca.absolute()}",
        f"certfile {settings.cert.absolute()}",
        f"keyfile {settings.key.absolute()}",
        *([] if crl is None else [f"crlfile {crl}"]),
        "require_certificate true",
        "use_identity_as_username true",
        "use_username_as_clientid true",
        "tls_version tlsv1.2",
        "set_tcp_nodelay true",
        "persistence true",
        f"persistence_location {state_dir}{os.sep}",
        "autosave_interval 30",
        f"max_packet_size {MESSAGE_MAX_BYTES + PACKET_OVERHEAD_BYTES}",
        f"message_size_limit {MESSAGE_MAX_BYTES}",
        f"max_queued_messages {QUEUED_MESSAGES}",
        f"max_queued_bytes {QUEUED_BYTES}",
        "log_dest stderr",
        "log_type error",
        "log_type warning",
        "log_type notice",
        # "mosquitto version ... running", which says that it accepts connections, is of this type.
        "log_type information",
        "log_timestamp false",
        "connection_messages false",
        # Started as root it would give up the right to read its own files.
        f"user {getpass.getuser()}",
    ]
    return "\n".join(lines) + "\n"


class Broker:
    """The broker's child process; its files are in ``state_dir``."""

    def __init__(self, settings: BrokerSettings, state_dir: Path) -> None:
        self._settings = settings
        self._state_dir = state_dir.absolute()
        crls = self._state_dir / "crl.pem"
        self._crls = None if settings.crl is None else CrlFile(settings.crl, crls)
        self.child = Child(
            "broker",
            (find_mosquitto(), "-c", str(self._state_dir / "mosquitto.conf")),
            is_ready=lambda line: line.startswith("mosquitto version") and "running" in line,
            on_line=_log_line,
            stop_s=2.0,
        )

    @property
    def where(self) -> str:
        """Address and port, for people."""
        return f"{self._settings.address}:{self._settings.port}"

    @asynccontextmanager
    async def running(self, *, ready_s: float = 10.0) -> AsyncIterator[None]:
        """Run it for the length of the block, which begins when it accepts connections.

        Raises ConfigInvalid for a file that is missing, TimedOut when it does not come up (its
        last line says why: most often the port is taken).
        """
        self.write_files()
        async with self.child.running(ready_s=ready_s):
            log.info("broker-ready", where=self.where)
            following = asyncio.create_task(self._follow_crls(), name="broker crl")
            try:
                yield
            finally:
                following.cancel()
                await asyncio.gather(following, return_exceptions=True)

    async def _follow_crls(self) -> None:
        while self._crls is not None:
            await asyncio.sleep(crl.POLL_S)
            try:
                change = await asyncio.to_thread(self._crls.refresh)
                if change is crl.Change.REVOKED:
                    self.write_files()
            except (ConfigInvalid, OSError) as error:
                log.warning("crl-not-read", why=str(error))
                continue
            # A child that is just being started reads the new file by itself.
            if change is not crl.Change.NONE and self.child.pid is not None:
                log.info("broker-crl", change=change.value)
                revoked = change is crl.Change.REVOKED
                os.kill(self.child.pid, signal.SIGTERM if revoked else signal.SIGHUP)

    def write_files(self) -> None:
        """Configuration and access rules, into the state directory (mode 0700)."""
        for key, path in self._named_files():
            if not os.access(path, os.R_OK):
                raise ConfigInvalid(
                    f"broker.{key} = {path}: no such file, or not readable", hint="see --pki"
                )
        self._state_dir.mkdir(parents=True, exist_ok=True, mode=0o700)
        if self._crls is not None:
            self._crls.refresh()
        crls = self._crls.path if self._crls is not None else None
        acl = broker_acl(self._settings.prefix, self._settings.seeders)
        for name, text in (
            ("acl", acl),
            ("mosquitto.conf", broker_config(self._settings, self._state_dir, crl=crls)),
        ):
            path = self._state_dir / name
            path.write_text(text, encoding="utf-8")
            # Later versions refuse access rules that others may read.
            path.chmod(0o600)

    def _named_files(self) -> list[tuple[str, Path]]:
        own = self._settings
        files = [("ca", own.ca), ("cert", own.cert), ("key", own.key)]
        return files if own.crl is None else [*files, ("crl", own.crl)]


def find_mosquitto() -> str:
    """The broker's program. Raises ToolMissing with the line that installs it."""
    path = os.pathsep.join((os.environ.get("PATH", os.defpath), *_SBIN))
    found = shutil.which("mosquitto", path=path)
    if found is None:
        raise ToolMissing(
            "mosquitto (the MQTT broker) is not installed",
            hint="apt-get install mosquitto, or name a broker of yours in bus.host",
            tool="mosquitto",
        )
    return found


def _log_line(line: str) -> None:
    if line.startswith("Error"):
        log.error("broker", line=line)
    elif line.startswith("Warning") and not any(known in line for known in _MEANT):
        log.warning("broker", line=line)
    else:
        log.debug("broker", line=line)
