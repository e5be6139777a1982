"""One private libvirtd and one guest image for all real boots of a test run."""

from __future__ import annotations

import asyncio
import itertools
import shutil
import subprocess
import tempfile
from collections.abc import AsyncIterator, Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from agent.launch.libvirt import Libvirt
from agent.launch.spec import JobSpec, Limits

ROOT = Path(__file__).parents[2]
AGENT = "node1"
TOOLS = ("libvirtd", "virsh", "qemu-system-x86_64", "qemu-img")


def _missing() -> str | None:
    path = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"
    for tool in TOOLS:
        if shutil.which(tool, path=path) is None:
            return tool
    return None


@pytest.fixture(scope="session")
def libvirt_uri() -> Iterator[str]:
    """The URI of a libvirtd that is ours alone."""
    if (tool := _missing()) is not None:
        pytest.skip(f"{tool} is not installed on this machine")
    pytest.importorskip("libvirt")
    script = ROOT / "scripts" / "libvirt-private"
    # A socket's address is short, a test's own directory may be long.
    directory = Path(tempfile.mkdtemp(prefix="distrib-lv-"))
    try:
        started = subprocess.run(
            [script, "start", directory], check=True, capture_output=True, text=True, timeout=60
        )
        yield started.stdout.strip()
    finally:
        subprocess.run([script, "stop", directory], check=True, capture_output=True, timeout=60)
        shutil.rmtree(directory, ignore_errors=True)


@pytest.fixture(scope="session")
def guest_image(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The small guest, read-only: as a sealed volume is."""
    path = tmp_path_factory.mktemp("guest") / "guest.raw"
    subprocess.run(
        [ROOT / "scripts" / "guest" / "build", "-o", path, "--size-mb", "32"],
        check=True,
        capture_output=True,
        timeout=120,
    )
    path.chmod(0o444)
    return path


@pytest.fixture
async def hypervisor(libvirt_uri: str) -> AsyncIterator[Libvirt]:
    """A connection; every test must leave no guest of ours behind."""
    async with Libvirt(libvirt_uri, agent=AGENT) as libvirt:
        yield libvirt
        left = await libvirt.domains()
        for domain in left:
            await libvirt.destroy(domain)
        assert left == ()


_leases = itertools.count(1)


@pytest.fixture
def make_spec(guest_image: Path, tmp_path: Path) -> Callable[..., JobSpec]:
    """A launch of the small guest from a fresh overlay, with any field replaced."""

    def make(script: str, **fields: Any) -> JobSpec:
        lease = f"l-{next(_leases):06x}"
        overlay = tmp_path / f"{lease}.qcow2"
        subprocess.run(
            ["qemu-img", "create", "-q", "-f", "qcow2", "-b", guest_image, "-F", "raw", overlay],
            check=True,
            timeout=30,
        )
        values: dict[str, Any] = {
            "agent": AGENT,
            "lease_id": lease,
            "script": script.encode(),
            "disk_path": overlay,
            "disk_format": "qcow2",
            "memory_mib": 128,
            "vcpus": 1,
            "run_dir": tmp_path / "run" / lease,
            "limits": Limits(boot_timeout_s=60, wall_s=90),
        }
        return JobSpec(**{**values, **fields})

    return make


class Output:
    """Collects a job's output, and tells when something was said."""

    def __init__(self) -> None:
        self.stdout = b""
        self.stderr = b""
        self.said = asyncio.Event()

    async def out(self, data: bytes) -> None:
        self.stdout += data
        self.said.set()

    async def err(self, data: bytes) -> None:
        self.stderr += data


@pytest.fixture
async def output() -> Output:
    return Output()
