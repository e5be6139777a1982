"""``distrib up``: three services from nothing, and nothing left of them afterwards."""

from __future__ import annotations

import asyncio
import json
import os
import signal
import socket
import sys
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from distrib.errors import Conflict, NotFound
from distrib.logs import hide_secrets, name_errors
from distrib.trust.testpki import Demo
from distrib.up import alone, prepare, run_up

LIMIT_S = 30.0
SERVICES = ("mosquitto", "controller", "seeder")


def free_ports(count: int) -> list[int]:
    probes = [socket.socket() for _ in range(count)]
    try:
        for probe in probes:
            probe.bind(("127.0.0.1", 0))
        return [probe.getsockname()[1] for probe in probes]
    finally:
        for probe in probes:
            probe.close()


@dataclass
class Up:
    process: asyncio.subprocess.Process
    state: Path
    lines: list[str]

    def children(self) -> dict[str, int]:
        """The pids of the services."""
        found = {}
        for entry in Path("/proc").iterdir():
            if not entry.name.isdigit():
                continue
            try:
                words = (entry / "cmdline").read_bytes().decode().split("\0")
            except OSError:
                continue
            if not any(str(self.state) in word for word in words) or "up" in words:
                continue
            name = next((s for s in SERVICES if any(word.endswith(s) for word in words)), None)
            if name is not None:
                found[name] = int(entry.name)
        return found

    async def call(self, *arguments: str) -> Any:
        process = await asyncio.create_subprocess_exec(
            sys.executable,
            "-m",
            "distrib",
            *arguments,
            "--json",
            env={**os.environ, "DISTRIB_CONFIG": str(self.state / "client.toml")},
            stdout=asyncio.subprocess.PIPE,
        )
        output, _ = await process.communicate()
        return json.loads(output)


@asynccontextmanager
async def running(state: Path, *arguments: str) -> AsyncIterator[Up]:
    process = await asyncio.create_subprocess_exec(
        sys.executable,
        "-m",
        "distrib",
        "up",
        "--state",
        str(state),
        *arguments,
        stdout=asyncio.subprocess.PIPE,
    )
    assert process.stdout is not None
    lines: list[str] = []
    try:
        async with asyncio.timeout(LIMIT_S):
            while not lines or not lines[-1].startswith("ready"):
                line = await process.stdout.readline()
                assert line, f"it ended: {lines}"
                lines.append(line.decode().rstrip())
        yield Up(process, state, lines)
    finally:
        if process.returncode is None:
            process.terminate()
        await process.communicate()


async def gone(pids: dict[str, int]) -> None:
    """Until none of the processes is there."""
    loop = asyncio.get_running_loop()
    async with asyncio.timeout(LIMIT_S):
        for pid in pids.values():
            try:
                descriptor = os.pidfd_open(pid)
            except ProcessLookupError:
                continue
            ended = asyncio.Event()
            loop.add_reader(descriptor, ended.set)
            await ended.wait()
            loop.remove_reader(descriptor)
            os.close(descriptor)


@pytest.fixture
def arguments(pki: Demo) -> list[str]:
    api, broker, swarm = (str(port) for port in free_ports(3))
    directory = str(pki.site.directory.parent)
    ports = ["--api-port", api, "--broker-port", broker, "--swarm-port", swarm]
    return ["--pki", directory, *ports]


async def test_up_from_nothing_and_down_again(tmp_path: Path, arguments: list[str]) -> None:
    state = tmp_path / "state"
    async with running(state, *arguments) as up:
        assert [line.split()[0] for line in up.lines] == [
            "broker",
            "controller",
            "seeder",
            "ready",
        ]
        assert (await up.call("node", "list"))["nodes"] == []
        assert (state / "admin.token").stat().st_mode & 0o777 == 0o600
        children = up.children()
        assert children.keys() == set(SERVICES)
        up.process.send_signal(signal.SIGINT)
        async with asyncio.timeout(5):
            assert await up.process.wait() == 0
        await gone(children)
    # The second start finds its settings by itself, and the token is still good.
    async with running(state) as again:
        assert (await again.call("node", "list"))["nodes"] == []


async def test_a_service_that_dies_is_started_again_and_none_outlives_us(
    tmp_path: Path, arguments: list[str]
) -> None:
    async with running(tmp_path / "state", *arguments) as up:
        before = up.children()
        os.kill(before["controller"], signal.SIGKILL)
        await gone({"controller": before["controller"]})
        async with asyncio.timeout(LIMIT_S):
            while "nodes" not in (answer := await up.call("node", "list")):
                assert answer["error"]["code"] in {"unreachable", "timed-out"}
        after = up.children()
        assert after["controller"] != before["controller"]
        assert after["mosquitto"] == before["mosquitto"]
        up.process.kill()
        await gone(after)


async def test_a_first_start_without_certificates_says_what_is_missing(tmp_path: Path) -> None:
    process = await asyncio.create_subprocess_exec(
        sys.executable,
        "-m",
        "distrib",
        "up",
        "--state",
        str(tmp_path / "state"),
        stderr=asyncio.subprocess.PIPE,
    )
    _, errors = await process.communicate()
    assert process.returncode == 2
    assert b"--pki" in errors


async def test_a_port_that_is_taken_ends_everything_with_one_line(
    tmp_path: Path, arguments: list[str]
) -> None:
    api = int(arguments[arguments.index("--api-port") + 1])
    with socket.create_server(("127.0.0.1", api)):
        process = await asyncio.create_subprocess_exec(
            sys.executable,
            "-m",
            "distrib",
            "up",
            "--state",
            str(tmp_path / "state"),
            *arguments,
            stdout=asyncio.subprocess.DEVNULL,
            stderr=asyncio.subprocess.PIPE,
        )
        async with asyncio.timeout(LIMIT_S):
            _, errors = await process.communicate()
    assert process.returncode != 0
    assert b"controller ended" in errors.splitlines()[-1]
    assert b"in use" in errors


async def test_a_second_up_changes_nothing_of_a_running_one(
    tmp_path: Path, arguments: list[str]
) -> None:
    state = tmp_path / "state"
    async with running(state, *arguments):
        before = {file.name: file.read_bytes() for file in state.glob("*.toml")}
        process = await asyncio.create_subprocess_exec(
            *(sys.executable, "-m", "distrib", "up", "--state", str(state), "--api-port", "9"),
            stderr=asyncio.subprocess.PIPE,
        )
        _, errors = await process.communicate()
        assert (process.returncode, errors.count(b"\n")) == (2, 1)
        assert b"another distrib up runs" in errors
        assert {file.name: file.read_bytes() for file in state.glob("*.toml")} == before


def test_a_port_that_is_given_anew_changes_its_own_keys_alone(tmp_path: Path, pki: Demo) -> None:
    directory = pki.site.directory.parent
    prepare(tmp_path, pki=directory, given={"api_port": 9001, "broker_port": 9002})
    file = tmp_path / "controller.toml"
    file.write_text(file.read_text().replace("silent_s = 120", "silent_s = 77"))
    edited = file.read_text()
    prepare(tmp_path, pki=directory)
    assert file.read_text() == edited
    others = {name: (tmp_path / name).read_text() for name in ("up.toml", "seeder.toml")}
    prepare(tmp_path, pki=None, given={"api_port": 9003})
    assert file.read_text() == edited.replace("9001", "9003")
    assert 'url = "https://127.0.0.1:9003"' in (tmp_path / "client.toml").read_text()
    assert {name: (tmp_path / name).read_text() for name in others} == others
    with alone(tmp_path), pytest.raises(Conflict, match="another distrib up"), alone(tmp_path):
        pass


async def test_up_is_not_ready_while_the_controller_has_no_bus(tmp_path: Path, pki: Demo) -> None:
    api, broker, nobody, swarm = free_ports(4)
    given = {"api_port": api, "broker_port": broker, "swarm_port": swarm}
    settings = prepare(tmp_path, pki=pki.site.directory.parent, given=given)
    file = tmp_path / "controller.toml"
    file.write_text(file.read_text().replace(f"port = {broker}", f"port = {nobody}"))
    lines: list[str] = []
    stop = asyncio.Event()

    def say(line: str) -> None:
        lines.append(line)
        if line.startswith("controller"):
            stop.set()

    # The controller needs a moment until it has tried.
    settings = settings.model_copy(update={"ready_s": 5.0})
    async with asyncio.timeout(LIMIT_S):
        await run_up(tmp_path, settings, stop, say=say)
    assert "not ready after 5 s: bus-unreachable: " in lines[-1]
    assert not [line for line in lines if line.startswith("ready")]


def test_logs_name_errors_and_hide_secrets() -> None:
    error = NotFound("no such", hint="look", node="wn001")
    event = name_errors(None, "info", {"event": "x", "why": error})
    assert event["why"]["code"] == "not-found"
    assert hide_secrets(None, "info", {"token": "t", "node": "n"}) == {
        "token": "(hidden)",
        "node": "n",
    }
