"""Runs a tool of the host on an untrusted file, where it can do no harm (docs/decisions/0016).

The tool runs under bubblewrap, as a user of its own if we are root: new namespaces (no network, no
other processes), a root of nothing but the tool and its libraries, no capabilities, a seccomp
filter, resource limits, a time limit, bounded output. Files come in as open descriptors, which the
tool reopens as ``/proc/self/fd/N`` (``fd_path``): no directory of the host is in its sight. What it
may write is a descriptor, too.
"""

from __future__ import annotations

import asyncio
import os
import pwd
import shutil
import signal
import subprocess
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

from distrib.errors import ConfigInvalid, ImageError, NodeError, ToolMissing
from distrib.inspection.seccomp import compiled_filter
from distrib.printable import printable

DEFAULT_USER = "distrib-inspect"
# Where there is no such user: an id that nobody has (Debian gives out 60000-64999 on request only).
THROW_AWAY_UID = 64_731
_TMP_BYTES = 1 << 20
_STDERR_BYTES = 16 << 10
_READ_BYTES = 1 << 16
_SIGNALLED = 128
_TOOL_DIRS = "/usr/sbin:/usr/bin:/sbin:/bin"
_SYSTEM = ("bin", "sbin", "lib", "lib32", "lib64", "libx32")


class ToolFailed(ImageError):
    """A tool could not read the image, or was stopped at one of its limits."""

    code = "tool-failed"


@dataclass(frozen=True)
class Limits:
    """What one run may use; ``file_bytes`` is the size that a file it writes may reach."""

    wall_s: float = 60.0
    cpu_s: int = 60
    memory_bytes: int = 1 << 30
    file_bytes: int = _TMP_BYTES
    processes: int = 64
    open_files: int = 64
    output_bytes: int = 4 << 20


@dataclass(frozen=True)
class Ran:
    """How a tool ended: its exit status (128 + the signal that ended it), and what it said."""

    tool: str
    status: int
    stdout: bytes
    stderr: str

    def require(self) -> bytes:
        """What it wrote. Raises ToolFailed where it ended with another status than 0."""
        if self.status != 0:
            raise ToolFailed(self.told(), hint="the image may be damaged", tool=self.tool)
        return self.stdout

    def told(self) -> str:
        """One line on how it ended."""
        if self.status > _SIGNALLED:
            with suppress(ValueError):
                return f"{self.tool} was ended by {signal.Signals(self.status - _SIGNALLED).name}"
        lines = [line for line in self.stderr.splitlines() if line.strip()]
        said = f": {printable(lines[-1].strip())[:200]}" if lines else ""
        return f"{self.tool} ended with status {self.status}{said}"


@dataclass(frozen=True)
class Sandbox:
    """``uid`` None: as the user that we are, with all the rest."""

    uid: int | None = None

    @classmethod
    def of_user(cls, name: str = "") -> Sandbox:
        """For the user of that name; empty: the default one, or an id that nobody has.

        Raises ConfigInvalid for a name that is given and not there, or that is root.
        """
        if os.geteuid() != 0:
            return cls(None)
        try:
            uid = pwd.getpwnam(name or DEFAULT_USER).pw_uid
        except KeyError:
            if name:
                raise ConfigInvalid(
                    f"there is no user {name!r}",
                    hint="adduser --system, or leave intake.user empty",
                ) from None
            uid = THROW_AWAY_UID
        if uid == 0:
            raise ConfigInvalid("intake.user is root", hint="name a user without rights")
        return cls(uid)

    async def run(
        self,
        argv: Sequence[str],
        *,
        fds: Sequence[int] = (),
        stdin: int | bytes | None = None,
        stdout: int | None = None,
        limits: Limits | None = None,
        system: bool = False,
        also: Sequence[Path] = (),
    ) -> Ran:
        """Run ``argv`` with the descriptors ``fds``; ``stdout`` None: what it writes comes back.

        ``system`` shows it all of /usr, for scripts; ``also`` are more paths that it may read. If
        this is cancelled, the tool and its children are killed. Raises ToolFailed at a limit,
        ToolMissing where the tool or bubblewrap is not there or may not be used.
        """
        limits = limits or Limits()
        view = await asyncio.to_thread(_view, argv[0], system=system)
        rules = _memory_file(compiled_filter())
        try:
            process = await asyncio.create_subprocess_exec(
                *_bubblewrap(view, (*view.also, *also), rules),
                *_limited(limits),
                view.program,
                *argv[1:],
                stdin=subprocess.PIPE if isinstance(stdin, bytes) else _or_null(stdin),
                stdout=subprocess.PIPE if stdout is None else stdout,
                stderr=subprocess.PIPE,
                pass_fds=(*fds, rules),
                cwd="/",
                **self._user(),
            )
        except OSError as error:
            raise NodeError(
                f"{argv[0]} cannot be started: {error.strerror}", hint="is the host out of memory?"
            ) from None
        finally:
            os.close(rules)
        tool = Path(argv[0]).name
        try:
            async with asyncio.timeout(limits.wall_s):
                given = stdin if isinstance(stdin, bytes) else None
                output, errors = await _talk(process, given, limits.output_bytes, tool)
                status = await process.wait()
        except TimeoutError:
            raise ToolFailed(
                f"{tool} took longer than {limits.wall_s:g} s",
                hint="what it was given is hostile or very large",
                tool=tool,
            ) from None
        finally:
            # The first process of the namespace dies with bubblewrap, and all others with that.
            if process.returncode is None:
                with suppress(ProcessLookupError):
                    process.kill()
                await asyncio.shield(_ended(process))
        said = errors.decode(errors="replace")
        if status == 1 and said.startswith("bwrap: "):
            raise ToolMissing(
                f"no sandbox for {tool}: {printable(said.strip())[:200]}",
                hint="bubblewrap must be allowed to make user namespaces on this machine",
            )
        return Ran(tool, _status(status), output, said)

    def _user(self) -> dict[str, Any]:
        if self.uid is None:
            return {}
        return {"user": self.uid, "group": self.uid, "extra_groups": []}


def fd_path(descriptor: int) -> str:
    """The path under which a tool opens a descriptor that it was given."""
    return f"/proc/self/fd/{descriptor}"


@dataclass(frozen=True)
class _View:
    """What a tool sees: itself, prlimit, and their libraries; or all of /usr."""

    program: str
    files: tuple[str, ...]
    also: tuple[Path, ...]
    system: bool


@cache
def _view(tool: str, *, system: bool) -> _View:
    program = shutil.which(tool, path=_TOOL_DIRS)
    if program is None:
        raise ToolMissing(f"{tool} is not there", hint="scripts/setup installs it")
    if system:
        own = () if program.startswith("/usr/") else (program,)
        return _View(program, own, (), system=True)
    files = {program, _PRLIMIT} | _libraries(program) | _libraries(_PRLIMIT)
    # mtools turns names to the terminal's characters with modules that it loads by itself.
    gconv = {
        Path(file).resolve().parent / "gconv" for file in files if Path(file).name == "libc.so.6"
    }
    also = tuple(path for path in gconv if path.is_dir())
    return _View(program, tuple(sorted(files)), also, system=False)


def _libraries(program: str) -> set[str]:
    """By ldd, which starts the host's own loader: for tools of the host only."""
    ran = subprocess.run(
        ["/usr/bin/ldd", program], capture_output=True, text=True, check=False, timeout=20
    )
    words = (word for line in ran.stdout.splitlines() for word in line.split())
    return {word for word in words if word.startswith("/")}


_PRLIMIT = "/usr/bin/prlimit"


def _bubblewrap(view: _View, also: Sequence[Path], rules: int) -> list[str]:
    program = shutil.which("bwrap", path=_TOOL_DIRS)
    if program is None:
        raise ToolMissing("bubblewrap is not there", hint="apt-get install bubblewrap")
    binds: list[str] = []
    if view.system:
        binds += ["--ro-bind", "/usr", "/usr"]
        for name in _SYSTEM:
            link = Path("/") / name
            if link.is_symlink():
                binds += ["--symlink", str(link.readlink()), str(link)]
            elif link.is_dir():
                binds += ["--ro-bind", str(link), str(link)]
    for path in (*view.files, *(str(path) for path in also)):
        binds += ["--ro-bind", path, path]
    return [
        program,
        *("--unshare-all", "--die-with-parent", "--new-session", "--cap-drop", "ALL"),
        *("--proc", "/proc", "--dev", "/dev", "--remount-ro", "/dev"),
        *("--size", str(_TMP_BYTES), "--tmpfs", "/tmp"),  # noqa: S108
        *binds,
        *("--remount-ro", "/"),
        *("--chdir", "/", "--clearenv", "--setenv", "PATH", _TOOL_DIRS, "--setenv", "LC_ALL", "C"),
        *("--setenv", "HOME", "/tmp", "--seccomp", str(rules), "--"),  # noqa: S108
    ]


def _limited(limits: Limits) -> list[str]:
    """Inside the namespace, so that its user's other processes are not counted."""
    return [
        _PRLIMIT,
        f"--cpu={limits.cpu_s}",
        f"--as={limits.memory_bytes}",
        f"--fsize={limits.file_bytes}",
        f"--nofile={limits.open_files}",
        f"--nproc={limits.processes}",
        "--core=0",
        "--",
    ]


def _memory_file(data: bytes) -> int:
    descriptor = os.memfd_create("rules", os.MFD_CLOEXEC)
    os.write(descriptor, data)
    os.lseek(descriptor, 0, os.SEEK_SET)
    return descriptor


def _or_null(descriptor: int | None) -> int:
    return subprocess.DEVNULL if descriptor is None else descriptor


async def _talk(
    process: asyncio.subprocess.Process, given: bytes | None, limit_bytes: int, tool: str
) -> tuple[bytes, bytes]:
    try:
        async with asyncio.TaskGroup() as group:
            output = group.create_task(_read(process.stdout, limit_bytes, tool))
            errors = group.create_task(_read_first(process.stderr, _STDERR_BYTES))
            group.create_task(_give(process.stdin, given))
    except ExceptionGroup as failed:
        raise failed.exceptions[0] from None
    return output.result(), errors.result()


async def _ended(process: asyncio.subprocess.Process) -> None:
    """After a kill: its pipes to their end, or they stay open as long as we live."""
    if process.stdin is not None:
        process.stdin.close()
    for stream in (process.stdout, process.stderr):
        while stream is not None and await stream.read(_READ_BYTES):
            pass
    await process.wait()


async def _read(stream: asyncio.StreamReader | None, limit_bytes: int, tool: str) -> bytes:
    found = bytearray()
    while stream is not None and (chunk := await stream.read(_READ_BYTES)):
        found += chunk
        if len(found) > limit_bytes:
            raise ToolFailed(
                f"{tool} wrote more than {limit_bytes} bytes",
                hint="what it was given is hostile or very large",
                tool=tool,
            )
    return bytes(found)


async def _read_first(stream: asyncio.StreamReader | None, limit_bytes: int) -> bytes:
    found = bytearray()
    while stream is not None and (chunk := await stream.read(_READ_BYTES)):
        found += chunk[: limit_bytes - len(found)]
    return bytes(found)


async def _give(stream: asyncio.StreamWriter | None, data: bytes | None) -> None:
    if stream is None or data is None:
        return
    with suppress(ConnectionError):
        stream.write(data)
        await stream.drain()
    stream.close()


def _status(status: int) -> int:
    return _SIGNALLED - status if status < 0 else status
