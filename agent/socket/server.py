"""The server side of the local socket: one JSON object a line, one task a connection."""

from __future__ import annotations

import asyncio
import contextlib
import json
from collections.abc import AsyncIterator, Awaitable, Callable, Collection, Mapping
from pathlib import Path
from typing import Any

import structlog

from agent.socket.caller import Caller, caller_of
from distrib.errors import DistribError, MessageInvalid, OperatorError

log = structlog.get_logger(__name__)

LINE_MAX_BYTES = 1 << 20
SOCKET_MODE = 0o666
IDLE_LIMIT_S = 3600.0

Args = Mapping[str, Any]
Send = Callable[[dict[str, object]], Awaitable[None]]
Operation = Callable[[Caller, Args, Send], Awaitable[dict[str, object]]]


class SocketServer:
    """Serves ``operations`` by name. ``async with server.running():`` is its lifetime."""

    def __init__(
        self, path: Path, operations: Mapping[str, Operation], *, admin_groups: Collection[str]
    ) -> None:
        self._path = path
        self._operations = operations
        self._admin_groups = admin_groups
        self._connections: set[asyncio.Task[None]] = set()

    @contextlib.asynccontextmanager
    async def running(self) -> AsyncIterator[None]:
        """Listen. Raises OperatorError when another agent has the socket."""
        await self._take_path()
        try:
            server = await asyncio.start_unix_server(
                self._accept, path=self._path, limit=LINE_MAX_BYTES
            )
        except OSError as error:
            raise OperatorError(
                f"socket {self._path}: {error.strerror}", hint="check the setting `socket`"
            ) from None
        self._path.chmod(SOCKET_MODE)
        try:
            yield
        finally:
            server.close()
            for task in self._connections:
                task.cancel()
            await asyncio.gather(*self._connections, return_exceptions=True)
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

    def _accept(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        task = asyncio.create_task(self._serve(reader, writer), name="socket connection")
        self._connections.add(task)
        task.add_done_callback(self._connections.discard)

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        async def send(answer: dict[str, object]) -> None:
            writer.write(json.dumps(answer).encode() + b"\n")
            await writer.drain()

        try:
            caller = caller_of(writer.get_extra_info("socket"), admin_groups=self._admin_groups)
            while True:
                async with asyncio.timeout(IDLE_LIMIT_S):
                    line = await _line(reader)
                if line is None:
                    return
                await self._answer(caller, line, reader, send)
        except (ConnectionError, TimeoutError):
            return
        finally:
            writer.close()
            with contextlib.suppress(ConnectionError):
                await writer.wait_closed()

    async def _answer(
        self, caller: Caller, line: bytes, reader: asyncio.StreamReader, send: Send
    ) -> None:
        """Do one request; when the caller hangs up meanwhile, the operation is cancelled."""
        try:
            operation, args = self._parse(line)
            work = asyncio.ensure_future(operation(caller, args, send))
            gone = asyncio.create_task(_hangup(reader), name="socket hang-up")
            try:
                await asyncio.wait({work, gone}, return_when=asyncio.FIRST_COMPLETED)
                if not work.done():
                    raise ConnectionResetError
                result = work.result()
            finally:
                gone.cancel()
                work.cancel()
                await asyncio.gather(gone, work, return_exceptions=True)
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
            await send({"v": 1, "ok": True, "result": result})

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


async def _line(reader: asyncio.StreamReader) -> bytes | None:
    """The next line, None at the end. An overlong line ends the connection."""
    try:
        line = await reader.readline()
    except ValueError:
        return None
    return line or None


async def _hangup(reader: asyncio.StreamReader) -> None:
    """Return when the peer closes. Requests are not pipelined: what is sent early is dropped."""
    while await reader.read(4096):
        pass
