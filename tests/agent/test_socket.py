"""The local socket: callers by their uid, hostile lines, callers that hang up."""

from __future__ import annotations

import asyncio
import contextlib
import errno
import json
import os
import socket
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import pytest
import structlog

from agent.socket.caller import Caller
from agent.socket.client import AgentError, ask
from agent.socket.server import LINE_MAX_BYTES, Args, Bounds, Send, SocketServer, Undoable
from distrib.errors import Forbidden, NetworkError, OperatorError


class Served:
    """Operations that tell what happened to them."""

    def __init__(self) -> None:
        self.began = asyncio.Event()
        self.cancelled = asyncio.Event()
        self.finish = asyncio.Event()
        self.undone = asyncio.Event()

    async def who(self, caller: Caller, args: Args, send: Send) -> dict[str, object]:
        await send({"phase": "asked"})
        return {"user": caller.user, "admin": caller.admin, "pid": caller.pid}

    async def hang(self, caller: Caller, args: Args, send: Send) -> dict[str, object]:
        self.began.set()
        try:
            await asyncio.Event().wait()
        finally:
            self.cancelled.set()
        return {}

    async def slow(self, caller: Caller, args: Args, send: Send) -> Undoable:
        """Ends when told, whatever its caller does."""
        self.began.set()
        with contextlib.suppress(asyncio.CancelledError):
            await self.finish.wait()

        async def undo() -> None:
            self.undone.set()

        return Undoable({"slow": True}, undo)

    async def broken(self, caller: Caller, args: Args, send: Send) -> dict[str, object]:
        raise ZeroDivisionError

    async def admin(self, caller: Caller, args: Args, send: Send) -> dict[str, object]:
        caller.require_admin("this")
        return {}


@pytest.fixture
async def served(tmp_path: Path) -> AsyncIterator[tuple[Path, Served]]:
    operations = Served()
    path = tmp_path / "run" / "agent.sock"
    table = {name: getattr(operations, name) for name in ("who", "hang", "slow", "broken", "admin")}
    async with SocketServer(path, table, admin_groups=()).running():
        yield path, operations


async def test_a_caller_is_who_the_kernel_says(served: tuple[Path, Served]) -> None:
    lines: list[dict[str, object]] = []
    answer = await asyncio.to_thread(ask, served[0], "who", on_line=lines.append)
    assert answer["pid"] == os.getpid()
    assert answer["admin"] is True
    assert lines == [{"phase": "asked"}]


@pytest.mark.root
async def test_another_user_may_ask_and_not_everything(served: tuple[Path, Served]) -> None:
    for parent in (served[0].parent, *served[0].parent.parents):
        if str(parent).startswith("/tmp/pytest"):
            parent.chmod(0o755)
    script = (
        "import json,os,socket,sys; os.setgid(65534); os.setuid(65534);"
        "s=socket.socket(socket.AF_UNIX); s.connect(sys.argv[1]); f=s.makefile('rwb')\n"
        "for op in ('who','admin'):\n"
        "  f.write(json.dumps({'v':1,'op':op}).encode()+b'\\n'); f.flush()\n"
        "  line=json.loads(f.readline())\n"
        "  while 'ok' not in line: line=json.loads(f.readline())\n"
        "  print(json.dumps(line))\n"
    )
    child = await asyncio.create_subprocess_exec(
        "/usr/bin/python3", "-c", script, str(served[0]), stdout=asyncio.subprocess.PIPE
    )
    out, _ = await child.communicate()
    who, admin = (json.loads(line) for line in out.splitlines())
    assert who["result"]["admin"] is False
    assert admin["error"]["code"] == Forbidden.code
    assert admin["error"]["exit"] == 9


@pytest.mark.parametrize(
    "line",
    [
        b"rubbish",
        b"{}",
        b"[1]",
        b'{"v": 2, "op": "who"}',
        b'{"v": 1, "op": "no"}',
        b'{"v": 1, "op": "who", "args": 3}',
        b'{"v": 1, "op": ["who"]}',
        b"[" * 50_000,
    ],
)
async def test_hostile_lines_get_one_line_and_the_next_request_is_served(
    served: tuple[Path, Served], line: bytes
) -> None:
    reader, writer = await asyncio.open_unix_connection(served[0])
    writer.write(line + b"\n")
    answer = json.loads(await reader.readline())
    assert answer["ok"] is False
    assert answer["error"]["code"] == "message-invalid"
    writer.write(b'{"v": 1, "op": "who"}\n')
    assert json.loads(await reader.readline()) == {"phase": "asked"}
    writer.close()


async def test_an_endless_line_ends_the_connection(served: tuple[Path, Served]) -> None:
    reader, writer = await asyncio.open_unix_connection(served[0])
    try:
        writer.write(b"x" * (LINE_MAX_BYTES + 10))
        await writer.drain()
        assert await reader.read() == b""
    except ConnectionError:
        pass
    finally:
        writer.close()


async def test_an_operation_ends_when_its_caller_hangs_up(served: tuple[Path, Served]) -> None:
    path, operations = served
    client = socket.socket(socket.AF_UNIX)
    client.connect(str(path))
    client.sendall(b'{"v": 1, "op": "hang"}\n')
    await operations.began.wait()
    client.close()
    async with asyncio.timeout(5):
        await operations.cancelled.wait()


async def test_a_bug_is_told_as_one_and_does_not_end_the_agent(
    served: tuple[Path, Served],
) -> None:
    with pytest.raises(AgentError, match="ZeroDivisionError") as caught:
        await asyncio.to_thread(ask, served[0], "broken")
    assert caught.value.exit_status == 1
    await asyncio.to_thread(ask, served[0], "who")


async def test_no_agent_and_a_second_agent_are_said_in_one_line(
    served: tuple[Path, Served], tmp_path: Path
) -> None:
    with pytest.raises(NetworkError, match="agent at"):
        await asyncio.to_thread(ask, tmp_path / "nothing", "who")
    with pytest.raises(OperatorError, match="another agent"):
        async with SocketServer(served[0], {}, admin_groups=()).running():
            pass


async def test_a_client_that_ends_its_sending_side_gets_its_answer(
    served: tuple[Path, Served],
) -> None:
    path, operations = served
    reader, writer = await asyncio.open_unix_connection(path)
    writer.write(b'{"v": 1, "op": "slow"}\n')
    writer.write_eof()
    await operations.began.wait()
    await asyncio.to_thread(ask, path, "who")
    operations.finish.set()
    assert json.loads(await reader.readline())["result"] == {"slow": True}
    assert await reader.read() == b""
    writer.close()
    assert not operations.undone.is_set()


async def test_what_cannot_be_told_is_undone(served: tuple[Path, Served], tmp_path: Path) -> None:
    operations = Served()
    closing: list[socket.socket] = []

    async def quick(caller: Caller, args: Args, send: Send) -> Undoable:
        operations.finish.set()
        undoable = await operations.slow(caller, args, send)
        closing.pop().close()
        return undoable

    path = tmp_path / "other.sock"
    async with SocketServer(path, {"quick": quick}, admin_groups=()).running():
        client = socket.socket(socket.AF_UNIX)
        client.connect(str(path))
        closing.append(client)
        client.sendall(b'{"v": 1, "op": "quick"}\n')
        async with asyncio.timeout(5):
            await operations.undone.wait()


async def test_no_user_takes_all_connections(tmp_path: Path, monkeypatch: Any) -> None:
    uids = iter([7, 7, 7, 8, 9, 0])
    monkeypatch.setattr("agent.socket.server.uid_of", lambda connection: next(uids))
    path = tmp_path / "agent.sock"
    table = {"who": Served().who}
    bounds = Bounds(per_user=2, in_all=3)
    answers, writers = [], []
    async with SocketServer(path, table, admin_groups=(), bounds=bounds).running():
        for _ in range(6):
            reader, writer = await asyncio.open_unix_connection(path)
            writers.append(writer)
            with contextlib.suppress(ConnectionError):
                writer.write(b'{"v": 1, "op": "who"}\n')
            line = json.loads(await reader.readline())
            answers.append(line["error"]["code"] if "error" in line else "")
        assert answers == ["", "", "too-many-connections", "", "too-many-connections", ""]
        for writer in writers:
            writer.close()


async def test_accepting_goes_on_after_errors_and_says_so_once(
    served: tuple[Path, Served], monkeypatch: Any
) -> None:
    loop = asyncio.get_running_loop()
    accept, faults = loop.sock_accept, [OSError(errno.EMFILE, "Too many open files")] * 3

    async def failing(listener: socket.socket) -> Any:
        if faults:
            raise faults.pop()
        return await accept(listener)

    monkeypatch.setattr("agent.socket.server.ACCEPT_AGAIN_S", 0)
    monkeypatch.setattr(loop, "sock_accept", failing)
    with structlog.testing.capture_logs() as logs:
        await asyncio.to_thread(ask, served[0], "who")  # the accept that was already waiting
        await asyncio.to_thread(ask, served[0], "who")
    assert [one["event"] for one in logs] == ["accept-failed"]
