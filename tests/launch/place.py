"""An agent's launcher, leases and socket over a cache that holds the small guest; no bus, no swarm.

It can be restarted, as an upgrade or a kill does, while its guests and its clients go on.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import shutil
import subprocess
import sys
from collections.abc import AsyncIterator, Callable
from dataclasses import replace
from pathlib import Path
from typing import Any, ClassVar, cast

from agent.authority import Authority
from agent.cache.cache import Cache
from agent.cache.file import FileStore
from agent.cache.records import ImageVersion
from agent.launches import Launches
from agent.launching import Launcher
from agent.operations import Operations
from agent.settings import AgentSettings
from agent.socket.server import SocketServer
from agent.upkeep import Upkeep
from distrib.trust.sitelist import SiteImage
from tests.trust.conftest import NOW, World

MIB = 1 << 20
COMMAND = (str(Path(sys.executable).parent / "distrib-agent"), "--socket")


class Listener:
    """Hears what would go out on the bus."""

    def event(self, *_: object, **__: object) -> None: ...

    def changed(self) -> None: ...


class Agent:
    """What of an agent launches: made anew at every start, over the same directories."""

    def __init__(self, root: Path, world: World, guest: Path, settings: dict[str, Any]) -> None:
        self.root = root
        self.world = world
        self.socket = root / "s"
        self.settings = AgentSettings.load(
            file=None,
            flags={
                "node": "node1",
                "state_dir": str(root / "state"),
                "cache.cow_bytes": str(64 * MIB),
                "launch.memory_mib": "128",
                "launch.hypervisor": "qemu",
                **settings,
            },
        )
        self.images = world.site_list().images
        self._guest = guest
        self._stack = contextlib.AsyncExitStack()
        self.cache: Cache = cast(Any, None)
        self.launches: Launches = cast(Any, None)
        self.launcher: Launcher = cast(Any, None)

    @property
    def image(self) -> SiteImage:
        return self.images[0]

    async def start(self) -> None:
        self.cache = await asyncio.to_thread(self._cache)
        authority = Authority(
            self.root / "state",
            node="node1",
            trust=self.world.site_trust,
            max_age_s=72 * 3600,
            clock_skew_s=300,
            clock=lambda: NOW,
        )
        authority.site_list = replace(self.world.site_list(), images=self.images)
        authority._authentic = True
        self.launcher = Launcher(self.settings, clock=lambda: NOW)
        operations = self._operations(authority)
        self.launcher.adopt({lease.lease: lease for lease in self.cache.leases()})
        server = SocketServer(self.socket, operations.table, admin_groups=())
        self._stack = contextlib.AsyncExitStack()
        await self._stack.enter_async_context(server.running())

    def _operations(self, authority: Authority) -> Operations:
        return Operations(
            self.settings,
            authority=authority,
            cache=self.cache,
            upkeep=lambda _resolve: cast(Upkeep, _NoUpkeep),
            launches=self._launches,
            reporter=cast(Any, Listener()),
            scrubbed=dict,
            clock=lambda: NOW,
        )

    def _launches(self, giving: Any) -> Launches:
        self.launches = Launches(
            self.settings,
            giving=giving,
            cache=self.cache,
            launcher=self.launcher,
            reporter=cast(Any, Listener()),
        )
        return self.launches

    async def stop(self) -> None:
        """What a kill leaves: nothing is said to guests or written to disk."""
        self.launcher.leave()
        await self._stack.aclose()
        await self.launcher.close()

    def _cache(self) -> Cache:
        store = FileStore(self.root / "cache", 1 << 30)
        cache = Cache(state_dir=self.root / "state", stores=[store], clock=lambda: NOW)
        cache.recover()
        image = self.image
        if cache.record(image.infohash) is None:
            size = self._guest.stat().st_size
            version = ImageVersion(
                image.infohash, image.identifier, image.version, image.sha512, size, 256 * 1024
            )
            cache.desire(version, active=True)
            cache.start_pull(image.infohash)
            path = next((self.root / "cache" / "volumes").rglob("image.raw"))
            with path.open("r+b") as target, self._guest.open("rb") as source:
                shutil.copyfileobj(source, target)
            cache.to_verifying(image.infohash)
            cache.ready(image.infohash)
            cache.activate(image.infohash)
        return cache

    # -- clients --------------------------------------------------------------------------------

    @contextlib.asynccontextmanager
    async def client(
        self, *arguments: str, script: str = "", cwd: Path | None = None
    ) -> AsyncIterator[asyncio.subprocess.Process]:
        """``distrib-agent ARGUMENTS``, its standard input being ``script``."""
        process = await asyncio.create_subprocess_exec(
            *COMMAND,
            str(self.socket),
            *arguments,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            cwd=cwd,
        )
        assert process.stdin is not None
        process.stdin.write(script.encode())
        process.stdin.close()
        try:
            yield process
        finally:
            if process.returncode is None:
                process.kill()
                await process.communicate()

    async def run(self, *arguments: str, script: str = "") -> tuple[int, bytes, bytes]:
        """Exit status, output, standard error."""
        async with self.client(*arguments, script=script) as process:
            out, err = await process.communicate()
            assert process.returncode is not None
            return process.returncode, out, err

    def launched(self) -> list[str]:
        """Leases with a directory of a launch."""
        run = self.root / "state" / "run"
        return sorted(path.name for path in run.iterdir()) if run.exists() else []

    async def nothing_left(self) -> None:
        """Returns once no launch, lease or instance is left."""
        await until(lambda: not (self.launched() or self.cache.leases() or self._instances()))

    def _instances(self) -> list[str]:
        return [path.name for path in (self.root / "cache" / "instances").iterdir()]

    def run_log(self) -> list[dict[str, Any]]:
        return list(self.launcher.runlog.lines())


class _NoUpkeep:
    table: ClassVar[dict[str, Any]] = {}


async def until(condition: Callable[[], bool], limit_s: float = 60) -> None:
    """What another task brings about."""
    async with asyncio.timeout(limit_s):
        while not condition():  # noqa: ASYNC110 - nobody tells of it
            await asyncio.sleep(0.05)


def contents(path: str) -> bytes:
    """The bytes of a file."""
    return Path(path).read_bytes()


def outcome(path: Path) -> dict[str, Any]:
    """What ``--accounting`` wrote."""
    read: dict[str, Any] = json.loads(path.read_text())
    return read
