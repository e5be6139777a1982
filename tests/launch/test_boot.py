"""Real guests under libvirt: a job goes in, its output and exit status come back."""

from __future__ import annotations

import hashlib
import os
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from agent.launch.accelerator import guest_runs
from agent.launch.context import SitePart
from agent.launch.hypervisor import Hypervisor
from agent.launch.job import run_job
from agent.launch.libvirt import Libvirt
from agent.launch.spec import Hardware, JobSpec
from distrib.errors import Conflict, LaunchFailed, NetworkError

MakeSpec = Callable[..., JobSpec]


def _digest(path: Path) -> bytes:
    return hashlib.sha512(path.read_bytes()).digest()


def _owner(path: Path) -> tuple[int, int]:
    status = path.stat()
    return status.st_uid, status.st_gid


def _names(directory: Path) -> list[str]:
    return [path.name for path in directory.iterdir()]


def _holds(path: Path, data: bytes) -> bool:
    return data in path.read_bytes()


async def test_the_job_of_the_slide_runs_in_the_guest(
    hypervisor: Libvirt, make_spec: MakeSpec, output: Any
) -> None:
    spec = make_spec("cat /proc/cpuinfo; free\n", memory_mib=160)
    phases: list[str] = []

    def on_phase(name: str, _after_s: float) -> None:
        phases.append(name)

    result = await run_job(
        spec,
        on_stdout=output.out,
        on_stderr=output.err,
        hypervisor=hypervisor,
        on_phase=on_phase,
    )
    assert result.exit_status == 0
    assert b"QEMU Virtual CPU" in output.stdout
    total_kib = int(output.stdout.split(b"Mem:")[1].split()[0])
    assert 100 << 10 < total_kib < 160 << 10
    assert output.stderr == b""
    assert phases == list(result.phases) == ["prepared", "started", "booted", "done", "ended"]
    assert sorted(result.phases.values()) == list(result.phases.values())
    assert "Power down" in result.console_log_tail
    assert not spec.run_dir.exists()


async def test_all_that_goes_in_comes_back(
    hypervisor: Libvirt, make_spec: MakeSpec, output: Any, guest_image: Path, tmp_path: Path
) -> None:
    """Binary output, standard error, arguments, environment, site part, scratch and status 7; and
    what the guest writes to its own disk never reaches the base image."""
    before = _digest(guest_image)
    owner = (65534, 65534) if os.geteuid() == 0 else (os.geteuid(), os.getegid())
    scratch = tmp_path / "scratch.raw"
    scratch.touch(0o600)
    os.truncate(scratch, 32 << 20)
    spec = make_spec(
        r"""#!/bin/bash
printf '\000\001\377\r\n'
i=0; while [ $i -lt 3000 ]; do printf '%0100d' $i; i=$((i+1)); done
printf '%s|' "$#" "$@" "$NAME" "$SITE" "$FROM_PROLOG" "$PWD" >&2
cat /dev/fd/0 >&2
echo changed > /image/changed.txt && sync
echo through-the-path > /dev/stderr
exit 7
""",
        args=["a b", "it's", "", "$(reboot)"],
        environment={"NAME": "two\nlines 'quoted'"},
        scratch_path=scratch,
        disk_owner=owner,
        site=SitePart(
            {
                "context.sh": b"SITE=cc\n",
                "prolog.sh": b'echo "prolog $1 for $SITE"; echo more > /tmp/p\n',
                "epilog.sh": b'echo "epilog $1"\n',
            }
        ),
    )
    result = await run_job(spec, on_stdout=output.out, on_stderr=output.err, hypervisor=hypervisor)
    assert result.exit_status == 7
    numbers = "".join(f"{i:0100d}" for i in range(3000)).encode()
    assert output.stdout == b"\0\x01\xff\r\n" + numbers
    assert output.stderr == (
        b"4|a b|it's||$(reboot)|two\nlines 'quoted'|cc||/scratch|through-the-path\n"
    )
    assert "prolog start for cc" in result.console_log_tail
    assert "epilog start" in result.console_log_tail
    assert _digest(guest_image) == before
    assert _owner(guest_image) == (os.geteuid(), os.getegid())
    assert _owner(scratch) == _owner(spec.disk_path) == owner
    assert _holds(spec.disk_path, b"CHANGED TXT")
    assert _holds(scratch, b"SCRATCH")


@pytest.mark.parametrize(
    ("hardware", "seen"),
    [
        (Hardware(machine="q35", bus="virtio-scsi"), "sda"),
        (Hardware(machine="pc", bus="ide", cpu="Nehalem", cache="writeback"), "sda"),
    ],
)
async def test_a_job_runs_on_other_hardware(
    hypervisor: Libvirt, make_spec: MakeSpec, output: Any, hardware: Hardware, seen: str
) -> None:
    spec = make_spec("grep -o 'sd[a-z]$' /proc/partitions; ls /image\n", hardware=hardware)
    result = await run_job(spec, on_stdout=output.out, on_stderr=output.err, hypervisor=hypervisor)
    assert result.exit_status == 0
    assert output.stdout.decode().split()[0] == seen
    assert b"vmlinuz" in output.stdout
    assert 0 < result.usage.cpu_s < 100


async def test_a_failing_prolog_keeps_the_job_from_running(
    hypervisor: Libvirt, make_spec: MakeSpec, output: Any
) -> None:
    spec = make_spec("echo never\n", site=SitePart({"prolog.sh": b"echo no mount; exit 3\n"}))
    with pytest.raises(LaunchFailed, match="prolog-3") as caught:
        await run_job(spec, on_stdout=output.out, on_stderr=output.err, hypervisor=hypervisor)
    assert "no mount" in str(caught.value)
    assert output.stdout == b""


async def test_the_probe_runs_where_guests_do(hypervisor: Libvirt, tmp_path: Path) -> None:
    assert await guest_runs("qemu", agent="node1", hypervisor=hypervisor, run_dir=tmp_path)
    assert _names(tmp_path) == []


async def test_a_used_run_directory_is_a_conflict(
    hypervisor: Libvirt, make_spec: MakeSpec, output: Any
) -> None:
    spec = make_spec("true\n")
    spec.run_dir.mkdir(parents=True)
    kept = spec.run_dir / "of-another-launch"
    kept.touch()
    with pytest.raises(Conflict):
        await run_job(spec, on_stdout=output.out, on_stderr=output.err, hypervisor=hypervisor)
    assert kept.exists()


async def test_libvirt_tells_its_version_or_that_it_is_not_there(
    hypervisor: Libvirt, tmp_path: Path
) -> None:
    assert isinstance(hypervisor, Hypervisor)
    assert int((await hypervisor.version()).split(".")[0]) >= 5
    nobody = f"qemu:///system?socket={tmp_path}/nobody"
    async with Libvirt(nobody, agent="node1") as unreachable:
        with pytest.raises(NetworkError, match="cannot be reached"):
            await unreachable.version()


async def test_a_domain_that_libvirt_refuses_leaves_nothing(
    hypervisor: Libvirt, make_spec: MakeSpec, output: Any, tmp_path: Path
) -> None:
    spec = replace(make_spec("true\n"), disk_path=tmp_path / "absent.qcow2")
    with pytest.raises(LaunchFailed, match="libvirt refused"):
        await run_job(spec, on_stdout=output.out, on_stderr=output.err, hypervisor=hypervisor)
    assert not spec.run_dir.exists()
