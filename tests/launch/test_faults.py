"""Guests that hang, die, fill their disk or lose their client: none is left behind."""

from __future__ import annotations

import asyncio
import os
import re
import signal
import subprocess
import tempfile
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path, PurePosixPath
from typing import Any

import pytest

from agent.launch.accelerator import PROBE_CODE
from agent.launch.domain import Disk, DomainSpec
from agent.launch.domain_xml import to_xml
from agent.launch.hypervisor import End
from agent.launch.job import run_job
from agent.launch.libvirt import Libvirt
from agent.launch.spec import JobResult, JobSpec, Limits
from distrib.errors import LaunchFailed, LimitReached, TimedOut

MakeSpec = Callable[..., JobSpec]

SLEEPER = "echo begun; sleep 1000\n"


@pytest.fixture
def launch(hypervisor: Libvirt, output: Any) -> Callable[[JobSpec], Any]:
    async def run(spec: JobSpec) -> JobResult:
        return await run_job(
            spec, on_stdout=output.out, on_stderr=output.err, hypervisor=hypervisor
        )

    return run


def _endless(directory: Path, *, agent: str, lease: str) -> DomainSpec:
    """A domain that runs until it is ended: the probe's boot sector, which halts."""
    directory.mkdir(parents=True)
    paths = [
        directory / name for name in ("disk", "iso", "console", "out", "err", "result", "files")
    ]
    for path in paths:
        path.touch()
    paths[0].write_bytes((PROBE_CODE.ljust(510, b"\0") + b"\x55\xaa").ljust(1 << 20, b"\0"))
    pure = [PurePosixPath(path) for path in paths]
    return DomainSpec(
        agent=agent,
        lease=lease,
        accelerator="qemu",
        memory_mib=32,
        vcpus=1,
        root=Disk(pure[0], "raw"),
        context_iso=pure[1],
        console_log=pure[2],
        channels=tuple(pure[3:]),
    )


async def test_a_job_that_hangs_runs_into_its_limit(
    launch: Any, make_spec: MakeSpec, output: Any, hypervisor: Libvirt
) -> None:
    spec = make_spec(SLEEPER, limits=Limits(wall_s=7))
    with pytest.raises(LimitReached, match="limit of 7 s"):
        await launch(spec)
    # Nothing where the boot alone takes as long, on a busy machine.
    assert output.stdout in {b"begun\n", b""}
    assert await hypervisor.domains() == ()
    assert not spec.run_dir.exists()


async def test_output_streams_and_cancellation_leaves_no_guest(
    launch: Any, make_spec: MakeSpec, output: Any, hypervisor: Libvirt
) -> None:
    spec = make_spec(SLEEPER)
    task = asyncio.create_task(launch(spec))
    # Said while the job still sleeps.
    await output.said.wait()
    assert [domain.lease for domain in await hypervisor.domains()] == [spec.lease_id]
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task
    assert await hypervisor.domains() == ()
    assert not spec.run_dir.exists()


async def test_cancellation_while_libvirt_starts_the_guest_leaves_none(
    make_spec: MakeSpec, output: Any, hypervisor: Libvirt
) -> None:
    for delay_s in (0.0, 0.2):
        prepared = asyncio.Event()

        def on_phase(_name: str, _after_s: float, prepared: Any = prepared) -> None:
            prepared.set()

        spec = make_spec(SLEEPER)
        task = asyncio.create_task(
            run_job(
                spec,
                on_stdout=output.out,
                on_stderr=output.err,
                hypervisor=hypervisor,
                on_phase=on_phase,
            )
        )
        await prepared.wait()
        await asyncio.sleep(delay_s)
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task
        assert await hypervisor.domains() == ()
        assert not spec.run_dir.exists()


async def test_a_disk_without_a_system_gives_no_sign(
    launch: Any, make_spec: MakeSpec, tmp_path: Path
) -> None:
    blank = tmp_path / "blank.raw"
    blank.touch(0o600)
    os.truncate(blank, 4 << 20)
    spec = make_spec("true\n", disk_path=blank, disk_format="raw", limits=Limits(boot_timeout_s=3))
    with pytest.raises(LaunchFailed, match="no sign from the guest within 3 s"):
        await launch(spec)


async def test_a_client_that_is_gone_ends_its_guest(
    make_spec: MakeSpec, output: Any, hypervisor: Libvirt
) -> None:
    async def gone(_data: bytes) -> None:
        raise ConnectionResetError("the client hung up")

    with pytest.raises(ConnectionResetError):
        await run_job(
            make_spec(SLEEPER), on_stdout=gone, on_stderr=output.err, hypervisor=hypervisor
        )
    assert await hypervisor.domains() == ()


async def test_a_guest_whose_qemu_is_killed_has_no_result(
    launch: Any, make_spec: MakeSpec, output: Any, libvirt_uri: str
) -> None:
    spec = make_spec(SLEEPER)
    task = asyncio.create_task(launch(spec))
    await output.said.wait()
    os.kill(_qemu_pid(libvirt_uri, spec.lease_id), signal.SIGKILL)
    with pytest.raises(LaunchFailed, match="ended without a result"):
        await task
    assert output.stdout == b"begun\n"


async def test_endless_output_is_bounded(
    launch: Any, make_spec: MakeSpec, output: Any, hypervisor: Libvirt
) -> None:
    spec = make_spec("yes\n", limits=Limits(wall_s=60, output_bytes=1 << 20))
    with pytest.raises(LaunchFailed, match="more than 1048576 bytes to stdout"):
        await launch(spec)
    assert len(output.stdout) <= 1 << 20
    assert await hypervisor.domains() == ()


@pytest.mark.root
async def test_a_full_copy_on_write_disk_ends_the_launch(
    launch: Any, make_spec: MakeSpec, small_disk: Path, guest_image: Path
) -> None:
    """The guest is stopped, not handed I/O errors that it may take for its own fault."""
    overlay = small_disk / "root.qcow2"
    create = ["qemu-img", "create", "-q", "-f", "qcow2", "-b", str(guest_image), "-F", "raw"]
    process = await asyncio.create_subprocess_exec(*create, str(overlay))
    assert await process.wait() == 0
    spec = replace(
        make_spec("dd if=/dev/urandom of=/image/payload.000 bs=1M count=8 conv=notrunc,fsync\n"),
        disk_path=overlay,
    )
    with pytest.raises(LaunchFailed, match="full or failed"):
        await launch(spec)


async def test_orphans_are_found_by_their_metadata_and_ended(
    hypervisor: Libvirt, libvirt_uri: str, tmp_path: Path
) -> None:
    async with Libvirt(libvirt_uri, agent="node2") as other:
        kept = await hypervisor.start(
            to_xml(_endless(tmp_path / "a", agent="node1", lease="l-kept"))
        )
        lost = await hypervisor.start(
            to_xml(_endless(tmp_path / "b", agent="node1", lease="l-lost"))
        )
        foreign = await other.start(to_xml(_endless(tmp_path / "c", agent="node2", lease="l-lost")))

        # What a restarted agent does: it knows its leases, and nothing of the domains.
        async with Libvirt(libvirt_uri, agent="node1") as restarted:
            orphans = await restarted.orphans(keep={"l-kept"})
            assert orphans == (lost,)
            await restarted.destroy(orphans[0])
            assert await restarted.wait(lost) is End.GONE
            assert await restarted.domains() == (kept,)
            await restarted.destroy(lost)
        assert await other.domains() == (foreign,)
        await other.destroy(foreign)
    await hypervisor.destroy(kept)


async def test_a_hung_libvirt_is_a_time_out_not_a_hang(hypervisor: Libvirt, tmp_path: Path) -> None:
    """A daemon that accepts a connection and never answers."""
    never = asyncio.Event()

    async def silent(_reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await never.wait()
        writer.close()
        await writer.wait_closed()

    socket = tmp_path / "s"
    server = await asyncio.start_unix_server(silent, socket)
    try:
        async with Libvirt(
            f"qemu:///system?socket={socket}", agent="node1", call_timeout_s=1
        ) as hung:
            with pytest.raises(TimedOut, match="did not answer"):
                await hung.version()
            # The loop and other connections go on.
            assert await hypervisor.domains() == ()
    finally:
        never.set()
        server.close()
        await server.wait_closed()


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    """A file system of 2 MiB."""
    if os.geteuid() != 0:
        pytest.skip("mounting needs root")
    path = tmp_path / "small"
    path.mkdir()
    mount = ["mount", "-t", "tmpfs", "-o", "size=2m", "tmpfs", str(path)]
    # Seen by the daemon, whose mount namespace was made before: bound below a directory that
    # it shares would not be, so the daemon opens the overlay through our own /proc entry.
    if subprocess.run(mount, check=False).returncode != 0:
        pytest.skip("mounting is not permitted here")
    try:
        yield Path(f"/proc/{os.getpid()}/root{path}")
    finally:
        subprocess.run(["umount", str(path)], check=True)


def _qemu_pid(uri: str, lease: str) -> int:
    match = re.search(r"socket=(.*)/libvirt-sock", uri)
    assert match is not None
    (file,) = Path(match[1]).glob(f"run/**/*{lease}.pid")
    return int(file.read_text())


async def test_a_guest_outlives_a_crash_of_libvirtd(make_spec: MakeSpec, output: Any) -> None:
    script = Path(__file__).parents[2] / "scripts" / "libvirt-private"
    # A daemon of its own: killing the shared one would be the other tests' fault.
    directory = Path(tempfile.mkdtemp(prefix="distrib-lv-"))

    async def libvirt_private(action: str) -> str:
        process = await asyncio.create_subprocess_exec(
            script, action, directory, stdout=subprocess.PIPE
        )
        text, _ = await process.communicate()
        assert process.returncode == 0
        return text.decode().strip()

    try:
        uri = await libvirt_private("start")
        async with Libvirt(uri, agent="node1") as hypervisor:
            spec = make_spec("echo begun; sleep 4; echo done\n")
            task = asyncio.create_task(
                run_job(spec, on_stdout=output.out, on_stderr=output.err, hypervisor=hypervisor)
            )
            await output.said.wait()
            os.kill(_number(directory / "libvirtd.pid"), signal.SIGKILL)
            await libvirt_private("start")
            assert (await task).exit_status == 0
            assert output.stdout == b"begun\ndone\n"
    finally:
        await libvirt_private("stop")


def _number(path: Path) -> int:
    return int(path.read_text())
