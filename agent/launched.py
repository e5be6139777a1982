"""A launch under way: its guest, and whoever follows it.

The guest is the agent's, the client only follows. A client that hangs up ends it; an agent that
goes leaves it, and the next one takes it up and waits for the client to come again.
"""

from __future__ import annotations

import asyncio
import base64
import shutil
from collections.abc import Awaitable, Callable, Mapping
from dataclasses import replace
from datetime import UTC, datetime
from pathlib import Path

import structlog

from agent.cache import durable
from agent.cache.holders import alive
from agent.launch import channel
from agent.launch.guest import Guest
from agent.launch.record import LaunchRecord, Outcome, save_outcome, save_record
from agent.launch.spec import JobResult, JobSpec, RunFiles
from agent.socket.server import Send
from distrib.errors import DiskFull, DistribError, LaunchFailed, StorageFailed, TimedOut

log = structlog.get_logger(__name__)

CLIENT_LOOK_S = 1.0
INPUT_IDLE_S = 120.0

Ended = Callable[["Launched", Outcome], Awaitable[None]]


class Launched:
    """``run`` from the start of the guest until its client was told how it ended.

    ``on_ended``: called once with the outcome, before the client is told; ``on_over``: when
    nothing of the launch is left. ``reconnect_s``: how long a client that is away is waited for."""

    def __init__(
        self,
        record: LaunchRecord,
        files: RunFiles,
        guest: Guest,
        *,
        reconnect_s: float,
        on_ended: Ended,
        on_over: Callable[[Launched], Awaitable[None]],
        outcome: Outcome | None = None,
    ) -> None:
        self.record = record
        self.guest = guest
        self.files = files
        self.leaving = False
        self.guest_gone = asyncio.Event()
        self.over = asyncio.Event()
        self.outcome = outcome
        self._reconnect_s = reconnect_s
        self._on_ended = on_ended
        self._on_over = on_over
        self._follower: asyncio.Task[object] | None = None
        self._arrived = asyncio.Event()
        self._ended = asyncio.Event()
        self._told = asyncio.Event()
        self._news = asyncio.Event()
        self._inputs: dict[str, asyncio.Event] = {}

    def phase(self, _name: str, _after_s: float) -> None:
        """There is a new phase to tell of."""
        self._news.set()

    # -- its life -------------------------------------------------------------------------------

    async def run(self, spec: JobSpec | None) -> None:
        """``spec``: of a guest to start; None for one that runs. Cancellation leaves the guest."""
        if self.outcome is None:
            self.outcome = await self._to_its_outcome(spec)
            await self._on_ended(self, self.outcome)
            try:
                await asyncio.to_thread(save_outcome, self.files, self.outcome)
            except DistribError as error:
                log.warning("outcome-not-kept", lease=self.record.lease, why=error.message)
        self._ended.set()
        self._news.set()
        await self._wait_until_told()
        # The hypervisor hears of the end later than we do, and a name that it knows cannot be used
        # by the next guest of the lease.
        await self._destroy()
        await asyncio.to_thread(shutil.rmtree, self.files.directory, ignore_errors=True)
        await self._on_over(self)
        self.over.set()

    @property
    def told(self) -> bool:
        """Whether its client knows how it ended: nothing but cleaning up is left."""
        return self._told.is_set()

    async def _wait_until_told(self) -> None:
        away_s = 0.0
        while not self._told.is_set():
            if self._follower is not None:
                away_s = 0.0
            elif away_s >= self._reconnect_s or not await asyncio.to_thread(self._client_lives):
                log.warning("client-not-back", lease=self.record.lease)
                return
            try:
                async with asyncio.timeout(CLIENT_LOOK_S):
                    await self._told.wait()
            except TimeoutError:
                away_s += CLIENT_LOOK_S

    async def _to_its_outcome(self, spec: JobSpec | None) -> Outcome:
        watching = asyncio.create_task(self._watch_client(), name="client")
        try:
            if spec is not None:
                await self._wait_for_inputs()
                await self.guest.start(spec)
                self.record = replace(self.record, phases=dict(self.guest.phases))
                await asyncio.to_thread(save_record, self.files, self.record)
            end = await self.guest.supervise()
            self.guest_gone.set()
            return await asyncio.to_thread(self.guest.judge, end)
        except DistribError as error:
            await self._destroy()
            return error
        except FileNotFoundError:
            await self._destroy()
            return LaunchFailed("the agent ended while the guest was being started")
        except OSError as error:
            await self._destroy()
            return _disk_fault(error)
        except Exception as error:
            # A bug of ours must not leave a guest behind, nor a client without an answer.
            log.exception("bug", lease=self.record.lease)
            await self._destroy()
            return DistribError(
                f"{type(error).__name__}: {error}", hint="a bug: the agent's log has the traceback"
            )
        finally:
            watching.cancel()
            self.guest_gone.set()

    async def _destroy(self) -> None:
        """No guest is left, and none is known; as far as the hypervisor answers."""
        try:
            await self.guest.destroy()
        except DistribError as error:
            log.warning("guest-not-ended", lease=self.record.lease, why=error.message)

    async def _watch_client(self) -> None:
        """End a guest whose client is away for too long, or dead."""
        while True:
            away_s = 0.0
            while self._follower is None:
                if away_s >= self._reconnect_s or not await asyncio.to_thread(self._client_lives):
                    self.guest.stop(
                        LaunchFailed("whoever launched the guest is gone", lease=self.record.lease)
                    )
                    return
                self._arrived.clear()
                try:
                    async with asyncio.timeout(CLIENT_LOOK_S):
                        await self._arrived.wait()
                except TimeoutError:
                    away_s += CLIENT_LOOK_S
            await asyncio.sleep(CLIENT_LOOK_S)

    def _client_lives(self) -> bool:
        return alive(self.record.client, datetime.now(UTC))

    def client_is_stopped(self) -> bool:
        """Whether its client was stopped by a signal (state T of proc(5))."""
        try:
            line = Path(f"/proc/{self.record.client.pid}/stat").read_text(errors="replace")
        except OSError:
            return False
        fields = line.rpartition(")")[2].split()
        return fields[0] == "T" and int(fields[19]) == self.record.client.start_time

    def abandon(self) -> None:
        """Its client could not be told of it."""
        if not self.leaving:
            self.guest.stop(LaunchFailed("its client hung up", lease=self.record.lease))
            self._told.set()

    # -- inputs ---------------------------------------------------------------------------------

    def want(self, names: tuple[str, ...]) -> None:
        """These inputs are to come before the guest starts."""
        for name in names:
            channel.create(self.files.given(name))
            self._inputs[name] = asyncio.Event()

    async def put(self, name: str, data: bytes, *, last: bool, limit_bytes: int) -> None:
        """Append to an input. Raises LaunchFailed for one that is not wanted or too large."""
        arrived = self._inputs.get(name)
        if arrived is None or arrived.is_set():
            raise LaunchFailed(f"launch {self.record.lease} does not wait for {name}")
        path = self.files.given(name)

        def append() -> None:
            if path.stat().st_size + len(data) > limit_bytes:
                raise LaunchFailed(
                    f"{name}: more than {limit_bytes} bytes",
                    hint="bring large files by storage (launch.files_limit_bytes)",
                )
            with path.open("ab") as file:
                file.write(data)

        try:
            await asyncio.to_thread(append)
        except OSError as error:
            raise _disk_fault(error) from None
        self._news.set()
        if last:
            arrived.set()

    async def _wait_for_inputs(self) -> None:
        for name, arrived in self._inputs.items():
            try:
                async with asyncio.timeout(INPUT_IDLE_S):
                    await arrived.wait()
            except TimeoutError:
                raise TimedOut(
                    f"{name} of the job did not arrive in {INPUT_IDLE_S:g} s",
                    lease=self.record.lease,
                ) from None

    # -- following ------------------------------------------------------------------------------

    async def follow(self, send: Send, offsets: Mapping[str, int], *, owner: bool) -> JobResult:
        """Pass on what the guest says from ``offsets`` on, and how it ended.

        ``owner``: the client whose end is the guest's end; a later one takes its place. Raises the
        fault that ended the launch."""
        task = asyncio.current_task()
        if owner:
            self._follower = task
            self._arrived.set()
        try:
            await self._phases_to(send, until="prepared")
            await self._streams_to(send, offsets)
            if owner and self.record.returns_files:
                await self._pump("files", send, offsets)
        except BaseException:
            if owner and self._follower is task:
                self._follower = None
                self.abandon()
            raise
        if owner and self._follower is task:
            self._told.set()
        outcome = self.outcome
        if isinstance(outcome, JobResult):
            return outcome
        assert outcome is not None  # noqa: S101 - ended
        raise outcome

    async def _streams_to(self, send: Send, offsets: Mapping[str, int]) -> None:
        try:
            async with asyncio.TaskGroup() as group:
                group.create_task(self._phases_to(send), name="phases")
                for name in ("stdout", "stderr"):
                    group.create_task(self._pump(name, send, offsets), name=name)
        except BaseExceptionGroup as error:
            # A client that is gone is gone for all three.
            raise error.exceptions[0] from None

    async def _pump(self, name: str, send: Send, offsets: Mapping[str, int]) -> None:
        async def pass_on(data: bytes) -> None:
            await send({"stream": name, "data": base64.b64encode(data).decode()})

        limits = self.record.limits
        path = self.files.directory / name
        if not path.exists():
            return
        await channel.pump(
            path,
            pass_on,
            ended=self._ended,
            poll_s=limits.poll_s,
            limit_bytes=limits.files_bytes if name == "files" else limits.output_bytes,
            offset=offsets.get(name, 0),
        )

    async def _phases_to(self, send: Send, *, until: str = "") -> None:
        told: set[str] = set()
        while True:
            self._news.clear()
            for name, after_s in tuple(self.guest.phases.items()):
                if name not in told:
                    told.add(name)
                    if until != name:
                        await send({"phase": name, "after_s": after_s})
            if until in told or self._ended.is_set():
                return
            try:
                async with asyncio.timeout(CLIENT_LOOK_S):
                    await self._news.wait()
            except TimeoutError:
                continue


def _disk_fault(error: OSError) -> DistribError:
    if error.errno in durable.NO_ROOM:
        return DiskFull(
            f"no room for the files of a launch: {error}", hint="free space below state_dir"
        )
    return StorageFailed(f"a file of a launch: {error}", hint="the node's disk and its log")
