"""Adapter to libvirt: every call in a worker thread, with a time limit, on a connection that no
other thread uses meanwhile.

libvirt's binding blocks and has no time limits of its own; a hung daemon costs the threads that
wait for it, never the event loop.
"""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Callable, Collection
from contextlib import suppress
from types import TracebackType
from typing import Any, Self, TypeVar
from xml.etree import ElementTree as ET

from agent.finishing import to_the_end
from agent.launch.domain import NAMESPACE, owner_of
from agent.launch.hypervisor import Domain, End
from distrib.errors import DistribError, LaunchFailed, NetworkError, TimedOut, ToolMissing

T = TypeVar("T")

DEFAULT_URI = "qemu:///system"


class Libvirt:
    """The guests of one agent in one libvirt (see ``Hypervisor``).

    ``patience_s``: how long a guest is waited for while the daemon itself cannot be reached; a
    restarted libvirtd finds its guests again.
    """

    def __init__(
        self,
        uri: str = DEFAULT_URI,
        *,
        agent: str,
        call_timeout_s: float = 60.0,
        poll_s: float = 0.2,
        patience_s: float = 60.0,
    ) -> None:
        try:
            # Only a node that launches guests has the binding.
            import libvirt  # noqa: PLC0415
        except ImportError as error:
            raise ToolMissing(
                "the libvirt binding for Python is not installed",
                hint="scripts/setup installs it; it must match the host's libvirt",
            ) from error
        # The default handler prints every error, also those that are expected, on stderr.
        libvirt.registerErrorHandler(lambda _context, _error: None, None)
        self._libvirt: Any = libvirt
        self.uri = uri
        self.agent = agent
        self._call_timeout_s = call_timeout_s
        self._poll_s = poll_s
        self._patience_s = patience_s
        self._idle: list[Any] = []
        self._lock = threading.Lock()
        self._closed = False

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
        with self._lock:
            self._closed = True
            idle, self._idle = self._idle, []
        for connection in idle:
            await asyncio.to_thread(self._close_connection, connection)

    async def version(self) -> str:
        """The hypervisor's version, for ``doctor``. Raises NetworkError when it is not there."""
        number = await self._call("version", lambda connection: connection.getVersion())
        return f"{number // 1_000_000}.{number // 1000 % 1000}.{number % 1000}"

    async def start(self, xml: str) -> Domain:
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
                connection.createXML(xml, 0)
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

    async def wait(self, domain: Domain) -> End:
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
            await asyncio.sleep(self._poll_s)

    async def destroy(self, domain: Domain) -> None:
        def end(connection: Any) -> None:
            if (found := self._lookup(connection, domain)) is not None:
                try:
                    found.destroy()
                except self._libvirt.libvirtError as error:
                    # It ended by itself between the two calls.
                    if error.get_error_code() not in (
                        self._libvirt.VIR_ERR_NO_DOMAIN,
                        self._libvirt.VIR_ERR_OPERATION_INVALID,
                    ):
                        raise

        await self._call(f"destroy {domain.name}", end)

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

    # Connections and threads ---------------------------------------------------------------

    async def _call(self, what: str, function: Callable[[Any], T]) -> T:
        try:
            async with asyncio.timeout(self._call_timeout_s):
                return await asyncio.to_thread(self._in_thread, what, function)
        except TimeoutError as error:
            raise TimedOut(
                f"libvirt did not answer within {self._call_timeout_s:g} s: {what}",
                hint=f"look at the log of libvirtd ({self.uri})",
            ) from error

    def _in_thread(self, what: str, function: Callable[[Any], T]) -> T:
        connection = self._take()
        try:
            result = function(connection)
        except self._libvirt.libvirtError as error:
            if self._usable(connection):
                self._give_back(connection)
                raise LaunchFailed(f"libvirt refused: {what}: {error}") from error
            self._close_connection(connection)
            raise self._unreachable(error) from error
        except BaseException:
            self._close_connection(connection)
            raise
        self._give_back(connection)
        return result

    def _take(self) -> Any:
        while True:
            with self._lock:
                connection = self._idle.pop() if self._idle else None
            if connection is None:
                break
            if self._usable(connection):
                return connection
            self._close_connection(connection)
        try:
            return self._libvirt.open(self.uri)
        except self._libvirt.libvirtError as error:
            raise self._unreachable(error) from error

    def _give_back(self, connection: Any) -> None:
        with self._lock:
            if not self._closed:
                self._idle.append(connection)
                return
        self._close_connection(connection)

    def _usable(self, connection: Any) -> bool:
        try:
            return bool(connection.isAlive())
        except self._libvirt.libvirtError:
            return False

    def _close_connection(self, connection: Any) -> None:
        # A connection that is broken already says so when it is closed.
        with suppress(self._libvirt.libvirtError):
            connection.close()

    def _unreachable(self, error: Exception) -> NetworkError:
        return NetworkError(
            f"libvirt cannot be reached at {self.uri}: {error}",
            hint="is libvirtd running, and may this account use its socket?",
        )
