"""A child process that is kept running, and that never outlives us.

The program is restarted with back-off when it ends, its lines are handed on, and it is ended with
us: SIGTERM, then SIGKILL. Should we be killed ourselves, the kernel sends it SIGTERM (prctl(2),
PR_SET_PDEATHSIG). One that ends before it was ever ready is not tried again: somebody must look.
"""

from __future__ import annotations

import asyncio
import contextlib
import ctypes
import os
import signal
from collections.abc import AsyncIterator, Callable, Sequence
from contextlib import asynccontextmanager

import structlog

from distrib.errors import ConfigInvalid, NodeError, TimedOut

log = structlog.get_logger(__name__)

FIRST_WAIT_S = 0.2
LONGEST_WAIT_S = 15.0
STEADY_S = 10.0
LINE_MAX_BYTES = 1 << 20

_PR_SET_PDEATHSIG = 1
_libc = ctypes.CDLL(None, use_errno=True)


class ChildFailed(NodeError):
    """A service of ours ended before it was ready."""

    code = "child-failed"


class Child:
    """One supervised program.

    ``on_line`` gets every line that it writes; ``is_ready`` says of a line whether the program is
    ready from here on. ``ready`` is set while it is.
    """

    def __init__(
        self,
        name: str,
        argv: Sequence[str],
        *,
        is_ready: Callable[[str], bool],
        on_line: Callable[[str], None],
        stop_s: float = 3.0,
    ) -> None:
        self.name = name
        self.ready = asyncio.Event()
        self.starts = 0
        self.pid: int | None = None
        self._argv = tuple(argv)
        self._is_ready = is_ready
        self._on_line = on_line
        self._stop_s = stop_s
        self._was_ready = False
        self._last_lines: list[str] = []

    @asynccontextmanager
    async def running(self, *, ready_s: float = 20.0) -> AsyncIterator[None]:
        """Run it until the block is left; the block begins when it is ready.

        Raises ChildFailed when it ends, and TimedOut when ``ready_s`` have passed, before that.
        """
        task = asyncio.create_task(self.supervise(), name=f"child {self.name}")
        try:
            await self._await_ready(task, ready_s)
            yield
        finally:
            task.cancel()
            with contextlib.suppress(asyncio.CancelledError, ChildFailed):
                await task

    async def supervise(self) -> None:
        """Run it again and again; cancel this to end it.

        Raises ChildFailed when it ends before it was ever ready."""
        loop = asyncio.get_running_loop()
        wait_s = FIRST_WAIT_S
        while True:
            started = loop.time()
            status = await self._run_once()
            if not self._was_ready:
                raise self._failure(status)
            if loop.time() - started > STEADY_S:
                wait_s = FIRST_WAIT_S
            log.warning("child-ended", child=self.name, status=status, again_in_s=wait_s)
            await asyncio.sleep(wait_s)
            wait_s = min(2 * wait_s, LONGEST_WAIT_S)

    async def _await_ready(self, task: asyncio.Task[None], limit_s: float) -> None:
        ready = asyncio.create_task(self.ready.wait(), name=f"child {self.name} ready")
        try:
            done, _ = await asyncio.wait(
                {task, ready}, timeout=limit_s, return_when=asyncio.FIRST_COMPLETED
            )
        finally:
            ready.cancel()
        if task in done:
            task.result()
        if not done:
            raise TimedOut(
                f"{self.name} was not ready within {limit_s:g} s{self._said()}",
                hint="its log says more",
                child=self.name,
            )

    def _failure(self, status: int) -> ChildFailed:
        return ChildFailed(
            f"{self.name} ended with status {status} before it was ready{self._said()}",
            hint="mend that, and start again",
            child=self.name,
            status=status,
        )

    def _said(self) -> str:
        return f": {self._last_lines[-1]}" if self._last_lines else ""

    async def _run_once(self) -> int:
        self.starts += 1
        parent = os.getpid()
        try:
            process = await asyncio.create_subprocess_exec(
                *self._argv,
                stdin=asyncio.subprocess.DEVNULL,
                stdout=asyncio.subprocess.PIPE,
                stderr=asyncio.subprocess.STDOUT,
                limit=LINE_MAX_BYTES,
                preexec_fn=lambda: _die_with(parent),
            )
        except OSError as error:
            raise ConfigInvalid(
                f"{self._argv[0]}: {error.strerror}", hint="is it installed and executable?"
            ) from None
        self.pid = process.pid
        try:
            await self._read_lines(process)
            return await process.wait()
        finally:
            self.ready.clear()
            self.pid = None
            if process.returncode is None:
                await asyncio.shield(self._end(process))

    async def _read_lines(self, process: asyncio.subprocess.Process) -> None:
        assert process.stdout is not None  # noqa: S101
        while True:
            try:
                raw = await process.stdout.readline()
            except ValueError:  # a line longer than LINE_MAX_BYTES: dropped
                continue
            if not raw:
                return
            line = raw.decode(errors="replace").rstrip()
            self._last_lines = [*self._last_lines[-4:], line]
            self._on_line(line)
            if self._is_ready(line):
                self._was_ready = True
                self.ready.set()

    async def _end(self, process: asyncio.subprocess.Process) -> None:
        with contextlib.suppress(ProcessLookupError):
            process.send_signal(signal.SIGTERM)
        try:
            async with asyncio.timeout(self._stop_s):
                # Its last words are read, so that a full pipe cannot keep it from ending.
                await self._read_lines(process)
                await process.wait()
        except TimeoutError:
            log.warning("child-killed", child=self.name, after_s=self._stop_s)
            with contextlib.suppress(ProcessLookupError):
                process.kill()
            await process.wait()


def _die_with(parent: int) -> None:
    """In the child, before exec: SIGTERM when the parent dies, also if it died just now."""
    _libc.prctl(_PR_SET_PDEATHSIG, signal.SIGTERM)
    if os.getppid() != parent:
        os._exit(1)
