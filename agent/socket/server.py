"""The server side of the local socket: one JSON object a line, one task a connection."""

from __future__ import annotations

import asyncio
import contextlib
import json
import os
import socket
from collections import Counter
from collections.abc import AsyncIterator, Awaitable, Callable, Collection, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

import structlog

from agent.socket.caller import Caller, caller_of, uid_of
from agent.socket.hangup import Hangups
from distrib.errors import DistribError, Forbidden, MessageInvalid, OperatorError

log = structlog.get_logger(__name__)

LINE_MAX_BYTES = 1 << 20
SOCKET_MODE = 0o666
IDLE_LIMIT_S = 3600.0
BACKLOG = 128
ACCEPT_AGAIN_S = 1.0

Args = Mapping[str, Any]


class Send(Protocol):
    """Lines before the answer."""

    async def __call__(self, answer: dict[str, object]) -> None: ...

    async def lend(self, answer: dict[str, object], fd: int) -> None:
        """A line that carries an open descriptor (SCM_RIGHTS, unix(7)); ``fd`` stays ours."""
        ...


@dataclass(frozen=True)
class Undoable:
    """A result that is taken back by ``undo`` when its caller cannot be told."""

    result: dict[str, object]
    undo: Callable[[], Awaitable[None]]


Operation = Callable[[Caller, Args, Send], Awaitable[dict[str, object] | Undoable]]


@dataclass(frozen=True)
class Bounds:
    """Connections at a time: of one user, and of all users together. Root and the agent's own
    user count by themselves, up to ``in_all``: nobody locks them out."""

    per_user: int = 64
    in_all: int = 512


class TooManyConnections(Forbidden):
    """A user, or all of them, hold as many connections as they may."""

    code = "too-many-connections"


class SocketServer:
    """Serves ``operations`` by name. ``async with server.running():`` is its lifetime."""

    def __init__(
        self,
        path: Path,
        operations: Mapping[str, Operation],
        *,
        admin_groups: Collection[str],
        bounds: Bounds | None = None,
    ) -> None:
        self._path = path
        self._operations = operations
        self._admin_groups = admin_groups
        self._bounds = bounds or Bounds()
        self._connections: set[asyncio.Task[None]] = set()
        self._held: Counter[int] = Counter()
        self._hangups = Hangups()

    @contextlib.asynccontextmanager
    async def running(self) -> AsyncIterator[None]:
        """Listen. Raises OperatorError when another agent has the socket."""
        await self._take_path()
        listener = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        with listener, self._hangups.watching():
            listener.setblocking(False)
            try:
                listener.bind(str(self._path))
                listener.listen(BACKLOG)
            except OSError as error:
                raise OperatorError(
                    f"socket {self._path}: {error.strerror or error}",
                    hint="check the setting `socket`",
                ) from None
            self._path.chmod(SOCKET_MODE)
            accepting = asyncio.create_task(self._accept_all(listener), name="socket")
            try:
                yield
            finally:
                tasks = (accepting, *self._connections)
                for task in tasks:
                    task.cancel()
                await asyncio.gather(*tasks, return_exceptions=True)
                self._path.unlink(missing_ok=True)

    async def _take_path(self) -> None:
        self._path.parent.mkdir(parents=True, exist_ok=True)
        if not self._path.is_socket():
            return
        try:
            _, writer = await asyncio.open_unix_connection(self._path)
        except OSError:
            self._path.unlink()
            return
        writer.close()
        raise OperatorError(
            f"socket {self._path}: another agent answers there", hint="one agent a node"
        )

    async def _accept_all(self, listener: socket.socket) -> None:
        failing = False
        while True:
            # Also where connections never run out, others have their turn.
            await asyncio.sleep(ACCEPT_AGAIN_S if failing else 0)
            try:
                connection, _ = await asyncio.get_running_loop().sock_accept(listener)
            except OSError as error:
                if not failing:
                    log.warning("accept-failed", why=error.strerror or str(error))
                failing = True
                continue
            failing = False
            self._begin(connection)

    def _begin(self, connection: socket.socket) -> None:
        try:
            connection.setblocking(False)
            uid = uid_of(connection)
            self._check_bounds(uid)
        except (OSError, TooManyConnections) as error:
            if isinstance(error, TooManyConnections):
                answer = {"v": 1, "ok": False, "error": error.as_dict()}
                with contextlib.suppress(OSError):
                    connection.send(json.dumps(answer).encode() + b"\n")
            connection.close()
            return
        self._held[uid] += 1
        task = asyncio.create_task(self._serve(connection), name="socket connection")
        self._connections.add(task)

        def ended(task: asyncio.Task[None]) -> None:
            self._connections.discard(task)
            self._held[uid] -= 1
            if not self._held[uid]:
                del self._held[uid]
            connection.close()  # a task that was ended before it began has not

        task.add_done_callback(ended)

    def _check_bounds(self, uid: int) -> None:
        own = {0, os.geteuid()}
        mine = self._held[uid]
        of_users = sum(count for other, count in self._held.items() if other not in own)
        if uid in own:
            full, who = mine >= self._bounds.in_all, f"uid {uid} has"
        elif mine >= self._bounds.per_user:
            full, who = True, f"uid {uid} has"
        else:
            full, who = of_users >= self._bounds.in_all, "all users together have"
        if full:
            raise TooManyConnections(
                f"socket: {who} as many connections as may be", hint="close some, or try again"
            )

    async def _serve(self, connection: socket.socket) -> None:
        loop = asyncio.get_running_loop()
        reader = asyncio.StreamReader(limit=LINE_MAX_BYTES)
        protocol = asyncio.StreamReaderProtocol(reader)
        transport, _ = await loop.connect_accepted_socket(lambda: protocol, connection)
        writer = asyncio.StreamWriter(transport, protocol, reader, loop)

        send = _Lines(writer)
        try:
            with self._hangups.of(connection) as gone:
                caller = caller_of(connection, admin_groups=self._admin_groups)
                while True:
                    async with asyncio.timeout(IDLE_LIMIT_S):
                        line = await _line(reader)
                    if line is None:
                        return
                    await self._answer(caller, line, gone, send)
        except (OSError, TimeoutError):
            return
        finally:
            writer.close()
            with contextlib.suppress(OSError):
                await writer.wait_closed()

    async def _answer(
        self, caller: Caller, line: bytes, gone: asyncio.Future[None], send: Send
    ) -> None:
        """Do one request; when the caller hangs up meanwhile, the operation is cancelled."""
        try:
            operation, args = self._parse(line)
            work = asyncio.ensure_future(operation(caller, args, send))
            try:
                either: tuple[asyncio.Future[Any], ...] = (work, gone)
                await asyncio.wait(either, return_when=asyncio.FIRST_COMPLETED)
                if not work.done():
                    raise ConnectionResetError
                done = work.result()
            finally:
                work.cancel()
                await asyncio.gather(work, return_exceptions=True)
        except DistribError as error:
            await send({"v": 1, "ok": False, "error": error.as_dict()})
        except (ConnectionError, TimeoutError, asyncio.CancelledError):
            raise
        except Exception as error:
            log.exception("bug", request=line[:200].decode(errors="replace"))
            bug = DistribError(
                f"{type(error).__name__}: {error}", hint="a bug: the agent's log has the traceback"
            )
            await send({"v": 1, "ok": False, "error": bug.as_dict()})
        else:
            result = done.result if isinstance(done, Undoable) else done
            try:
                await send({"v": 1, "ok": True, "result": result})
            except (OSError, asyncio.CancelledError):
                if isinstance(done, Undoable):
                    await done.undo()
                raise

    def _parse(self, line: bytes) -> tuple[Operation, Args]:
        try:
            request = json.loads(line)
            name, args = request["op"], request.get("args", {})
            fits = request["v"] == 1 and isinstance(args, dict)
            operation = self._operations.get(name)
        except (ValueError, KeyError, TypeError, RecursionError) as error:
            raise MessageInvalid(
                f"socket: not a request: {error}", hint="see docs/formats/socket.md"
            ) from None
        if not fits or operation is None:
            raise MessageInvalid(
                f"socket: no operation {str(name)[:40]!r} in version 1",
                hint=f"there are {', '.join(sorted(self._operations))}",
            )
        return operation, args


class _Lines:
    """Answers as lines on one connection."""

    def __init__(self, writer: asyncio.StreamWriter) -> None:
        self._writer = writer

    async def __call__(self, answer: dict[str, object]) -> None:
        self._writer.write(json.dumps(answer).encode() + b"\n")
        await self._writer.drain()

    async def lend(self, answer: dict[str, object], fd: int) -> None:
        # The descriptor goes past the transport's buffer, so that must be empty.
        self._writer.transport.set_write_buffer_limits(0)
        await self._writer.drain()
        line = json.dumps(answer).encode() + b"\n"
        connection = self._writer.get_extra_info("socket")
        with socket.socket(fileno=os.dup(connection.fileno())) as own:
            sent = socket.send_fds(own, [line], [fd])
        self._writer.write(line[sent:])
        await self._writer.drain()


async def _line(reader: asyncio.StreamReader) -> bytes | None:
    """The next line, None at the end. An overlong line ends the connection."""
    try:
        line = await reader.readline()
    except ValueError:
        return None
    return line or None
