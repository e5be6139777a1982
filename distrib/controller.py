"""The controller: catalogue, site list, rollouts and the API of a site, put together."""

from __future__ import annotations

import asyncio
import os
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack, asynccontextmanager
from datetime import timedelta
from pathlib import Path

import structlog
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from cryptography.hazmat.primitives.serialization import (
    Encoding,
    NoEncryption,
    PrivateFormat,
    load_pem_private_key,
)

from distrib.api.app import create_app
from distrib.api.server import serving
from distrib.api.services import Services
from distrib.catalogue.catalogue import Catalogue
from distrib.catalogue.clock import utc_now
from distrib.catalogue.identity import FollowedIdentity, SiteIdentity
from distrib.catalogue.passphrase import find_passphrase
from distrib.controller_settings import ControllerSettings
from distrib.db.schema import upgrade
from distrib.db.session import Database
from distrib.errors import ConfigInvalid, DistribError
from distrib.events.delivery import Delivery
from distrib.events.environment import Site
from distrib.lock import alone
from distrib.rollout.farm_map import FarmMaps
from distrib.rollout.service import Rollouts
from distrib.trust.directory import load_trust_directory

log = structlog.get_logger(__name__)

CRL_POLL_S = 5.0


class Controller:
    """The parts over one state directory. ``run`` until ``stop`` is set."""

    def __init__(self, settings: ControllerSettings, database: Database) -> None:
        self._settings = settings
        key = load_orders_key(settings.state_dir / "orders.key")
        self._loop = asyncio.get_running_loop()
        self._rollouts = Rollouts(
            database=database,
            bus=settings.bus,
            orders_key=key,
            silent_s=settings.rollout.silent_s,
            token_bps=settings.rollout.token_bps,
            prestage=settings.prestage,
            on_connect=self._tell_retained,
        )
        self._farm = FarmMaps(
            database=database,
            bus=self._rollouts.bus,
            key=key,
            state_dir=settings.state_dir,
            foreign=settings.farm.foreign,
            caps=settings.farm.caps,
            clock=utc_now,
        )
        catalogue = settings.catalogue
        identity = FollowedIdentity(
            lambda: SiteIdentity.load(
                site=settings.site.name,
                identifier=settings.site_list_identifier,
                url=settings.site.url,
                certificate=catalogue.cert,
                key=catalogue.key,
                passphrase=find_passphrase(catalogue.passphrase_file),
                controller_keys=(key.public_key(),),
                email=settings.site.email,
            ),
            tuple(filter(None, (catalogue.cert, catalogue.key, catalogue.passphrase_file))),
        )
        self._catalogue = Catalogue.open(
            database=database,
            state_dir=settings.state_dir,
            endorser_trust=settings.trust.endorsers,
            identity=identity,
            site_trust=lambda: load_trust_directory(settings.trust.site),
            crls=settings.trust.crls,
            policies=settings.trust.policies,
            grace=timedelta(seconds=settings.catalogue.supersede_grace_s),
            max_age_s=settings.site_list.max_age_s,
            resign_interval=timedelta(seconds=settings.site_list.resign_s),
            on_published=self._on_published,
            intake=settings.intake,
            proposals=settings.proposals,
        )
        self._events = Delivery(
            database=database,
            handlers=settings.events.handlers,
            site=self._event_site(database),
            clock=utc_now,
            keep=timedelta(seconds=settings.events.keep_s),
        )
        self._crls = b""
        self._app = create_app(
            Services(
                database=database,
                catalogue=self._catalogue,
                rollouts=self._rollouts,
                farm=self._farm,
                node_changed=self._node_changed,
                handlers=settings.events.handlers,
            )
        )

    async def run(self, stop: asyncio.Event) -> None:
        """Serve until ``stop``; then end the calls under way, and say what is still to be said."""
        settings = self._settings
        await asyncio.to_thread(self._events.register)
        # Who is shown a controller that is ready may count on a site list.
        await asyncio.to_thread(self._catalogue.publisher.publish_if_due)
        self._crls = await asyncio.to_thread(self._read_crls)
        async with AsyncExitStack() as stack:
            await stack.enter_async_context(self._rollouts.bus.running())
            await stack.enter_async_context(self._tasks(stop))
            port = await stack.enter_async_context(serving(self._app, settings.api))
            log.info("controller-serving", address=settings.api.address, port=port)
            if await self._synced(stop):
                log.info("controller-ready", address=settings.api.address, port=port)
            await stop.wait()
            log.info("controller-stopping")
            self._rollouts.end_watches()

    async def _synced(self, stop: asyncio.Event) -> bool:
        """Until the nodes are heard (True), or ``stop`` (False)."""
        steps = {asyncio.create_task(wait) for wait in (self._rollouts.synced(), stop.wait())}
        try:
            await asyncio.wait(steps, return_when=asyncio.FIRST_COMPLETED)
            return not stop.is_set()
        finally:
            for step in steps:
                step.cancel()

    @asynccontextmanager
    async def _tasks(self, stop: asyncio.Event) -> AsyncIterator[None]:
        steps = {
            "rollouts": self._rollouts.run(),
            "farm": self._farm.run(),
            "site list": self._catalogue.publisher.keep_fresh(),
            "subscriptions": self._catalogue.schedule.run(),
            "intake": self._catalogue.collector.run(),
            "proposals": self._catalogue.admission.run(),
            "crl": self._follow_crls(),
            "events": self._events.run(),
        }
        tasks = [asyncio.create_task(step, name=name) for name, step in steps.items()]
        for task in tasks:
            # A part that fails ends the process: whoever supervises it starts it again, clean.
            task.add_done_callback(lambda _task: stop.set())
        try:
            yield
        finally:
            failed = [task for task in tasks if task.done()]
            for task in tasks:
                task.cancel()
            await asyncio.gather(*tasks, return_exceptions=True)
            for task in failed:
                task.result()

    def _event_site(self, database: Database) -> Site:
        store = self._catalogue.store
        return Site(
            database=database.engine.url.render_as_string(hide_password=True),
            images=store.images,
            downloads=store.quarantine,
            certificates=self._settings.trust.endorsers,
            image_file=store.image_file,
            list_file=store.list_file,
        )

    async def _follow_crls(self) -> None:
        while True:
            await asyncio.sleep(CRL_POLL_S)
            try:
                crls = await asyncio.to_thread(self._read_crls)
            except DistribError as error:
                log.warning("crl-not-read", code=error.code, why=error.message)
                continue
            if crls != self._crls:
                self._crls = crls
                self._tell_retained()

    def _read_crls(self) -> bytes:
        material = load_trust_directory(self._settings.trust.site)
        return b"".join(crl.public_bytes(Encoding.PEM) for crl in material.crls)

    def _tell_retained(self) -> None:
        """CRL and site list, also to a broker that has lost them. In the loop's thread."""
        bus = self._rollouts.bus
        if self._crls:
            bus.retain(bus.topics.crl, self._crls)
        self._farm.tell()
        message = self._catalogue.publisher.current()
        if message is not None:
            bus.retain(bus.topics.site_list, message)

    def _node_changed(self, name: str) -> None:
        self._rollouts.node_changed(name)
        self._farm.changed()

    def _on_published(self, message: bytes) -> None:
        """Called in the thread that published."""
        bus = self._rollouts.bus
        self._loop.call_soon_threadsafe(bus.retain, bus.topics.site_list, message)
        self._rollouts.catalogue_changed()


async def run_controller(settings: ControllerSettings, stop: asyncio.Event) -> None:
    """Run the controller until ``stop`` is set.

    Raises ConfigInvalid for settings that cannot be used, Conflict where another controller has the
    state directory or a newer distrib wrote the database.
    """
    hint = "stop it first, or take another state_dir"
    with alone(settings.state_dir / "controller.lock", who="controller", hint=hint):
        database = Database(settings.database_url)
        try:
            await asyncio.to_thread(upgrade, database)
            await Controller(settings, database).run(stop)
        finally:
            database.close()


def load_orders_key(path: Path) -> Ed25519PrivateKey:
    """The key that signs orders; made at the first start (PEM, mode 0600).

    Raises ConfigInvalid for a file that holds another key, or none.
    """
    if not path.exists():
        path.parent.mkdir(parents=True, exist_ok=True)
        made = Ed25519PrivateKey.generate()
        pem = made.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, NoEncryption())
        temporary = path.with_name(f".{path.name}.new")
        temporary.unlink(missing_ok=True)
        descriptor = os.open(temporary, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
        with os.fdopen(descriptor, "wb") as file:
            file.write(pem)
            file.flush()
            os.fsync(descriptor)
        temporary.rename(path)
    try:
        key = load_pem_private_key(path.read_bytes(), password=None)
    except (OSError, ValueError) as error:
        raise ConfigInvalid(f"{path}: {error}"[:300], hint="restore it from the backup") from None
    if not isinstance(key, Ed25519PrivateKey):
        raise ConfigInvalid(f"{path} is no Ed25519 key", hint="restore it from the backup")
    return key
