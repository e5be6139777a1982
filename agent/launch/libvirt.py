"""Adapter to libvirt: the guests of one agent (see ``Hypervisor``)."""

from __future__ import annotations

import asyncio
import contextlib
import threading
from collections.abc import Collection, Iterator
from contextlib import suppress
from types import TracebackType
from typing import Any, Self
from xml.etree import ElementTree as ET

from agent.finishing import to_the_end
from agent.launch.channel import set_or_after
from agent.launch.domain import CONTROL, NAMESPACE, owner_of
from agent.launch.hypervisor import Domain, End, Usage
from agent.launch.libvirt_calls import Calls
from distrib.errors import DistribError, NetworkError, TimedOut

DEFAULT_URI = "qemu:///system"


class Libvirt:
    """The guests of one agent in one libvirt (see ``Hypervisor``).

    ``patience_s``: how long a guest is waited for while the daemon itself cannot be reached; a
    restarted libvirtd finds its guests again. ``poll_s``: how often a guest is asked for whether it
    runs still, ``soon_s`` where its end is near.
    """

    def __init__(
        self,
        uri: str = DEFAULT_URI,
        *,
        agent: str,
        call_timeout_s: float = 60.0,
        poll_s: float = 0.2,
        soon_s: float = 0.02,
        patience_s: float = 60.0,
    ) -> None:
        self._calls = Calls(uri, timeout_s=call_timeout_s)
        self._libvirt = self._calls.libvirt
        self._call = self._calls.call
        self.uri = uri
        self.agent = agent
        self._call_timeout_s = call_timeout_s
        self._poll_s = poll_s
        self._soon_s = soon_s
        self._patience_s = patience_s

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        await self.close()

    async def close(self) -> None:
        """Close the connections; guests go on."""
        await self._calls.close()

    @property
    def holds_files(self) -> bool:
        """QEMU does; Xen's console daemon serves all guests, and outlives them."""
        return self.uri.startswith("qemu")

    async def version(self) -> str:
        """The hypervisor's version, for ``doctor``. Raises NetworkError when it is not there."""
        number = await self._call("version", lambda connection: connection.getVersion())
        return f"{number // 1_000_000}.{number // 1000 % 1000}.{number % 1000}"

    async def start(self, xml: str, *, suspended: bool = False) -> Domain:
        flags = self._libvirt.VIR_DOMAIN_START_PAUSED if suspended else 0
        domain = self._domain_of_xml(xml)
        guard = threading.Lock()
        begun = abandoned = False
        done = threading.Event()

        def create(connection: Any) -> None:
            nonlocal begun
            with guard:
                if abandoned:
                    return
                begun = True
            try:
                connection.createXML(xml, flags)
            finally:
                done.set()

        async def undo(wait_first: bool) -> None:
            # A thread cannot be interrupted inside createXML; its guest is there only after.
            if wait_first:
                await asyncio.to_thread(done.wait, self._call_timeout_s)
            with suppress(DistribError):
                await self.destroy(domain)

        try:
            await self._call(f"start {domain.name}", create)
        except BaseException:
            with guard:
                abandoned = True
                pending = begun
            await to_the_end(undo(pending))
            raise
        return domain

    async def wait(self, domain: Domain, *, soon: asyncio.Event | None = None) -> End:
        soon = soon or asyncio.Event()
        unreachable_s = 0.0
        while True:
            try:
                end = await self._call(
                    f"state of {domain.name}", lambda connection: self._end(connection, domain)
                )
            except (NetworkError, TimedOut):
                unreachable_s += self._poll_s
                if unreachable_s > self._patience_s:
                    raise
            else:
                unreachable_s = 0.0
                if end is not None:
                    return end
            if unreachable_s:
                await asyncio.sleep(self._poll_s)
            elif soon.is_set():
                await asyncio.sleep(self._soon_s)
            else:
                await set_or_after(soon, self._poll_s)

    @contextlib.contextmanager
    def _unless_ended(self) -> Iterator[None]:
        """What is asked of a domain that ended by itself between two calls is not done."""
        try:
            yield
        except self._libvirt.libvirtError as error:
            if error.get_error_code() not in (
                self._libvirt.VIR_ERR_NO_DOMAIN,
                self._libvirt.VIR_ERR_OPERATION_INVALID,
            ):
                raise

    async def destroy(self, domain: Domain) -> None:
        def end(connection: Any) -> None:
            if (found := self._lookup(connection, domain)) is not None:
                with self._unless_ended():
                    found.destroy()

        await self._call(f"destroy {domain.name}", end)

    async def suspend(self, domain: Domain) -> None:
        await self._set_running(domain, running=False)

    async def resume(self, domain: Domain) -> None:
        await self._set_running(domain, running=True)

    async def _set_running(self, domain: Domain, *, running: bool) -> None:
        lib = self._libvirt

        def change(connection: Any) -> None:
            if (found := self._lookup(connection, domain)) is None:
                return
            with self._unless_ended():
                state, reason = found.state()
                paused = state == lib.VIR_DOMAIN_PAUSED and reason == lib.VIR_DOMAIN_PAUSED_USER
                if running and paused:
                    found.resume()
                elif not running and state == lib.VIR_DOMAIN_RUNNING:
                    found.suspend()

        await self._call(f"{'resume' if running else 'suspend'} {domain.name}", change)

    async def usage(self, domain: Domain) -> Usage | None:
        def look(connection: Any) -> Usage | None:
            if (found := self._lookup(connection, domain)) is None:
                return None
            usage: Usage | None = None
            with self._unless_ended():
                _, _, memory_kib, _, cpu_ns = found.info()
                read_bytes = written_bytes = 0
                if self.holds_files:
                    memory_kib = found.memoryStats().get("rss", 0)
                    # No name: all disks together. Xen knows neither.
                    _, read_bytes, _, written_bytes, _ = found.blockStats("")
                usage = Usage(cpu_ns / 1e9, memory_kib << 10, read_bytes, written_bytes)
            return usage

        return await self._call(f"statistics of {domain.name}", look)

    async def tell(self, domain: Domain, data: bytes) -> None:
        def write(connection: Any) -> None:
            if (found := self._lookup(connection, domain)) is None:
                return
            stream = connection.newStream(0)
            found.openChannel(CONTROL, stream, self._libvirt.VIR_DOMAIN_CHANNEL_FORCE)
            stream.send(data)
            stream.finish()

        await self._call(f"channel of {domain.name}", write)

    async def domains(self) -> tuple[Domain, ...]:
        """The guests of this agent, found by their metadata."""
        return await self._call("list of domains", self._ours)

    async def orphans(self, *, keep: Collection[str]) -> tuple[Domain, ...]:
        return tuple(domain for domain in await self.domains() if domain.lease not in keep)

    def _ours(self, connection: Any) -> tuple[Domain, ...]:
        ours = []
        for found in connection.listAllDomains(0):
            try:
                metadata = found.metadata(self._libvirt.VIR_DOMAIN_METADATA_ELEMENT, NAMESPACE, 0)
                name, uuid = found.name(), found.UUIDString()
            except self._libvirt.libvirtError:
                # Somebody else's domain, or one that has just ended.
                continue
            owner = owner_of(metadata)
            if owner is not None and owner.agent == self.agent:
                ours.append(Domain(name=name, uuid=uuid, lease=owner.lease))
        return tuple(ours)

    def _end(self, connection: Any, domain: Domain) -> End | None:
        lib = self._libvirt
        if (found := self._lookup(connection, domain)) is None:
            return End.GONE
        try:
            state, reason = found.state()
        except lib.libvirtError as error:
            # A transient domain is unknown as soon as it has powered off.
            if error.get_error_code() == lib.VIR_ERR_NO_DOMAIN:
                return End.GONE
            raise
        if state == lib.VIR_DOMAIN_PAUSED and reason == lib.VIR_DOMAIN_PAUSED_IOERROR:
            return End.DISK_FAULT
        if state == lib.VIR_DOMAIN_CRASHED or (
            # KVM's internal errors stop a guest for good; libvirt names no reason for that.
            state == lib.VIR_DOMAIN_PAUSED
            and reason in (lib.VIR_DOMAIN_PAUSED_CRASHED, lib.VIR_DOMAIN_PAUSED_UNKNOWN)
        ):
            return End.CRASHED
        return End.GONE if state == lib.VIR_DOMAIN_SHUTOFF else None

    def _lookup(self, connection: Any, domain: Domain) -> Any:
        try:
            return connection.lookupByUUIDString(domain.uuid)
        except self._libvirt.libvirtError as error:
            if error.get_error_code() == self._libvirt.VIR_ERR_NO_DOMAIN:
                return None
            raise

    def _domain_of_xml(self, xml: str) -> Domain:
        # Our own domain.to_xml wrote it.
        root = ET.fromstring(xml)  # noqa: S314
        launch = root.find(f"metadata/{{{NAMESPACE}}}launch")
        return Domain(
            name=root.findtext("name", ""),
            uuid=root.findtext("uuid", ""),
            lease="" if launch is None else launch.get("lease", ""),
        )
