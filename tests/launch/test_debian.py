"""A Debian guest with cloud-init: it runs the same disc. Minutes without KVM, so: long."""

from __future__ import annotations

import os
import shutil
import subprocess
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path, PurePosixPath
from typing import Any

import pytest

from agent.launch.context import SitePart
from agent.launch.domain import Share
from agent.launch.job import run_job
from agent.launch.libvirt import Libvirt
from agent.launch.spec import Hardware, JobSpec, Limits

ROOT = Path(__file__).parents[2]

pytestmark = [pytest.mark.long, pytest.mark.root, pytest.mark.timeout(1800)]

NOBODY = (65534, 65534)


@pytest.fixture(scope="module")
def debian() -> Iterator[Path]:
    """The image, where every account may read it."""
    if os.geteuid() != 0:
        pytest.skip("debootstrap needs root")
    directory = Path(tempfile.mkdtemp(prefix="distrib-deb-"))
    directory.chmod(0o711)
    image = directory / "debian.raw"
    build = ROOT / "scripts" / "guest" / "build-debian"
    try:
        subprocess.run([build, "-o", image], check=True, capture_output=True, timeout=900)
        image.chmod(0o444)
        yield image
    finally:
        shutil.rmtree(directory)


def _on(image: Path, spec: JobSpec, name: str, **fields: Any) -> JobSpec:
    overlay = image.with_name(f"{name}.qcow2")
    command = ["qemu-img", "create", "-q", "-f", "qcow2", "-b", image, "-F", "raw", overlay]
    subprocess.run(command, check=True, timeout=30)
    return JobSpec(
        **{
            **vars(spec),
            "disk_path": overlay,
            "memory_mib": 640,
            "vcpus": 2,
            "run_dir": image.with_name(name),
            "limits": Limits(boot_timeout_s=900, wall_s=1500, poweroff_s=120),
            **fields,
        }
    )


async def test_cloud_init_runs_the_sites_part_and_the_job(
    hypervisor: Libvirt, make_spec: Callable[..., JobSpec], debian: Path, output: Any
) -> None:
    job = "id -un; cat /etc/site; echo at $SITE with $1 for $NAME; command -v systemctl; exit 6\n"
    spec = _on(
        debian,
        make_spec(job, args=["words"], environment={"NAME": "n", "SITE": "mine"}),
        "plain",
        site=SitePart(
            {
                "user-data": b"#cloud-config\nwrite_files:\n- {path: /etc/site, content: cc}\n",
                "context.sh": b"SITE=cc\n",
                "prolog.sh": b'[ "$1" != start ] || echo "prolog of $SITE" >/dev/console\n',
            }
        ),
    )
    result = await run_job(spec, on_stdout=output.out, on_stderr=output.err, hypervisor=hypervisor)
    print(result.phases, result.usage)
    lines = output.stdout.decode().split("\n")
    assert lines[:2] == ["root", "ccat cc with words for n"], (lines, output.stderr)
    assert result.exit_status == 6
    assert "prolog of cc" in result.console_log_tail


async def test_a_shared_directory_is_written_as_the_jobs_own_user(
    hypervisor: Libvirt, make_spec: Callable[..., JobSpec], debian: Path, output: Any
) -> None:
    """On a PC with SATA, without virtio disks: QEMU runs as the user, who owns what it writes."""
    work = debian.with_name("work")
    work.mkdir()
    os.chown(work, *NOBODY)
    spec = _on(
        debian,
        make_spec("echo from the guest >result; pwd\n"),
        "shared",
        hardware=Hardware(machine="q35", bus="sata"),
        share=Share(PurePosixPath(work)),
        run_as=NOBODY,
        disk_owner=NOBODY,
    )
    result = await run_job(spec, on_stdout=output.out, on_stderr=output.err, hypervisor=hypervisor)
    assert result.exit_status == 0, output.stderr
    written = work / "result"
    assert _read(written) == ("from the guest\n", NOBODY[0])


def _read(path: Path) -> tuple[str, int]:
    return path.read_text(), path.stat().st_uid
