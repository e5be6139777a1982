"""A bed: a copy of this machine's root in namespaces of its own, with hosts in it.

What is installed, configured or started in a bed is gone when it ends; the machine is untouched.
Hosts share the file system, as with a network file system, but for the directories named private.
"""

from __future__ import annotations

import os
import subprocess
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path

from tests.farm.network import Host

HERE = Path(__file__).parent
PRIVATE = ("/run/distrib", "/var/lib/distrib")
"""What every host has for itself."""

PATH = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"
NETWORK = "10.79.0"


@dataclass(frozen=True)
class BedHost(Host):
    """A host: names of its own for itself, its network and its private directories.

    ``namespace`` is the pid, outside, of the process that holds its namespaces."""

    name: str = ""

    @property
    def prefix(self) -> tuple[str, ...]:
        return ("nsenter", "-t", self.namespace, "-m", "-p", "-n", "-u", "-i", "--wdns=/")

    def path(self, inside: str | Path) -> Path:
        """Where a path of this host is for the tests."""
        return Path(f"/proc/{self.namespace}/root/{str(inside).lstrip('/')}")

    def run(
        self,
        *arguments: str | Path,
        user: str | None = None,
        stdin: str = "",
        environment: Mapping[str, str] | None = None,
        check: bool = True,
        limit_s: float = 60.0,
    ) -> subprocess.CompletedProcess[str]:
        """Run a command here, as root or as an account of the bed."""
        become = () if user is None else ("setpriv", f"--reuid={user}", f"--regid={user}")
        become += () if user is None else ("--init-groups",)
        done = subprocess.run(
            [*self.prefix, *become, *map(str, arguments)],
            input=stdin,
            capture_output=True,
            text=True,
            errors="replace",
            timeout=limit_s,
            check=False,
            env={"PATH": PATH, "LC_ALL": "C.UTF-8", "HOME": "/tmp", **(environment or {})},
        )
        if check and done.returncode != 0:
            text = " ".join(map(str, arguments))
            raise AssertionError(f"{text}: exit {done.returncode}\n{done.stdout}{done.stderr}")
        return done


@dataclass
class Bed:
    """The running bed. ``head`` is its first host."""

    directory: Path
    head: BedHost
    hosts: list[BedHost] = field(default_factory=list)
    keepers: list[subprocess.Popen[bytes]] = field(default_factory=list)

    def add_host(self, name: str) -> BedHost:
        """A further host, on the bed's network and in everybody's /etc/hosts."""
        number = len(self.hosts) + 2
        keeper = subprocess.Popen(
            [
                *(*self.head.prefix, "unshare", "-m", "-n", "-u", "--propagation=private"),
                *("sh", "-c", "echo ready; exec sleep infinity"),
            ],
            stdout=subprocess.PIPE,
            stdin=subprocess.DEVNULL,
        )
        self.keepers.append(keeper)
        _wait_ready(keeper)
        host = BedHost(_child(keeper.pid), f"{NETWORK}.{number}", name)
        inside = ("nsenter", "-t", self.head.namespace, "-n", "ip")
        near = f"p{number}"
        _run(*inside, "link", "add", near, "type", "veth", "peer", "eth0", "netns", host.namespace)
        _run(*inside, "link", "set", near, "master", "br0", "up")
        host.run("hostname", name)
        for arguments in (
            ("link", "set", "lo", "up"),
            ("addr", "add", f"{host.address}/24", "dev", "eth0"),
            ("link", "set", "eth0", "up"),
        ):
            host.run("ip", *arguments)
        self._name(host)
        self.hosts.append(host)
        return host

    def _name(self, host: BedHost) -> None:
        with host.path("/etc/hosts").open("a") as hosts:
            hosts.write(f"{host.address} {host.name}\n")
        for directory in PRIVATE:
            host.run("mkdir", "-p", directory)
            host.run("mount", "-t", "tmpfs", "-o", "mode=755", "tmpfs", directory)


@contextmanager
def bed(directory: Path, *, layers: Sequence[Path], name: str = "head") -> Iterator[Bed]:
    """A bed with one host. ``layers``: directories that are laid over the machine's root.

    ``directory`` is at the same place inside. Needs root."""
    with tempfile.TemporaryDirectory(prefix="distrib-bed-") as work:
        keeper = subprocess.Popen(
            [
                *("unshare", "-m", "-p", "-f", "-n", "-u", "-i", "--kill-child"),
                *("--propagation=private", str(HERE / "boot")),
                *(work, str(directory), *map(str, layers)),
            ],
            stdout=subprocess.PIPE,
            stdin=subprocess.DEVNULL,
            cwd="/",
        )
        keepers = [keeper]
        try:
            _wait_ready(keeper)
            head = BedHost(_child(keeper.pid), f"{NETWORK}.1", name)
            made = Bed(directory, head, keepers=keepers)
            head.run("hostname", name)
            head.run("ip", "link", "add", "br0", "type", "bridge")
            head.run("ip", "addr", "add", f"{head.address}/24", "dev", "br0")
            head.run("ip", "link", "set", "br0", "up")
            head.path("/etc/hosts").write_text("127.0.0.1 localhost\n")
            made._name(head)
            yield made
        finally:
            # All that is in it ends with its first process (pid_namespaces(7)).
            keeper.kill()
            for one in keepers:
                one.wait()


def _wait_ready(keeper: subprocess.Popen[bytes]) -> None:
    assert keeper.stdout is not None
    with keeper.stdout as said:
        assert said.readline() == b"ready\n"


def _child(pid: int) -> str:
    return Path(f"/proc/{pid}/task/{pid}/children").read_text().split()[0]


def _run(*arguments: str) -> None:
    subprocess.run(arguments, check=True, capture_output=True, env=os.environ)
