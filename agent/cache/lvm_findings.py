"""What is wrong with a node's volume group, for `distrib-agent doctor`: looks, and changes nothing.

What the daemon alone can tell, a logical volume of ours that no record or lease owns, it is given
as ``known``.
"""

from __future__ import annotations

import subprocess
from collections.abc import Collection
from pathlib import Path
from typing import Final

from agent.cache.findings import Finding
from agent.cache.lvm_inventory import PREFIX, Inventory
from agent.cache.lvmtools import LvmTools
from agent.settings import LvmSettings
from distrib.errors import DistribError, ToolMissing

RULE: Final = "57-distrib-lvm.rules"
_RULE_DIRECTORIES: Final = (
    Path("/etc/udev/rules.d"),
    Path("/run/udev/rules.d"),
    Path("/usr/lib/udev/rules.d"),
    Path("/lib/udev/rules.d"),
)
_TIMEOUT_S: Final = 10.0


def rule_file() -> Path:
    """The udev rule that the package brings."""
    return Path(__file__).parents[1] / "data" / RULE


def examine(settings: LvmSettings, *, known: Collection[str] | None = None) -> tuple[Finding, ...]:
    """Every fault that can be seen. ``known`` are the info-hashes and leases that the agent
    keeps; None: not known, and leaked volumes are not looked for."""
    if settings.vg is None:
        return ()
    try:
        tools = LvmTools.open(settings.vg, settings.pvs, timeout_s=_TIMEOUT_S)
        found = tools.inventory()
    except ToolMissing as error:
        return (Finding("tool-missing", "lvm", error.message, "apt-get install lvm2"),)
    except DistribError as error:
        return (
            Finding("lvm-group-unusable", settings.vg, error.message, f"vgs {settings.vg}"),
            *_host_faults(settings.vg),
        )
    return (*_group_faults(found), *_leaked(found, known), *_host_faults(settings.vg))


def _group_faults(found: Inventory) -> list[Finding]:
    faults = []
    if found.missing_pvs:
        faults.append(
            Finding(
                "lvm-pv-missing",
                found.vg,
                f"{found.missing_pvs} physical volume(s) of {found.vg} are missing: nothing can be"
                " made in it, and images that lie there cannot be read",
                f"vgreduce --removemissing --force {found.vg}",
            )
        )
    for lv in found.lvs:
        path = f"{found.vg}/{lv.name}"
        if lv.name.startswith(PREFIX) and not lv.ours:
            faults.append(
                Finding(
                    "lvm-foreign-volume",
                    path,
                    f"{path} has a name of ours and is not ours (no tag distrib)",
                    f"lvrename {path} foreign-{lv.name.removeprefix(PREFIX)[:16]}",
                    "warning",
                )
            )
        elif lv.ours and lv.invalid:
            faults.append(
                Finding(
                    "lvm-snapshot-overflowed",
                    path,
                    f"the instance of lease {lv.tag('lease')} has overflowed: its job gets errors",
                    f"distrib-agent release {lv.tag('lease')}",
                )
            )
    return faults


def _leaked(found: Inventory, known: Collection[str] | None) -> list[Finding]:
    if known is None:
        return []
    return [
        Finding(
            "lvm-volume-leaked",
            f"{found.vg}/{lv.name}",
            f"{found.vg}/{lv.name} belongs to no image and no lease of this node",
            "distrib-agent gc",
            "warning",
        )
        for lv in found.ours
        if not {lv.tag("lease") or lv.tag("infohash")} <= set(known)
    ]


def _host_faults(vg: str) -> list[Finding]:
    """What the host does with devices that guests write to, and whether it can make snapshots."""
    faults = []
    if _run("lvm", "lvmconfig", "--typeconfig", "full", "devices/scan_lvs").endswith("=1"):
        faults.append(
            Finding(
                "lvm-host-scans-guests",
                "/etc/lvm/lvm.conf",
                "devices/scan_lvs=1: the host's own LVM reads what guests write to their disks",
                "sed -i 's/^\\s*scan_lvs\\s*=\\s*1/scan_lvs = 0/' /etc/lvm/lvm.conf",
            )
        )
    has_udev = Path("/run/udev/control").exists()
    if has_udev and not any((directory / RULE).exists() for directory in _RULE_DIRECTORIES):
        faults.append(
            Finding(
                "lvm-udev-rule-missing",
                RULE,
                "udev reads file systems and signatures that guests write to their disks",
                f"install -m 644 {rule_file()} /etc/udev/rules.d/ && udevadm control --reload",
            )
        )
    if not _has_target("snapshot"):
        faults.append(
            Finding(
                "lvm-module-missing",
                "dm-snapshot",
                f"the kernel cannot make snapshots: no instances in {vg}",
                "modprobe dm-snapshot",
            )
        )
    return faults


def _has_target(name: str) -> bool:
    """Whether the kernel has a device-mapper target, loaded or to be loaded."""
    loaded = [line.split()[0] for line in _run("dmsetup", "targets").splitlines() if line]
    return name in loaded or _ok("modprobe", "--dry-run", "--quiet", f"dm-{name}")


def _run(*command: str) -> str:
    done = _done(*command)
    return done.stdout.strip() if done else ""


def _ok(*command: str) -> bool:
    done = _done(*command)
    return done is not None and done.returncode == 0


def _done(*command: str) -> subprocess.CompletedProcess[str] | None:
    try:
        return subprocess.run(
            command,
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
            errors="replace",
            timeout=_TIMEOUT_S,
            check=False,
            env={"PATH": "/usr/sbin:/usr/bin:/sbin:/bin", "LC_ALL": "C"},
        )
    except (OSError, subprocess.TimeoutExpired):
        return None
