"""Launches through the socket: the command, its job, and an agent that is restarted under them."""

from __future__ import annotations

import asyncio
import base64
import json
import os
import pwd
import signal
import tempfile
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import replace
from datetime import timedelta
from pathlib import Path
from typing import Any

import pytest

from agent.socket.client import ask
from agent.socket.launch import Follower
from distrib.errors import NetworkError, Revoked
from tests.launch.place import Agent, contents, outcome, until
from tests.trust.conftest import NOW, World, world

__all__ = ["world"]

pytestmark = pytest.mark.timeout(120)


@pytest.fixture
async def agent(
    world: World, guest_image: Path, libvirt_uri: str, hypervisor: object
) -> AsyncIterator[Agent]:
    """An agent that launches; at the end nothing of a launch may be left."""
    # A socket's address is short, a test's own directory may be long.
    with tempfile.TemporaryDirectory(prefix="distrib-ag-") as directory:
        one = Agent(Path(directory), world, guest_image, {"launch.libvirt_uri": libvirt_uri})
        await one.start()
        yield one
        await one.nothing_left()
        await one.stop()


@asynccontextmanager
async def started(agent: Agent, script: str, *options: str) -> AsyncIterator[Any]:
    """A launch whose job has said ``started``."""
    image = agent.image.identifier
    async with agent.client("launch", *options, image, "-", script=script) as client:
        assert client.stdout is not None
        assert await client.stdout.readline() == b"started\n"
        yield client


async def test_a_job_has_its_input_its_directory_and_its_account(
    agent: Agent, tmp_path: Path
) -> None:
    work = tmp_path / "work"
    (work / "sub").mkdir(parents=True)
    (work / "in.txt").write_text("given\n")
    (tmp_path / "job").write_text(
        "cat in.txt -; echo out >sub/out.txt; rm in.txt; dd if=/dev/zero of=/image/payload.000"
        " bs=64k count=16 conv=notrunc,fsync 2>/dev/null; exit 5\n"
    )
    (tmp_path / "ready").write_text('echo "$1 of $(hostname)"\n')
    status, out, err = await agent.run(
        *("launch", "--stdin", "--workdir", str(work), "--accounting", str(tmp_path / "acct")),
        *("--context", str(tmp_path / "ready")),
        *("--name", "4711.1", agent.image.identifier, str(tmp_path / "job")),
        script="from stdin\n",
    )
    assert (status, out, err) == (5, b"given\nfrom stdin\n", b"start of guest\n")
    assert (work / "sub" / "out.txt").read_text() == "out\n"
    assert (work / "sub" / "out.txt").stat().st_uid == os.geteuid()
    account = outcome(tmp_path / "acct")
    assert account["exit"] == 5
    usage = account["usage"]
    assert 0.5 < usage["cpu_s"] < 100
    assert 20 << 20 < usage["peak_memory_bytes"] < 2 << 30
    assert usage["read_bytes"] > 1 << 20
    assert usage["written_bytes"] >= 1 << 20
    _, over = agent.run_log()
    assert (over["job"], over["exit"], over["cpu_s"]) == ("4711.1", 5, usage["cpu_s"])


async def test_a_guest_survives_its_agent_and_its_client_goes_on_where_it_was(
    agent: Agent,
) -> None:
    script = "echo started; i=0; while [ $i -lt 20 ]; do echo $i; i=$((i+1)); sleep 0.1; done\n"
    async with started(agent, f"{script} echo done >&2; exit 3\n") as client:
        await agent.stop()
        await asyncio.sleep(1)  # the job writes on while nobody reads
        await agent.start()
        out, err = await client.communicate()
    assert out.split() == [str(i).encode() for i in range(20)]
    assert err == b"done\n"
    assert client.returncode == 3
    began, over = agent.run_log()
    assert (began["event"], over["event"], over["exit"]) == ("start", "end", 3)


async def test_a_guest_that_was_suspended_when_its_agent_went_runs_on(agent: Agent) -> None:
    async with started(agent, "echo started; sleep 1; echo on\n") as client:
        (lease,) = agent.launched()
        assert (await agent.run("signal", lease, "STOP"))[0] == 0
        await until(lambda: agent.launcher._launched[lease].guest.suspended)
        await agent.stop()
        await agent.start()
        assert await client.communicate() == (b"on\n", b"")
    assert client.returncode == 0


async def test_a_job_that_ends_while_no_agent_runs_is_told_later(agent: Agent) -> None:
    async with started(agent, "echo started; sleep 1; echo ended; exit 4\n") as client:
        (lease,) = agent.launched()
        console = agent.root / "state" / "run" / lease / "console.log"
        await agent.stop()
        await until(lambda: b"Power down" in contents(str(console)))
        await agent.start()
        assert await client.communicate() == (b"ended\n", b"")
    assert client.returncode == 4


async def test_a_client_that_died_with_the_agent_takes_its_guest_along(agent: Agent) -> None:
    async with started(agent, "echo started; sleep 1000\n") as client:
        await agent.stop()
        client.kill()
        await client.wait()
        await agent.start()
        await agent.launcher.end_orphans({lease.lease for lease in agent.cache.leases()})
    await agent.nothing_left()


async def test_a_line_that_a_killed_agent_left_half_is_not_taken_for_one(tmp_path: Path) -> None:
    half = tmp_path / "s"

    async def dies(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await reader.readline()
        writer.write(b'{"lease": "l-000000", "token": "t"}\n{"stream": "stdout", "da')
        writer.close()

    server = await asyncio.start_unix_server(dies, half)
    follower = Follower(half, {}, lambda _name, _after_s: None, reconnect_s=0.1)
    with pytest.raises(NetworkError, match="did not come again within"):
        await asyncio.to_thread(follower.run, image="any", script="")
    assert follower.token == "t"
    server.close()
    await server.wait_closed()


async def test_signals_reach_the_job_and_a_stopped_client_stops_the_guest(agent: Agent) -> None:
    script = (
        "trap 'echo usr1' USR1; trap 'echo term; exit 9' TERM; echo started;"
        " while :; do sleep 0.1; cat /proc/uptime >>/tmp/seen; done\n"
    )
    async with started(agent, script) as client:
        client.send_signal(signal.SIGUSR1)
        assert await client.stdout.readline() == b"usr1\n"
        (lease,) = agent.launched()
        guest = agent.launcher._launched[lease].guest
        client.send_signal(signal.SIGTSTP)
        await until(lambda: guest.suspended)
        client.send_signal(signal.SIGCONT)
        await until(lambda: not guest.suspended)
        client.send_signal(signal.SIGTERM)
        out, _ = await client.communicate()
    assert (client.returncode, out) == (9, b"term\n")


async def test_a_job_that_does_not_listen_is_ended_after_its_grace(agent: Agent) -> None:
    agent.settings = agent.settings.model_copy(
        update={"launch": agent.settings.launch.model_copy(update={"terminate_s": 1.0})}
    )
    await agent.stop()
    await agent.start()
    async with started(agent, "trap '' TERM XCPU; echo started; sleep 1000 & wait\n") as client:
        (lease,) = agent.launched()
        assert (await agent.run("signal", lease, "XCPU"))[0] == 0
        await client.communicate()
    assert client.returncode == 128 + signal.SIGXCPU


async def test_an_image_that_is_withdrawn_ends_its_guests_with_the_reason(
    agent: Agent, tmp_path: Path
) -> None:
    account = tmp_path / "acct"
    options = ("--accounting", str(account), "--refused", "100", "--node-fault", "99")
    async with started(agent, "echo started; sleep 1000\n", *options) as client:
        ended = await agent.launches.end_uses(agent.image.infohash, "a hole in its ssh")
        _, err = await client.communicate()
    assert client.returncode == 100
    assert b"a hole in its ssh" in err
    assert outcome(account)["error"]["code"] == Revoked.code
    assert len(ended) == 1


async def test_somebody_may_watch_and_whoever_launched_it_goes_on(agent: Agent) -> None:
    async with started(agent, "echo started; sleep 2; echo on; exit 2\n") as client:
        (lease,) = agent.launched()
        async with agent.client("attach", lease) as watcher:
            assert watcher.stdout is not None
            assert await watcher.stdout.readline() == b"started\n"
        async with agent.client("attach", "--json", lease) as watcher:
            out, _ = await client.communicate()
            said, _ = await watcher.communicate()
    assert (client.returncode, out) == (2, b"on\n")
    *lines, result = [json.loads(line) for line in said.splitlines()]
    assert _said(lines, "stdout") == b"started\non\n"
    assert [line["phase"] for line in lines if "phase" in line][-2:] == ["done", "ended"]
    assert (watcher.returncode, result["exit"], result["lease"]) == (2, 2, lease)


async def test_a_launch_is_told_in_lines_of_json(agent: Agent) -> None:
    image = agent.image.identifier
    job = "printf '\\377\\0'; echo oops >&2; exit 3\n"
    status, out, err = await agent.run("launch", "--json", image, "-", script=job)
    first, *lines, result = [json.loads(line) for line in out.splitlines()]
    assert (status, result["exit"], err) == (3, 3, b"")
    assert first == {"lease": result["lease"]}
    assert (_said(lines, "stdout"), _said(lines, "stderr")) == (b"\xff\0", b"oops\n")
    assert result["phases"].keys() == {"prepared", "started", "booted", "done", "ended"}
    refused = ("--json", "--node-fault=99", "--refused=100", "nothing", "-")
    status, out, err = await agent.run("launch", *refused, script="true\n")
    assert (status, json.loads(out)["error"]["code"], err) == (100, "not-found", b"")


async def test_the_next_guest_of_a_lease_does_not_meet_the_last_one(agent: Agent) -> None:
    """A job's end is told before libvirt has forgotten its guest."""
    until_then = {"kind": "time", "until": (NOW + timedelta(hours=1)).isoformat()}
    image = agent.image.identifier
    lease = await asyncio.to_thread(ask, agent.socket, "lease", image=image, holder=until_then)
    for number in (3, 4):
        # No process is started between them.
        follower = Follower(agent.socket, {}, lambda _phase, _after_s: None, {})
        script = base64.b64encode(f"exit {number}\n".encode()).decode()
        result = await asyncio.to_thread(follower.run, lease=lease["lease"], script=script)
        assert result["exit"] == number
    await asyncio.to_thread(ask, agent.socket, "release", lease=lease["lease"])


async def test_the_console_of_a_failed_launch_is_kept(agent: Agent, tmp_path: Path) -> None:
    options = ("--accounting", str(tmp_path / "acct"), "--node-fault", "99")
    job = "echo started; sync; echo c >/proc/sysrq-trigger\n"
    async with started(agent, job, *options) as client:
        await client.communicate()
    assert client.returncode == 99
    error = outcome(tmp_path / "acct")["error"]
    assert error["code"] == "launch-failed"
    assert b"sysrq" in contents(error["ids"]["console"])


async def test_what_a_job_may_not_have_is_refused_and_leaves_nothing(agent: Agent) -> None:
    image = agent.image.identifier
    for options, said in (
        (("--network", "public"), b"network public is not for jobs here"),
        (("--memory", "64T"), b"less than or equal to"),
        (("--share", "/tmp"), b"may not be shared"),
    ):
        status, _, err = await agent.run("launch", *options, image, "-", script="true\n")
        assert status in {2, 9}, err
        assert said in err
        await agent.nothing_left()


async def test_a_users_own_image_has_no_site_part_and_no_bridge(agent: Agent) -> None:
    agent.images = (replace(agent.image, audience=(_me(),)),)
    site = agent.root / "site"
    site.mkdir()
    (site / "context.sh").write_text("SITE=cc\n")
    agent.settings = agent.settings.model_copy(
        update={"launch": agent.settings.launch.model_copy(update={"site_context": site})}
    )
    await agent.stop()
    await agent.start()
    image = agent.image.identifier
    assert (await agent.run("launch", image, "-", script="echo at $SITE\n"))[1] == b"at\n"
    await agent.nothing_left()
    agent.images = (replace(agent.image, audience="all"),)
    await agent.stop()
    await agent.start()
    options = ("--env", "SITE=mine")
    status, out, _ = await agent.run("launch", *options, image, "-", script="echo at $SITE\n")
    assert (status, out) == (0, b"at cc\n"), "the site's word is the last"


@pytest.fixture
async def deaf(
    world: World, guest_image: Path, hypervisor: object
) -> AsyncIterator[tuple[Agent, asyncio.Event]]:
    """An agent whose libvirt accepts connections and never answers."""
    never = asyncio.Event()

    async def silent(_reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await never.wait()
        writer.close()

    with tempfile.TemporaryDirectory(prefix="distrib-ag-") as directory:
        server = await asyncio.start_unix_server(silent, Path(directory) / "libvirt-sock")
        uri = f"qemu:///system?socket={directory}/libvirt-sock"
        settings = {"launch.libvirt_uri": uri, "launch.libvirt_limit_s": "1"}
        one = Agent(Path(directory), world, guest_image, settings)
        await one.start()
        yield one, never
        never.set()
        await one.stop()
        server.close()
        await server.wait_closed()


async def test_a_hanging_libvirt_is_one_error_in_time_and_a_fault_of_the_node(
    deaf: tuple[Agent, asyncio.Event],
) -> None:
    agent, _ = deaf
    image = agent.image.identifier
    async with asyncio.timeout(20):
        status, _, err = await agent.run(
            "launch", "--node-fault", "99", image, "-", script="true\n"
        )
        assert status == 99
        assert b"libvirt did not answer within 1 s" in err
        assert len(err.splitlines()) == 1
        await agent.nothing_left()


@pytest.mark.root
async def test_a_full_disk_of_the_node_ends_the_job_and_says_so(
    agent: Agent, tmp_path: Path
) -> None:
    """What QEMU cannot append is lost: a job must not seem to have said less than it did."""
    run = agent.root / "state" / "run"
    run.mkdir(parents=True)
    mount = ["mount", "-t", "tmpfs", "-o", "size=16m", "tmpfs", str(run)]
    process = await asyncio.create_subprocess_exec(*mount)
    assert await process.wait() == 0
    try:
        # libvirtd's mount namespace was made before: it sees the directory through our own.
        agent.launcher._run_dir = Path(f"/proc/{os.getpid()}/root{run}")
        account = tmp_path / "acct"
        status, out, _ = await agent.run(
            *("launch", "--accounting", str(account), "--node-fault", "99"),
            *(agent.image.identifier, "-"),
            script="dd if=/dev/zero bs=64k count=400 2>/dev/null; echo written; sleep 60\n",
        )
        assert status == 99
        assert b"written" not in out
        assert outcome(account)["error"]["code"] == "no-space"
        await agent.nothing_left()
    finally:
        process = await asyncio.create_subprocess_exec("umount", str(run))
        assert await process.wait() == 0


def _said(lines: list[dict[str, Any]], stream: str) -> bytes:
    return b"".join(base64.b64decode(one["data"]) for one in lines if one.get("stream") == stream)


def _me() -> str:
    return pwd.getpwuid(os.geteuid()).pw_name
