"""The one place that runs LVM's tools.

Every call carries its own configuration, so that neither the host's lvm.conf nor what guests have
written decides what is read:

* the filter accepts the physical volumes of our volume group by name and rejects all else; never
  device-mapper nodes, hence never the logical volumes that guests write to;
* no devices file, no hints, no scan of logical volumes, no list of devices from udev;
* no archive and no backup of metadata (each lease would write one), no dmeventd, no D-Bus.

Commands go to LVM's own shell, which is kept running (agent/cache/lvm_shell.py); where that cannot
be, each is a program of its own. No other shell, locale C, a clean environment, a time limit. LVM's
own line is in the error.
"""

from __future__ import annotations

import contextlib
import json
import re
import signal
import subprocess
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, Final

from agent.cache.lvm_inventory import FIELDS, Inventory, LvmReport, read_inventory
from agent.cache.lvm_shell import LvmShell, ShellLostError, TooSlowError, udev_runs
from distrib.errors import ConfigInvalid, NoSpace, StorageFailed, ToolMissing

_PV_NAME: Final = re.compile(r"/dev/[A-Za-z0-9/_.:+=@-]+")
_VG_NAME: Final = re.compile(r"[A-Za-z0-9_.+][A-Za-z0-9_.+-]*")
_VG_NAME_MAX: Final = 40  # device-mapper names end at 127 characters, "-" counts twice
_NEVER: Final = ("/dev/dm-", "/dev/mapper/", "/dev/loop", "/dev/zram", "/dev/ram")
_ENVIRONMENT: Final = {
    "PATH": "/usr/sbin:/usr/bin:/sbin:/bin",
    "LC_ALL": "C",
    "LVM_SUPPRESS_FD_WARNINGS": "1",
}
_FULL: Final = re.compile(
    r"insufficient (free space|suitable|allocatable)|not enough (free|space)|"
    r"no free extents|insufficient free",
    re.IGNORECASE,
)
_INTERRUPT_GRACE_S: Final = 10.0
_ASKING: Final = frozenset({"pvs", "vgs"})
_SHELL: Final = LvmShell()
"""One for the process: each command says by itself which volume group it is about."""


@dataclass(frozen=True)
class LvmTools:
    """Runs the tools for one volume group. ``pvs`` are the devices that may be read, ``allocate``
    those that our volumes may lie on (empty: all of the group)."""

    vg: str
    pvs: tuple[str, ...]
    allocate: tuple[str, ...] = ()
    timeout_s: float = 60.0
    shell: LvmShell = field(default=_SHELL, repr=False, compare=False)

    @classmethod
    def open(cls, vg: str, allocate: Sequence[Path] = (), *, timeout_s: float = 60.0) -> LvmTools:
        """Find the group's physical volumes, and read no others from then on.

        Device-mapper and loop devices are only looked at where ``allocate`` names them. Raises
        ConfigInvalid, ToolMissing or StorageFailed."""
        if not _VG_NAME.fullmatch(vg) or len(vg.replace("-", "--")) > _VG_NAME_MAX:
            raise ConfigInvalid(
                f"cache.lvm.vg = {vg!r}: not the name of a volume group, or longer than "
                f"{_VG_NAME_MAX} characters",
                hint="see `vgs`",
                key="cache.lvm.vg",
            )
        for pv in allocate:
            if not _PV_NAME.fullmatch(str(pv)):
                raise ConfigInvalid(
                    f"cache.lvm.pvs: {str(pv)!r} is not the name of a device",
                    hint="name physical volumes as `pvs` shows them",
                    key="cache.lvm.pvs",
                )
        named = tuple(str(pv) for pv in allocate)
        looking = cls(vg, named, (), timeout_s)
        with _as_settings(vg):
            found = looking._found(_filter(named, last=tuple(_NEVER)))
        missing = [pv for pv in named if str(Path(pv).resolve()) not in found.real]
        if missing:
            raise ConfigInvalid(
                f"{', '.join(missing)}: not a physical volume of {vg}",
                hint=f"`vgextend {vg} {missing[0]}`, or change cache.lvm.pvs",
                key="cache.lvm.pvs",
            )
        chosen = tuple(found.real[str(Path(pv).resolve())] for pv in named)
        return replace(looking, pvs=found.names, allocate=chosen)

    def inventory(self) -> Inventory:
        """What the volume group holds, from disk and kernel. Raises StorageFailed."""
        # One report of all: a group without logical volumes has rows here too.
        output = self._call(["pvs", *_REPORT, "-o", FIELDS], self._config(issue_discards=False))
        rows = [row for row in _rows(output, "pv") if row["vg_name"] == self.vg]
        if not rows:
            raise StorageFailed(
                f"volume group {self.vg} is not there any more",
                hint=f"see `vgs`, and whether {', '.join(self.pvs)} can be read",
                path=f"/dev/{self.vg}",
            )
        return read_inventory(rows, self.vg, self.allocate)

    def run(self, tool: str, *arguments: str, issue_discards: bool = False) -> None:
        """Run a tool that changes something. Raises NoSpace, StorageFailed or ToolMissing."""
        self._call([tool, "--yes", *arguments], self._config(issue_discards=issue_discards))

    def _config(self, *, issue_discards: bool) -> str:
        return _config(_filter(self.pvs, last=("",)), issue_discards=issue_discards)

    def _found(self, filter_: str) -> _Found:
        config = _config(filter_, issue_discards=False)
        fields = "pv_name,vg_name,vg_uuid,vg_exported,vg_lock_type,pv_missing"
        output = self._call(["vgs", *_REPORT, "-o", fields, self.vg], config)
        rows = _rows(output, "vg")
        if any(row["vg_exported"] or row["vg_lock_type"] for row in rows):
            raise ConfigInvalid(
                f"volume group {self.vg} is exported, or shared between hosts",
                hint=f"`vgimport {self.vg}`, or give the cache a group of its own",
                key="cache.lvm.vg",
            )
        names = tuple(row["pv_name"] for row in rows if row["pv_name"].startswith("/dev/"))
        return _Found(names, {str(Path(name).resolve()): name for name in names})

    def _call(self, command: Sequence[str], config: str) -> str:
        tool, *rest = command
        arguments = [tool, "--config", config, *rest]
        try:
            ok, output, errors = self._by_shell(arguments) or self._by_program(arguments)
        except (TooSlowError, subprocess.TimeoutExpired):
            raise StorageFailed(
                f"{tool} took more than {self.timeout_s:g} s: another command holds volume "
                f"group {self.vg}, or its disk does not answer",
                hint=f"see `lsof /run/lock/lvm/V_{self.vg}` and the kernel's log",
                path=f"/dev/{self.vg}",
            ) from None
        if ok:
            return output
        line = own_line(errors)
        if _FULL.search(line):
            raise NoSpace(
                f"{tool}: {line}", hint=f"see `vgs {self.vg}`", path=f"/dev/{self.vg}", free_bytes=0
            )
        raise StorageFailed(
            f"{tool}: {line or 'failed, and did not say why'}",
            hint=f"see `vgs {self.vg}`, `lvs -a {self.vg}` and the kernel's log",
            path=f"/dev/{self.vg}",
        )

    def _by_shell(self, arguments: Sequence[str]) -> tuple[bool, str, str] | None:
        asking = arguments[0] in _ASKING
        try:
            answer = self.shell.ask(
                arguments,
                changes=not asking,
                environment=_ENVIRONMENT,
                timeout_s=self.timeout_s,
            )
        except ShellLostError as error:
            if asking:
                return None
            raise StorageFailed(
                f"{arguments[0]}: LVM's shell was lost in the middle of it: {error}",
                hint=f"see `lvs -a {self.vg}` and the kernel's log",
                path=f"/dev/{self.vg}",
            ) from error
        return (answer.ok, answer.report, answer.errors) if answer else None

    def _by_program(self, arguments: Sequence[str]) -> tuple[bool, str, str]:
        try:
            process = subprocess.Popen(
                ["lvm", *arguments],
                stdin=subprocess.DEVNULL,
                stdout=subprocess.PIPE,
                stderr=subprocess.PIPE,
                text=True,
                errors="replace",
                env=_ENVIRONMENT,
                # Signals to the agent's group must not end a tool between two steps.
                start_new_session=True,
            )
        except FileNotFoundError:
            raise ToolMissing("lvm is not there", hint="install lvm2", tool="lvm") from None
        with process:
            try:
                output, errors = process.communicate(timeout=self.timeout_s)
            except subprocess.TimeoutExpired:
                self._interrupt(process)
                raise
        return process.returncode == 0, output, errors

    @staticmethod
    def _interrupt(process: subprocess.Popen[str]) -> None:
        # LVM takes an interrupt where it waits for a lock, and not between two steps of a change.
        process.send_signal(signal.SIGINT)
        try:
            process.communicate(timeout=_INTERRUPT_GRACE_S)
        except subprocess.TimeoutExpired:
            process.kill()
            process.communicate()


@dataclass(frozen=True)
class _Found:
    """Physical volumes as LVM names them, and the same by what the names lead to."""

    names: tuple[str, ...]
    real: dict[str, str]


_REPORT: Final = ("--reportformat", "json", "--units", "b", "--nosuffix")


@contextlib.contextmanager
def _as_settings(vg: str) -> Iterator[None]:
    """A group that cannot be read at a start is a matter of the settings."""
    try:
        yield
    except StorageFailed as error:
        raise ConfigInvalid(
            f"volume group {vg}: {error.message}",
            hint="see `vgs`; name physical volumes on device-mapper or loop devices in"
            " cache.lvm.pvs",
            key="cache.lvm.vg",
        ) from error


def own_line(errors: str) -> str:
    """What LVM complained of: its first line that is no warning."""
    lines = [line.strip() for line in errors.splitlines() if line.strip()]
    grave = [line for line in lines if not line.startswith(("WARNING:", "File descriptor"))]
    return (grave or lines or [""])[0][:500]


def _filter(accept: Sequence[str], *, last: Sequence[str]) -> str:
    """LVM's filter: the first pattern that one of a device's names matches decides. A name that
    matches none is accepted, unless another name of the device was rejected."""
    names = [name for pv in accept for name in dict.fromkeys((pv, str(Path(pv).resolve())))]
    accepted = [f"a|^{re.escape(name)}$|" for name in names]
    rejected = [f"r|^{re.escape(prefix)}|" if prefix else "r|.*|" for prefix in last]
    return "[" + ", ".join(json.dumps(one.replace("\\-", "-")) for one in accepted + rejected) + "]"


def _config(filter_: str, *, issue_discards: bool) -> str:
    udev = int(udev_runs())
    return (
        f"devices {{ filter={filter_} use_devicesfile=0 scan_lvs=0 hints=none"
        " obtain_device_list_from_udev=0 external_device_info_source=none"
        f" issue_discards={int(issue_discards)} }}"
        f" activation {{ udev_sync={udev} udev_rules={udev} monitoring=0"
        " snapshot_autoextend_threshold=100 }"
        " backup { archive=0 backup=0 }"
        " global { notify_dbus=0 use_lvmpolld=0 }"
    ).replace("=none", '="none"')


def _rows(output: str, kind: str) -> list[LvmReport]:
    try:
        found: Any = json.loads(output)
        return [dict(row) for report in found["report"] for row in report[kind]]
    except (ValueError, KeyError, TypeError) as error:
        raise StorageFailed(
            f"lvm's report cannot be read: {error}", hint="is this LVM 2.02.158 or newer?"
        ) from error
