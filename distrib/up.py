"""``distrib up``: broker, controller and seeder of a single machine, as supervised children.

Each is a process of its own, so that each has a crash domain of its own; all end with us. Files::

    STATE/up.toml          addresses, ports, the broker          (settings of this module)
    STATE/controller.toml  STATE/seeder.toml                     (settings of the children)
    STATE/client.toml      STATE/admin.token                     (for DISTRIB_CONFIG)
    STATE/head/            the controller's state and the images
    STATE/broker/          the broker's configuration and retained messages
    STATE/log/NAME.log     what each child says, JSON lines

They are written at the first start, from a directory of certificates; what an operator changes in
them later stays. Certificates, address or a port that are given anew change their own keys alone.
"""

from __future__ import annotations

import asyncio
import json
import logging
import logging.handlers
import os
import sys
import tomllib
from collections.abc import Callable, Mapping
from contextlib import AbstractContextManager, AsyncExitStack
from datetime import UTC, datetime
from pathlib import Path
from typing import ClassVar

import structlog
from cryptography.x509.oid import NameOID
from pydantic import Field
from sqlalchemy.orm import Session

from distrib import lock
from distrib.api.bearer import authenticate, issue_token
from distrib.api.faults import Unauthenticated
from distrib.bus.broker import Broker, BrokerSettings
from distrib.child import Child, ChildFailed
from distrib.config import Section, Settings
from distrib.controller_settings import ControllerSettings
from distrib.db.models import Role
from distrib.db.schema import upgrade
from distrib.db.session import Database
from distrib.errors import ConfigInvalid
from distrib.seeder import SeederSettings
from distrib.trust.directory import read_certificates

log = structlog.get_logger(__name__)

CHILDREN = ("controller", "seeder")
ADMIN = "admin"
LOG_BYTES = 10 * 1024 * 1024
LOGS_KEPT = 3
_STOP_S = 2.5

_LIST_PATH = "/api/v1/site-list"


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
    ready_s: float = Field(
        15, gt=0, description="a service that is not ready by then is named, with what it last said"
    )


def alone(state: Path) -> AbstractContextManager[None]:
    """Nobody else may run, or change the settings, while the block runs. Raises Conflict."""
    hint = "stop it first, or take another --state"
    return lock.alone(state / "up.lock", who="distrib up", hint=hint)


def prepare(
    state: Path,
    *,
    pki: Path | None,
    given: Mapping[str, object] | None = None,
    config: Path | None = None,
) -> UpSettings:
    """Write the settings files that are missing; in the others change what is given anew.

    ``given`` are fields of UpPorts. ``config`` is used in place of ``STATE/up.toml``. Raises
    ConfigInvalid where there are neither files nor certificates. To be called ``alone``.
    """
    state = state.absolute()
    file = config or state / "up.toml"
    remembered = state / "pki"
    known = remembered.resolve() if remembered.is_symlink() else None
    moved = pki is not None and pki.resolve() != known
    site = known if pki is None else pki.absolute()
    if site is not None:
        _write_files(state, site, dict(given or {}), moved=moved)
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
    async with broker.running(), AsyncExitStack() as logs:
        say(f"broker      {broker.where} (mqtts)")
        said: dict[str, str] = {}
        children = [_child(state, name, said, logs) for name in CHILDREN]
        try:
            async with asyncio.TaskGroup() as group:
                tasks = [
                    group.create_task(child.supervise(), name=f"child {child.name}")
                    for child in children
                ]
                announcing = _announce(state, children, said, say, limit_s=settings.ready_s)
                tasks.append(group.create_task(announcing, name="announce"))
                await stop.wait()
                for task in tasks:
                    task.cancel()
        except BaseExceptionGroup as errors:
            # Not except*: before Python 3.11.4 what is raised there comes out in a group.
            failed, rest = errors.split(ChildFailed)
            if failed is None or rest is not None:
                raise
            raise _first(failed) from None


async def _announce(
    state: Path,
    children: list[Child],
    said: Mapping[str, str],
    say: Callable[[str], None],
    *,
    limit_s: float,
) -> None:
    for child in children:
        try:
            async with asyncio.timeout(limit_s):
                await child.ready.wait()
        except TimeoutError:
            why = said.get(child.name, f"see {state / 'log' / child.name}.log")
            say(f"{child.name:<11} not ready after {limit_s:g} s: {why}")
        await child.ready.wait()
        say(f"{child.name:<11} {_where(state, child.name)}")
    say(f"ready       DISTRIB_CONFIG={state / 'client.toml'} distrib node list")


def _where(state: Path, name: str) -> str:
    if name == "controller":
        api = ControllerSettings.load(file=state / "controller.toml").api
        return f"https://{api.address}:{api.port}"
    swarm = SeederSettings.load(file=state / "seeder.toml").swarm
    return f"{swarm.address}:{swarm.port} (BitTorrent)"


def _child(state: Path, name: str, said: dict[str, str], logs: AsyncExitStack) -> Child:
    """``said`` keeps what the child last said of something that keeps it from its work."""
    path = state / "log" / f"{name}.log"
    path.parent.mkdir(parents=True, exist_ok=True)
    kept = logging.handlers.RotatingFileHandler(path, maxBytes=LOG_BYTES, backupCount=LOGS_KEPT)
    logs.callback(kept.close)

    def on_line(line: str) -> None:
        kept.emit(logging.makeLogRecord({"msg": "%s", "args": (line,)}))
        event = _event(line)
        level = str(event.get("level", ""))
        if event.get("event") in _HINDRANCES or level in {"warning", "error", "critical"}:
            said[name] = f"{event['event']}: {event.get('why') or event.get('hint') or level}"
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


_HINDRANCES = frozenset({"bus-unreachable"})
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


# Which keys of a file each field of UpPorts stands in.
_PORT_KEYS: Mapping[str, Mapping[str, tuple[str, ...]]] = {
    "up": {"address": ("broker.address",), "broker_port": ("broker.port",)},
    "controller": {
        "address": ("api.address", "bus.host"),
        "api_port": ("api.port",),
        "broker_port": ("bus.port",),
    },
    "seeder": {
        "address": ("bus.host", "swarm.address"),
        "broker_port": ("bus.port",),
        "swarm_port": ("swarm.port",),
    },
}
_MODELS: Mapping[str, type[Settings]] = {
    "up": UpSettings,
    "controller": ControllerSettings,
    "seeder": SeederSettings,
}


def _write_files(state: Path, pki: Path, given: Mapping[str, object], *, moved: bool) -> None:
    """Files that are missing as a whole; in the others what is ``given``, and where pki moved."""
    state.mkdir(parents=True, exist_ok=True)
    UpPorts.model_validate(given)
    url = _url(state)
    for name, model in _MODELS.items():
        path = state / f"{name}.toml"
        known = path.exists()
        ports = given if known else {**UpPorts().model_dump(), **given}
        flags = {
            key: ports[field]
            for field, keys in _PORT_KEYS[name].items()
            for key in keys
            if field in ports
        }
        if moved or not known:
            flags |= _places(name, state, pki)
        if flags:
            settings = model.load(file=path if known else None, flags=flags, environ={})
            _write(path, settings.as_toml())
    if moved:
        (state / "client.toml").unlink(missing_ok=True)
    _follow_url(state, pki, before=url)
    link = state / "pki"
    link.unlink(missing_ok=True)
    link.symlink_to(pki)


def _places(name: str, state: Path, pki: Path) -> dict[str, object]:
    """The keys of a file that follow from the directories."""
    site = pki / "site"
    certs, trust = site / "certs", site / "trust"

    def pair(section: str, role: str) -> dict[str, object]:
        return {f"{section}.cert": certs / f"{role}.pem", f"{section}.key": certs / f"{role}.key"}

    if name == "up":
        return {"broker.ca": site / "ca.pem", "broker.crl": trust, **pair("broker", "server")}
    bus = {"bus.ca": site / "ca.pem", **pair("bus", name)}
    if name == "seeder":
        return {"images_dir": state / "head" / "images", "ca_directory": trust, **bus}
    authority = read_certificates(site / "ca.pem")[0]
    names = authority.subject.get_attributes_for_oid(NameOID.ORGANIZATION_NAME)
    return {
        "state_dir": state / "head",
        "site.name": str(names[0].value) if names else "Example Site",
        "trust.endorsers": pki / "experiment" / "trust",
        "trust.site": trust,
        **pair("catalogue", "catalogue"),
        **pair("api", "server"),
        **bus,
    }


def _url(state: Path) -> str:
    """Where the API answers, by the settings that there are; "" before the first start."""
    path = state / "controller.toml"
    if not path.exists():
        return ""
    api = ControllerSettings.load(file=path, environ={}).api
    return f"https://{api.address}:{api.port}"


def _follow_url(state: Path, pki: Path, *, before: str) -> None:
    """Where the API has moved, the list's address and the client follow."""
    url, path, client = _url(state), state / "controller.toml", state / "client.toml"
    if url != before:
        settings = ControllerSettings.load(file=path, environ={})
        if not before or settings.site.url == before + _LIST_PATH:
            flags = {"site.url": url + _LIST_PATH}
            settings = ControllerSettings.load(file=path, flags=flags, environ={})
            _write(path, settings.as_toml())
    if url != before or not client.exists():
        own = tomllib.loads(client.read_text(encoding="utf-8")) if client.exists() else {}
        token = str(state / "admin.token")
        own = {"ca": str(pki / "site" / "ca.pem"), "token_file": token} | own | {"url": url}
        lines = [f"{key} = {json.dumps(value)}" for key, value in own.items()]
        _write(client, "\n".join(lines) + "\n")


def _write(path: Path, text: str, *, mode: int = 0o644) -> None:
    temporary = path.with_name(f".{path.name}.new")
    temporary.unlink(missing_ok=True)
    descriptor = os.open(temporary, os.O_WRONLY | os.O_CREAT | os.O_EXCL, mode)
    with os.fdopen(descriptor, "w", encoding="utf-8") as file:
        file.write(text)
    temporary.rename(path)
