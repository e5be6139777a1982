"""What a launch is made from: the job, its limits, the guest's hardware, and the files of it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path, PurePosixPath
from typing import Literal

from agent.launch.context import SitePart
from agent.launch.domain import (
    Bus,
    CacheMode,
    Disk,
    DomainSpec,
    IoMode,
    Machine,
    Nic,
    Share,
    Virtualisation,
)
from agent.launch.hypervisor import Usage

INPUTS = ("stdin", "files")
"""What may be brought to a job before it starts: its standard input; a tar of its directory."""


@dataclass(frozen=True)
class Limits:
    """``boot_timeout_s``: from power-on to the guest's first sign on a channel;
    ``wall_s``: from power-on to power-off, None for no limit; time suspended does not count;
    ``poweroff_s``: from the job's exit status to power-off; ``terminate_s``: from a signal that
    ends the job to the end of its guest; ``output_bytes``: of each of stdout and stderr;
    ``files_bytes``: of the directory that comes back; ``poll_s``: how often files are looked at;
    ``usage_s``: how often the hypervisor is asked what the guest has used."""

    boot_timeout_s: float = 300.0
    wall_s: float | None = None
    poweroff_s: float = 60.0
    terminate_s: float = 10.0
    output_bytes: int = 1 << 30
    files_bytes: int = 1 << 30
    console_bytes: int = 16 << 20
    poll_s: float = 0.1
    usage_s: float = 2.0


@dataclass(frozen=True)
class RunFiles:
    """The files of one launch, in its directory."""

    directory: Path

    @property
    def iso(self) -> Path:
        return self.directory / "context.iso"

    @property
    def opennebula_iso(self) -> Path:
        return self.directory / "opennebula.iso"

    @property
    def console(self) -> Path:
        return self.directory / "console.log"

    @property
    def channels(self) -> tuple[Path, Path, Path, Path]:
        """stdout, stderr, result, files: in the order of ``domain.CHANNELS``."""
        return self.stdout, self.stderr, self.result, self.files

    @property
    def stdout(self) -> Path:
        return self.directory / "stdout"

    @property
    def stderr(self) -> Path:
        return self.directory / "stderr"

    @property
    def result(self) -> Path:
        return self.directory / "result"

    @property
    def files(self) -> Path:
        return self.directory / "files"

    @property
    def record(self) -> Path:
        return self.directory / "launch.json"

    @property
    def outcome(self) -> Path:
        return self.directory / "outcome.json"

    def given(self, name: str) -> Path:
        """Where an input (``INPUTS``) is kept until it is on the disc."""
        return self.directory / f"given-{name}"


@dataclass(frozen=True)
class Hardware:
    """What the guest's machine looks like."""

    machine: Machine = "pc"
    cpu: str = "auto"
    bus: Bus = "virtio"
    cache: CacheMode = "auto"
    io: IoMode = "auto"


@dataclass(frozen=True)
class JobSpec:
    """A launch. ``run_dir`` must not exist: it is made, used and removed by the launch; the
    account that QEMU runs as must be able to pass through its parents.

    ``disk_owner``: (uid, gid) of that account, to whom the instance and the scratch disk are given
    before the start; None where they are its own already. What the instance is backed by must be
    readable to it, and is left as it is. ``run_as``: the account that QEMU is started as for this
    guest alone. ``inputs``: which of ``INPUTS`` lie in ``run_dir``. ``context``: the job's own
    script that makes the guest ready for it."""

    agent: str
    lease_id: str
    script: bytes
    disk_path: Path
    disk_format: Literal["raw", "qcow2"]
    memory_mib: int
    vcpus: int
    run_dir: Path
    args: Sequence[str] = ()
    environment: Mapping[str, str] = field(default_factory=dict)
    inputs: Sequence[str] = ()
    context: bytes = b""
    disk_block: bool = False
    scratch_path: Path | None = None
    scratch_block: bool = False
    hardware: Hardware = field(default_factory=Hardware)
    disk_owner: tuple[int, int] | None = None
    run_as: tuple[int, int] | None = None
    accelerator: Virtualisation = "qemu"
    nic: Nic | None = None
    share: Share | None = None
    opennebula: bool = False
    site: SitePart = field(default_factory=SitePart)
    limits: Limits = field(default_factory=Limits)

    @property
    def files(self) -> RunFiles:
        """The files of the launch."""
        return RunFiles(self.run_dir)

    def domain(self) -> DomainSpec:
        """The domain that it runs in."""
        hardware, files = self.hardware, self.files

        def disk(path: Path, form: Literal["raw", "qcow2"], block: bool) -> Disk:
            return Disk(
                PurePosixPath(path),
                form,
                block,
                bus=hardware.bus,
                cache=hardware.cache,
                io=hardware.io,
            )

        return DomainSpec(
            agent=self.agent,
            lease=self.lease_id,
            accelerator=self.accelerator,
            memory_mib=self.memory_mib,
            vcpus=self.vcpus,
            machine=hardware.machine,
            cpu=hardware.cpu,
            root=disk(self.disk_path, self.disk_format, self.disk_block),
            scratch=(
                disk(self.scratch_path, "raw", self.scratch_block) if self.scratch_path else None
            ),
            context_iso=PurePosixPath(files.iso),
            opennebula_iso=PurePosixPath(files.opennebula_iso) if self.opennebula else None,
            console_log=PurePosixPath(files.console),
            channels=tuple(PurePosixPath(path) for path in files.channels),
            nic=self.nic,
            share=self.share,
            run_as=self.run_as,
        )


@dataclass(frozen=True)
class JobResult:
    """``phases``: seconds from the beginning of the launch to ``prepared``, ``started``,
    ``booted``, ``done`` (the job) and ``ended``. ``signal``: the number of the one that ended the
    job, if one did; ``exit_status`` is then the job's own or 128 + its number."""

    exit_status: int
    console_log_tail: str
    phases: dict[str, float]
    usage: Usage = field(default_factory=Usage)
    signal: int | None = None
