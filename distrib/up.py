"""``distrib up``: broker, controller and seeder of a single machine, as supervised children.

Each is a process of its own, so that each has a crash domain of its own; all end with us. Files::

    STATE/up.toml          addresses, ports, the broker          (settings of this module)
    STATE/controller.toml  STATE/seeder.toml                     (settings of the children)
    STATE/client.toml      STATE/admin.token                     (for DISTRIB_CONFIG)
    STATE/head/            the controller's state and the images
    STATE/broker/          the broker's configuration and retained messages
    STATE/log/NAME.log     what each child says, JSON lines

They are written at the first start, from a directory of certificates; what an operator changes in
them later stays, unless certificates, address or a port are given anew on the command line.
"""

from __future__ import annotations

import asyncio
import json
import logging
import logging.handlers
import os
import sys
from collections.abc import Callable
from datetime import UTC, datetime
from pathlib import Path
from typing import ClassVar

import structlog
from cryptography.x509.oid import NameOID
from pydantic import Field
from sqlalchemy.orm import Session

from distrib.api.bearer import authenticate, issue_token
from distrib.api.faults import Unauthenticated
from distrib.api.server import ApiSettings
from distrib.bus.broker import Broker, BrokerSettings
from distrib.bus.mqtt import BusSettings
from distrib.child import Child, ChildFailed
from distrib.config import Section, Settings
from distrib.controller import (
    CatalogueSettings,
    ControllerSettings,
    SiteSettings,
    TrustSettings,
)
from distrib.db.models import Role
from distrib.db.schema import upgrade
from distrib.db.session import Database
from distrib.errors import ConfigInvalid
from distrib.seeder import SeederSettings, SeederSwarmSettings
from distrib.trust.directory import read_certificates

log = structlog.get_logger(__name__)

CHILDREN = ("controller", "seeder")
ADMIN = "admin"
LOG_BYTES = 10 * 1024 * 1024
LOGS_KEPT = 3
_STOP_S = 2.5


class UpPorts(Section):
    """Where the services answer."""

    address: str = Field("127.0.0.1", description="address of all services")
    api_port: int = Field(8443, ge=1, le=65535, description="https, of the API")
    broker_port: int = Field(8883, ge=1, le=65535, description="mqtts, of the broker")
    swarm_port: int = Field(6881, ge=1, le=65535, description="BitTorrent, of the seeder")


class UpSettings(Settings):
    """What ``distrib up`` itself is told."""

    ENV_PREFIX: ClassVar[str] = "DISTRIB_UP"

    broker: BrokerSettings


def prepare(
    state: Path, *, pki: Path | None, ports: UpPorts | None, config: Path | None = None
) -> UpSettings:
    """Write the settings files that are missing (all of them for a new ``pki`` or ``ports``).

    ``config`` is used in place of ``STATE/up.toml``. Raises ConfigInvalid where there are neither
    files nor certificates.
    """
    state = state.absolute()
    file = config or state / "up.toml"
    remembered = state / "pki"
    if pki is None and remembered.is_symlink():
        pki = remembered.resolve()
    if pki is not None and (ports is not None or not file.exists()):
        _write_files(state, pki.absolute(), ports or UpPorts())
    if not file.exists():
        raise ConfigInvalid(
            f"{file}: no such settings file",
            hint="at the first start give certificates: --pki DIR (distrib testpki init DIR)",
            path=str(file),
        )
    return UpSettings.load(file=file)


def make_admin_token(state: Path) -> Path:
    """``STATE/admin.token`` (mode 0600), made anew where it is not in force; its file."""
    path = state / "admin.token"
    settings = ControllerSettings.load(file=state / "controller.toml")
    settings.state_dir.mkdir(parents=True, exist_ok=True)
    now = datetime.now(UTC)
    database = Database(settings.database_url)
    try:
        upgrade(database)
        with database.transaction() as session:
            if not _in_force(session, path, now):
                issued = issue_token(
                    session, name=ADMIN, role=Role.ADMIN, now=now, actor="distrib up", replace=True
                )
                _write(path, issued.secret + "\n", mode=0o600)
    finally:
        database.close()
    return path


def _in_force(session: Session, path: Path, now: datetime) -> bool:
    if not path.exists():
        return False
    try:
        authenticate(session, f"Bearer {path.read_text(encoding='utf-8')}", now=now)
    except Unauthenticated:
        return False
    return True


async def run_up(
    state: Path, settings: UpSettings, stop: asyncio.Event, *, say: Callable[[str], None]
) -> None:
    """Run all services until ``stop`` is set; ``say`` gets a line when one is ready.

    Raises ChildFailed for one that ends before it was ever ready; the others are ended then.
    """
    broker = Broker(settings.broker, state / "broker")
    async with broker.running():
        say(f"broker      {broker.where} (mqtts)")
        children = [_child(state, name) for name in CHILDREN]
        try:
            async with asyncio.TaskGroup() as group:
                tasks = [
                    group.create_task(child.supervise(), name=f"child {child.name}")
                    for child in children
                ]
                tasks.append(group.create_task(_announce(state, children, say), name="announce"))
                await stop.wait()
                for task in tasks:
                    task.cancel()
        except BaseExceptionGroup as errors:
            # Not except*: before Python 3.11.4 what is raised there comes out in a group.
            failed, rest = errors.split(ChildFailed)
            if failed is None or rest is not None:
                raise
            raise _first(failed) from None


async def _announce(state: Path, children: list[Child], say: Callable[[str], None]) -> None:
    for child in children:
        await child.ready.wait()
        say(f"{child.name:<11} {_where(state, child.name)}")
    say(f"ready       DISTRIB_CONFIG={state / 'client.toml'} distrib node list")


def _where(state: Path, name: str) -> str:
    if name == "controller":
        api = ControllerSettings.load(file=state / "controller.toml").api
        return f"https://{api.address}:{api.port}"
    swarm = SeederSettings.load(file=state / "seeder.toml").swarm
    return f"{swarm.address}:{swarm.port} (BitTorrent)"


def _child(state: Path, name: str) -> Child:
    path = state / "log" / f"{name}.log"
    path.parent.mkdir(parents=True, exist_ok=True)
    kept = logging.handlers.RotatingFileHandler(path, maxBytes=LOG_BYTES, backupCount=LOGS_KEPT)

    def on_line(line: str) -> None:
        kept.emit(logging.makeLogRecord({"msg": "%s", "args": (line,)}))
        event = _event(line)
        level = str(event.get("level", ""))
        if not event:
            log.warning(name, line=line)
        elif level in {"warning", "error", "critical"}:
            shown = {key: event[key] for key in event if key in _SHOWN}
            log.warning(str(event.get("event", "said")), service=name, **shown)

    return Child(
        name,
        (sys.executable, "-m", "distrib", name, "--config", str(state / f"{name}.toml")),
        is_ready=lambda line: _event(line).get("event") == f"{name}-ready",
        on_line=on_line,
        stop_s=_STOP_S,
    )


_SHOWN = frozenset({"why", "code", "hint", "topic", "node", "image"})


def _event(line: str) -> dict[str, object]:
    try:
        document = json.loads(line)
    except ValueError:
        return {}
    return document if isinstance(document, dict) else {}


def _first(group: BaseExceptionGroup[ChildFailed]) -> BaseException:
    first = group.exceptions[0]
    return _first(first) if isinstance(first, BaseExceptionGroup) else first


def _write_files(state: Path, pki: Path, ports: UpPorts) -> None:
    site = pki / "site"
    ca, certs = site / "ca.pem", site / "certs"
    authority = read_certificates(ca)[0]
    names = authority.subject.get_attributes_for_oid(NameOID.ORGANIZATION_NAME)
    name = str(names[0].value) if names else "Example Site"
    url = f"https://{ports.address}:{ports.api_port}"

    def bus(role: str) -> BusSettings:
        return BusSettings(
            host=ports.address,
            port=ports.broker_port,
            ca=ca,
            cert=certs / f"{role}.pem",
            key=certs / f"{role}.key",
        )

    up = UpSettings(
        broker=BrokerSettings(
            address=ports.address,
            port=ports.broker_port,
            ca=ca,
            cert=certs / "server.pem",
            key=certs / "server.key",
        )
    )
    controller = ControllerSettings(
        state_dir=state / "head",
        site=SiteSettings(name=name, url=f"{url}/api/v1/site-list"),
        trust=TrustSettings(endorsers=pki / "experiment" / "trust", site=site / "trust"),
        catalogue=CatalogueSettings(cert=certs / "catalogue.pem", key=certs / "catalogue.key"),
        api=ApiSettings(
            address=ports.address,
            port=ports.api_port,
            cert=certs / "server.pem",
            key=certs / "server.key",
        ),
        bus=bus("controller"),
    )
    seeder = SeederSettings(
        images_dir=state / "head" / "images",
        ca_directory=site / "trust",
        bus=bus("seeder"),
        swarm=SeederSwarmSettings(address=ports.address, port=ports.swarm_port),
    )
    state.mkdir(parents=True, exist_ok=True)
    for file, settings in (("up", up), ("controller", controller), ("seeder", seeder)):
        _write(state / f"{file}.toml", settings.as_toml())
    client = {"url": url, "ca": str(ca), "token_file": str(state / "admin.token")}
    lines = [f"{key} = {json.dumps(value)}" for key, value in client.items()]
    _write(state / "client.toml", "\n".join(lines) + "\n")
    link = state / "pki"
    link.unlink(missing_ok=True)
    link.symlink_to(pki)


def _write(path: Path, text: str, *, mode: int = 0o644) -> None:
    temporary = path.with_name(f".{path.name}.new")
    temporary.unlink(missing_ok=True)
    descriptor = os.open(temporary, os.O_WRONLY | os.O_CREAT | os.O_EXCL, mode)
    with os.fdopen(descriptor, "w", encoding="utf-8") as file:
        file.write(text)
    temporary.rename(path)
