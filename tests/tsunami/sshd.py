"""An sshd of our own: its port, its host key, its home directory for whoever logs in.

Each has a mount namespace, in which one path (``srv``) is a directory of its own: so that several
on one machine are hosts with the same paths and other files.
"""

from __future__ import annotations

import contextlib
import os
import pwd
import select
import socket
import subprocess
import time
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path

from distrib.tsunami.keys import HostTrust, Identity
from distrib.tsunami.ssh import Connection, Limits, connect

SSHD = "/usr/sbin/sshd"
USER = pwd.getpwuid(os.getuid()).pw_name


def make_key(file: Path, *more: str) -> Path:
    """A new Ed25519 key pair; ``file`` is the private half."""
    file.unlink(missing_ok=True)
    command = ["ssh-keygen", "-q", "-t", "ed25519", "-N", "", "-C", file.name, "-f", str(file)]
    subprocess.run([*command, *more], check=True)
    return file


def public(file: Path) -> str:
    """The public half, without its comment."""
    return " ".join(file.with_name(f"{file.name}.pub").read_text().split()[:2])


def public_of(file: Path) -> str:
    """The public half, from the private one."""
    command = ["ssh-keygen", "-y", "-f", str(file)]
    done = subprocess.run(command, check=True, capture_output=True, text=True)
    return " ".join(done.stdout.split()[:2])


@dataclass
class Sshd:
    """One sshd in a directory. ``home`` is what its users have as $HOME; ``prefix`` goes before its
    command, to run it in another network namespace (there it needs a ``port``)."""

    directory: Path
    address: str = "127.0.0.1"
    settings: tuple[str, ...] = ()
    environment: tuple[str, ...] = ()
    port: int = 0
    prefix: tuple[str, ...] = ()
    process: subprocess.Popen[bytes] | None = field(default=None, repr=False)

    def __post_init__(self) -> None:
        self.home.mkdir(parents=True)
        self.files.mkdir()
        self.srv.mkdir(exist_ok=True)
        self.keys_file.parent.mkdir(mode=0o700)
        make_key(self.host_key_file)

    @property
    def home(self) -> Path:
        return self.directory / "home"

    @property
    def files(self) -> Path:
        """What the host itself sees at ``srv``."""
        return self.directory / "srv"

    @property
    def srv(self) -> Path:
        """The same path on all hosts in one directory."""
        return self.directory.parent / "srv"

    @property
    def keys_file(self) -> Path:
        return self.home / ".ssh" / "authorized_keys"

    @property
    def host_key_file(self) -> Path:
        return self.directory / "host_key"

    @property
    def host_key(self) -> str:
        return public(self.host_key_file)

    @property
    def trust(self) -> HostTrust:
        return HostTrust(keys=(self.host_key,))

    @property
    def known_hosts_line(self) -> str:
        return f"[{self.address}]:{self.port} {self.host_key}\n"

    def admit(self, line: str) -> None:
        """Append a line to ``authorized_keys``."""
        with self.keys_file.open("a") as stream:
            stream.write(line + "\n")
        self.keys_file.chmod(0o600)

    def start(self) -> None:
        """Listen; returns once it does."""
        Path("/run/sshd").mkdir(exist_ok=True)
        if not self.port:
            with socket.create_server((self.address, 0)) as probe:
                self.port = probe.getsockname()[1]
        lines = [
            f"ListenAddress {self.address}:{self.port}",
            f"HostKey {self.host_key_file}",
            f"AuthorizedKeysFile {self.keys_file}",
            f"PidFile {self.directory / 'pid'}",
            " ".join(("SetEnv", f"HOME={self.home}", *self.environment)),
            "UsePAM no",
            "StrictModes no",
            "PasswordAuthentication no",
            "KbdInteractiveAuthentication no",
            "PermitRootLogin yes",
            "MaxStartups 100",
            "MaxSessions 100",
            "AllowTcpForwarding yes",
            "AllowAgentForwarding yes",
            "PermitTunnel yes",
            "PermitTTY yes",
            "Subsystem sftp internal-sftp",
            *self.settings,
        ]
        config = self.directory / "sshd_config"
        config.write_text("\n".join(lines) + "\n")
        own = f'mount --bind "{self.files}" "{self.srv}" && exec {SSHD} -D -e -f "{config}"'
        self.process = subprocess.Popen(
            [*self.prefix, "unshare", "--mount", "sh", "-c", own],
            stderr=subprocess.PIPE,
            start_new_session=True,
        )
        self._await_listening()

    def _await_listening(self) -> None:
        assert self.process is not None
        assert self.process.stderr is not None
        fd, told, until = self.process.stderr.fileno(), b"", time.monotonic() + 20
        while b"Server listening" not in told:
            ready, _, _ = select.select([fd], [], [], max(0, until - time.monotonic()))
            more = os.read(fd, 65536) if ready else b""
            assert more, told.decode()
            told += more
        # Nobody reads on: what it says from here must not stop it.
        os.set_blocking(fd, False)

    def stop(self) -> None:
        """End it, and its connections with it."""
        if self.process is None:
            return
        assert self.process.stderr is not None
        for child in _descendants(self.process.pid):
            with contextlib.suppress(ProcessLookupError):
                os.kill(child, 9)
        self.process.kill()
        self.process.wait()
        self.process.stderr.close()
        self.process = None

    def connect(
        self, key: Path, *, trust: HostTrust | None = None, limits: Limits | None = None
    ) -> Connection:
        """Log in with a key."""
        return connect(
            self.address,
            self.port,
            USER,
            identity=Identity.read(key),
            trust=trust or self.trust,
            limits=limits,
        )


@contextlib.contextmanager
def running(directory: Path, *settings: str, address: str = "127.0.0.1") -> Iterator[Sshd]:
    """An sshd for as long as the block lasts."""
    sshd = Sshd(directory, address, settings)
    sshd.start()
    try:
        yield sshd
    finally:
        sshd.stop()


def _descendants(pid: int) -> list[int]:
    found: list[int] = []
    for child in Path(f"/proc/{pid}/task/{pid}/children").read_text().split():
        found += [*_descendants(int(child)), int(child)] if Path(f"/proc/{child}").exists() else []
    return found
