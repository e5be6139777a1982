"""Whether guests run on KVM or on plain QEMU on this host.

/dev/kvm alone says nothing: on a virtual machine it may be there and stop every guest behind the
boot loader. So a guest is tried: a boot sector (probe.S) that does what a kernel does first.
"""

from __future__ import annotations

import asyncio
import json
import secrets
import shutil
from contextlib import suppress
from pathlib import Path, PurePosixPath
from typing import Literal

from agent.finishing import to_the_end
from agent.launch import channel
from agent.launch.domain import Accelerator, Disk, DomainSpec, Virtualisation
from agent.launch.domain_xml import to_xml
from agent.launch.hypervisor import Hypervisor
from distrib.errors import LaunchFailed

HypervisorSetting = Literal["auto", "kvm", "qemu", "xen-pv", "xen-hvm"]

KVM_DEVICE = Path("/dev/kvm")

PROBE_CODE = bytes.fromhex(
    "fa31c08ed88ec08ed0bc007c0f0116e07c0f20c00c010f22c0ea1e7c080066b810008ed88ec08ed0bc007c00"
    "00c70580510000a67c0800c70584510000008e00000f011de67c0000cd3031c0bf00100000b9000c0000fcf3"
    "abc7050010000003200000c7050020000003300000c7050030000083000000b8001000000f22d80f20e00c20"
    "0f22e0b9800000c00f32660d00010f300f20c00d000000800f22c0eaa77c00001800cf0fa20f3166baf803b0"
    "4feeb04beeb00aeef4ebfd0f1f4400000000000000000000ffff0000009acf00ffff00000092cf00ffff0000"
    "009aaf001f00c07c0000ff070050"
)
"""probe.S, assembled; a test assembles it again."""

_DISK_BYTES = 1 << 20


async def choose(
    setting: HypervisorSetting,
    *,
    agent: str,
    hypervisor: Hypervisor,
    run_dir: Path,
    remembered: Path | None = None,
) -> Virtualisation:
    """What a setting means on this host. ``auto`` is KVM only if a guest ran on it; Xen is never
    guessed: its guests are another libvirt's.

    The answer is kept in ``remembered`` until the host boots again. ``run_dir``: where a directory
    for the probe may be made."""
    if setting != "auto":
        return setting
    answer = await asyncio.to_thread(recall, remembered)
    if answer is None:
        answer = await guest_runs("kvm", agent=agent, hypervisor=hypervisor, run_dir=run_dir)
        await asyncio.to_thread(_remember, remembered, answer)
    return "kvm" if answer else "qemu"


def recall(remembered: Path | None) -> bool | None:
    """Whether KVM works, as was found out since the host booted; None where it was not."""
    if not KVM_DEVICE.exists():
        return False
    if remembered is None:
        return None
    # Unreadable or of another boot: then it is asked again.
    with suppress(OSError, ValueError, KeyError, TypeError):
        answer = json.loads(remembered.read_text("utf-8"))
        if answer["boot_id"] == _boot_id():
            return answer["kvm"] is True
    return None


def _remember(remembered: Path | None, works: bool) -> None:
    if remembered is None:
        return
    partial = remembered.with_name(f"{remembered.name}.partial")
    partial.write_text(json.dumps({"v": 1, "boot_id": _boot_id(), "kvm": works}), "utf-8")
    partial.replace(remembered)


def _boot_id() -> str:
    return Path("/proc/sys/kernel/random/boot_id").read_text("ascii").strip()


async def guest_runs(
    accelerator: Accelerator,
    *,
    agent: str,
    hypervisor: Hypervisor,
    run_dir: Path,
    limit_s: float = 10.0,
) -> bool:
    """Whether the probe's guest comes as far as long mode; False when libvirt refuses it.

    Raises NetworkError or TimedOut when libvirt itself does not answer."""
    lease = f"probe-{secrets.token_hex(4)}"
    directory = run_dir / lease
    files = [
        directory / name for name in ("console", "stdout", "stderr", "result", "files", "disc")
    ]
    try:
        await asyncio.to_thread(_write_files, directory, files)
        paths = [PurePosixPath(path) for path in files]
        spec = DomainSpec(
            agent=agent,
            lease=lease,
            accelerator=accelerator,
            memory_mib=32,
            vcpus=1,
            root=Disk(PurePosixPath(directory / "disk"), "raw"),
            context_iso=paths[5],
            console_log=paths[0],
            channels=tuple(paths[1:5]),
        )
        return await _says_ok(to_xml(spec), files[0], hypervisor, limit_s)
    finally:
        await to_the_end(asyncio.to_thread(shutil.rmtree, directory, ignore_errors=True))


def _write_files(directory: Path, files: list[Path]) -> None:
    directory.mkdir(mode=0o711, parents=True)
    disk = directory / "disk"
    for path in (*files, disk):
        channel.create(path)
    with disk.open("r+b") as file:
        file.write(PROBE_CODE.ljust(510, b"\0") + b"\x55\xaa")
        file.truncate(_DISK_BYTES)


async def _says_ok(xml: str, console: Path, hypervisor: Hypervisor, limit_s: float) -> bool:
    said = bytearray()
    ended = asyncio.Event()

    async def hear(data: bytes) -> None:
        said.extend(data)
        if b"OK\n" in said:
            ended.set()

    try:
        domain = await hypervisor.start(xml)
    except LaunchFailed:
        return False
    try:
        async with asyncio.timeout(limit_s):
            await channel.pump(console, hear, ended=ended, poll_s=0.1, limit_bytes=_DISK_BYTES)
    except TimeoutError:
        return False
    finally:
        await to_the_end(hypervisor.destroy(domain))
    return ended.is_set()
