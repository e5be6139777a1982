"""What is wrong on this node, looked for without the daemon (docs/formats/doctor.md).

Everything here looks and changes nothing, raises nothing, and is done within seconds.
"""

from __future__ import annotations

import json
import os
import shutil
import socket
import ssl
import stat
from collections.abc import Callable, Iterator
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Final

from cryptography import x509

from agent.cache import loops, lvm_findings
from agent.cache.durable import stems
from agent.cache.findings import Finding
from agent.launch.accelerator import recall
from agent.settings import AgentSettings

CERTIFICATE_WARNING: Final = timedelta(days=14)
CLOCK_TOLERANCE_S: Final = 300.0
BROKER_LIMIT_S: Final = 3.0
KVM: Final = Path("/dev/kvm")
CONFIG: Final = "/etc/distrib/agent.toml"

Look = Callable[[AgentSettings], Iterator[Finding]]


def examine(settings: AgentSettings) -> tuple[Finding, ...]:
    """All that is wrong, errors first."""
    found = [finding for look in LOOKS for finding in look(settings)]
    return tuple(sorted(found, key=lambda one: one.level))


def state_directory(settings: AgentSettings) -> Iterator[Finding]:
    """The agent's state: there, its own, whole."""
    directory = settings.state_dir
    if not directory.is_dir():
        yield Finding(
            "state-dir-missing",
            str(directory),
            "the agent's state directory is not there; it is made at the next start",
            "systemctl start distrib-agent",
            "warning",
        )
        return
    yield from _permissions("state-dir-permissions", directory)
    for file in sorted(directory.rglob("*")):
        if file.name.endswith(".bad"):
            yield Finding(
                "state-file-set-aside",
                str(file),
                "could not be read at a start; what it spoke of was verified anew",
                f"rm {file}",
                "warning",
            )
        elif file.suffix == ".json" and file.is_file() and not _is_json(file):
            resume = file.parent.name == "resume"  # passed over, never set aside
            yield Finding(
                "state-file-broken",
                str(file),
                "cannot be read; a start sets it aside and verifies what it spoke of"
                if not resume
                else "cannot be read; what it spoke of is verified when it is pulled on",
                f"rm {file}" if resume else "systemctl restart distrib-agent",
            )


def cache_directory(settings: AgentSettings) -> Iterator[Finding]:
    """The cache: its own, and on a disk that can hold what the quota promises."""
    directory = settings.cache.directory
    if not directory.is_dir():
        return
    yield from _permissions("cache-dir-permissions", directory)
    found = os.statvfs(directory)
    if found.f_flag & os.ST_RDONLY:
        yield Finding(
            "cache-read-only",
            str(directory),
            "its file system is mounted read-only, often after a fault of the disk",
            f"findmnt -T {directory}; dmesg | tail -50",
        )
    size = found.f_blocks * found.f_frsize
    if settings.cache.capacity_bytes > size:
        yield Finding(
            "quota-beyond-disk",
            str(directory),
            f"the quota is {settings.cache.capacity_bytes} bytes, its file system has {size}",
            f"df -h {directory}  # then lower cache.capacity_bytes in {CONFIG}",
            "warning",
        )
    if found.f_bavail * found.f_frsize < size // 100:
        yield Finding(
            "disk-full",
            str(directory),
            "less than 1 % of its file system is free",
            f"du -xsh {directory} && df -h {directory}",
        )


def tools(settings: AgentSettings) -> Iterator[Finding]:
    """Programs of the host that the settings need."""
    needed = {"qemu-img": "qemu-utils", "losetup": "mount", "virsh": "libvirt-clients"}
    for tool, package in needed.items():
        if shutil.which(tool, path=tool_path()) is None:
            yield Finding(
                "tool-missing",
                tool,
                f"the program {tool} is not there",
                f"apt-get install {package}",
                "warning" if tool == "virsh" else "error",
            )


def devices(settings: AgentSettings) -> Iterator[Finding]:
    """The pool of store `device`."""
    for device in settings.cache.devices:
        if not device.is_block_device():
            yield Finding(
                "device-missing",
                str(device),
                "named in cache.devices, and not a block device of this node",
                "lsblk -o NAME,SIZE,TYPE,MOUNTPOINTS; ls -l /dev/disk/by-id",
            )


def volume_group(settings: AgentSettings) -> Iterator[Finding]:
    """The group of store `lvm`, and what of ours in it belongs to nothing."""
    kept = [settings.state_dir / "volumes", settings.state_dir / "leases"]
    if settings.cache.lvm.vg is not None:
        known = {name for directory in kept if directory.is_dir() for name in stems(directory)}
        yield from lvm_findings.examine(settings.cache.lvm, known=known)


def leaked_loops(settings: AgentSettings) -> Iterator[Finding]:
    """Loop devices over files of the cache that no instance has."""
    for root in (
        settings.cache.directory / "instances",
        settings.cache.directory / "device-instances",
    ):
        for loop in loops.attached(root):
            described = loop.backing.parent / "instance.json"
            if loop.gone or not described.exists():
                gone = " (removed)" if loop.gone else ""
                yield Finding(
                    "loop-leaked",
                    str(loop.device),
                    f"over {loop.backing}{gone}, which no lease has",
                    f"distrib-agent gc  # or, with the agent down: losetup -d {loop.device}",
                    "warning",
                )


def virtualisation(settings: AgentSettings) -> Iterator[Finding]:
    """Whether guests can be fast."""
    if settings.launch.hypervisor not in {"auto", "kvm"}:
        return
    if not KVM.exists():
        yield Finding(
            "no-kvm",
            str(KVM),
            "guests run without hardware virtualisation, ten times slower",
            "modprobe kvm_intel || modprobe kvm_amd  # and enable it in the firmware",
            "error" if settings.launch.hypervisor == "kvm" else "warning",
        )
    elif recall(settings.state_dir / "accelerator.json") is False:
        yield Finding(
            "kvm-broken",
            str(KVM),
            "a guest was started with it and did not run: guests are emulated",
            "dmesg | grep -i kvm; lscpu | grep -i virtual",
            "warning",
        )


def certificate(settings: AgentSettings) -> Iterator[Finding]:
    """The node's certificate on the bus, its key, and the site's CA."""
    bus = settings.bus
    for what, file in (("bus.ca", bus.ca), ("bus.cert", bus.cert), ("bus.key", bus.key)):
        if not file.is_file():
            yield Finding(
                "certificate-missing", str(file), f"{what}: no such file", f"ls -l {file}"
            )
    if bus.key.is_file() and bus.key.stat().st_mode & 0o077:
        yield Finding(
            "key-readable", str(bus.key), "others can read the private key", f"chmod 600 {bus.key}"
        )
    if not any(settings.trust.ca_directory.glob("*")):
        yield Finding(
            "trust-empty",
            str(settings.trust.ca_directory),
            "the trust directory holds no CA: no site list can be believed",
            f"ls -l {settings.trust.ca_directory}",
        )
    if bus.cert.is_file():
        yield from _validity(bus.cert)


def clock(settings: AgentSettings) -> Iterator[Finding]:
    """A clock behind the time at which the agent wrote its own files."""
    now = datetime.now(UTC).timestamp()
    for name in ("site-list.smime", "agent.json", "desired.json"):
        file = settings.state_dir / name
        if file.exists() and file.stat().st_mtime > now + CLOCK_TOLERANCE_S:
            ahead_s = file.stat().st_mtime - now
            yield Finding(
                "clock-behind",
                str(file),
                f"was written {ahead_s:.0f} s from now: the clock was, or is, wrong",
                "timedatectl  # or: chronyc tracking",
            )
            return


def site_list(settings: AgentSettings) -> Iterator[Finding]:
    """When the newest site list was accepted: it is signed anew every hour."""
    file = settings.state_dir / "site-list.smime"
    if not settings.state_dir.is_dir():
        return
    if not file.exists():
        yield Finding(
            "site-list-missing",
            str(file),
            "no site list was ever accepted: no image comes",
            "journalctl -u distrib-agent | grep -e refused -e bus",
        )
        return
    age_s = datetime.now(UTC).timestamp() - file.stat().st_mtime
    if age_s > settings.trust.max_age_s:
        yield Finding(
            "site-list-stale",
            str(file),
            f"the newest one came {age_s / 3600:.0f} h ago: no new leases are given",
            "distrib node list  # does the head answer? then: distrib-agent status",
        )
    elif age_s > settings.trust.alarm_age_s:
        yield Finding(
            "site-list-old",
            str(file),
            f"the newest one came {age_s / 3600:.0f} h ago; new ones come every hour",
            "distrib node list  # does the head answer?",
            "warning",
        )


def broker(settings: AgentSettings) -> Iterator[Finding]:
    """Whether the broker answers, and as the site's."""
    bus, where = settings.bus, f"{settings.bus.host}:{settings.bus.port}"
    if not (bus.ca.is_file() and bus.cert.is_file() and bus.key.is_file()):
        return  # told already
    command = (
        f"openssl s_client -connect {where} -CAfile {bus.ca} -cert {bus.cert} -key {bus.key}"
        " </dev/null"
    )
    try:
        context = ssl.create_default_context(cafile=str(bus.ca))
        context.load_cert_chain(bus.cert, bus.key)
        with (
            socket.create_connection((bus.host, bus.port), BROKER_LIMIT_S) as plain,
            context.wrap_socket(plain, server_hostname=bus.host),
        ):
            return
    except ssl.SSLError as error:
        yield Finding("broker-refused", where, f"TLS: {error.reason or error}", command)
    except OSError as error:
        yield Finding(
            "broker-unreachable", where, f"does not answer: {error.strerror or error}", command
        )


LOOKS: Final[tuple[Look, ...]] = (
    state_directory,
    cache_directory,
    tools,
    devices,
    volume_group,
    leaked_loops,
    virtualisation,
    certificate,
    clock,
    site_list,
    broker,
)
"""All of them, in the order in which they are told."""


def _permissions(code: str, directory: Path) -> Iterator[Finding]:
    found = directory.stat()
    if found.st_mode & (stat.S_IWGRP | stat.S_IWOTH):
        yield Finding(
            code,
            str(directory),
            "others than the agent may write into it",
            f"chmod go-w {directory}",
        )
    if found.st_uid != 0 and found.st_uid != os.geteuid():
        yield Finding(
            code, str(directory), f"belongs to uid {found.st_uid}", f"chown root {directory}"
        )


def _validity(file: Path) -> Iterator[Finding]:
    show = f"openssl x509 -in {file} -noout -subject -dates"
    try:
        known = x509.load_pem_x509_certificate(file.read_bytes())
    except (OSError, ValueError) as error:
        yield Finding("certificate-broken", str(file), f"cannot be read: {error}", show)
        return
    now, ends = datetime.now(UTC), known.not_valid_after_utc
    if known.not_valid_before_utc > now:
        yield Finding(
            "certificate-early",
            str(file),
            f"is valid from {known.not_valid_before_utc:%F}: the node's clock?",
            show,
        )
    elif ends <= now:
        yield Finding("certificate-expired", str(file), f"ended on {ends:%F}; renew it", show)
    elif ends - now < CERTIFICATE_WARNING:
        yield Finding(
            "certificate-expiring",
            str(file),
            f"ends on {ends:%F}, in {(ends - now).days} days; renew it",
            show,
            "warning",
        )


def _is_json(file: Path) -> bool:
    try:
        json.loads(file.read_bytes())
    except OSError:
        return True  # gone meanwhile, or another fault
    except ValueError:
        return False
    return True


def tool_path() -> str:
    """Where the programs of the host are looked for."""
    return os.pathsep.join((os.environ.get("PATH", os.defpath), "/usr/sbin", "/sbin"))
