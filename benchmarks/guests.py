"""Real pairs of images: a Debian guest, the same after an upgrade, the same after a change of
configuration. Needs root (debootstrap, a loop mount, chroot), once: what is built is kept.

The upgrade is made inside the image, as an administrator makes it: a file system that is built anew
would differ almost everywhere.
"""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path

FILE_SYSTEM_UUID = "6d1f4c2e-57a1-4f2b-9f4e-0c7d6a1b2e3f"
GUEST_PACKAGES = (
    "ca-certificates,curl,gcc,ifupdown,init,less,linux-image-cloud-amd64,openssh-server,"
    "python3,rsync,sudo,vim-tiny"
)
"""A worker node's usual guest: kernel, init, ssh, compiler, Python."""

MORE_PACKAGES = ("git", "tmux", "strace")
"""What an upgrade often brings along."""


@dataclass(frozen=True)
class Pair:
    """Two versions of one image."""

    name: str
    before: Path
    after: Path


def debian_pairs(work: Path, *, size_mb: int) -> list[Pair]:
    """The pairs in ``work``, built where they are missing."""
    home = work / f"debian-{size_mb}"
    home.mkdir(parents=True, exist_ok=True)
    before, upgraded, configured = (
        home / name / "image.raw" for name in ("before", "upgraded", "configured")
    )
    _once(before, lambda image: _install(image, size_mb))
    _once(upgraded, lambda image: _changed_copy(before, image, _upgrade))
    _once(configured, lambda image: _changed_copy(before, image, _configure))
    return [Pair("upgrade", before, upgraded), Pair("configuration", before, configured)]


def _once(image: Path, make: Callable[[Path], None]) -> None:
    if image.exists():
        return
    print(f"building {image}", file=sys.stderr)
    image.parent.mkdir(exist_ok=True)
    half_made = image.with_name("image.new")
    half_made.unlink(missing_ok=True)
    make(half_made)
    half_made.rename(image)


def _install(image: Path, size_mb: int) -> None:
    """As released: what came out since is left to the upgrade."""
    (uri, suite), *_ = _sources()
    with tempfile.TemporaryDirectory(dir=image.parent) as scratch:
        root = Path(scratch) / "root"
        _run("debootstrap", "--variant=minbase", f"--include={GUEST_PACKAGES}", suite, root, uri)
        _run("chroot", root, "apt-get", "clean")
        command = ("mke2fs", "-q", "-F", "-t", "ext4", "-U", FILE_SYSTEM_UUID)
        options = f"hash_seed={FILE_SYSTEM_UUID},lazy_itable_init=0,lazy_journal_init=0"
        _run(*command, "-E", options, "-d", root, image, f"{size_mb}M")


def _changed_copy(before: Path, image: Path, change: Callable[[Path], None]) -> None:
    _run("cp", "--reflink=auto", before, image)
    with _mounted(image) as root:
        change(root)


@contextmanager
def _mounted(image: Path) -> Iterator[Path]:
    with ExitStack() as stack:
        root = Path(stack.enter_context(tempfile.TemporaryDirectory()))
        _run("mount", "-o", "loop,discard", image, root)
        stack.callback(_run, "umount", root)
        yield root


def _upgrade(root: Path) -> None:
    sources = root / "etc/apt/sources.list"
    sources.write_text("".join(f"deb {uri} {suite} main\n" for uri, suite in _sources()))
    with _network_of_this_machine(root):
        _apt(root, "update")
        _apt(root, "-y", "-q", "upgrade")
        _apt(root, "-y", "-q", "--no-install-recommends", "install", *MORE_PACKAGES)
        _apt(root, "clean")
    shutil.rmtree(root / "var/lib/apt/lists")


def _configure(root: Path) -> None:
    """Ten edits as a site makes them: some files replaced, some written in place."""
    (root / "etc/hostname").write_text("worker\n")
    (root / "etc/motd").write_text("farm of the experiment\n")
    with (root / "etc/ssh/sshd_config").open("a") as file:
        file.write("\nPermitRootLogin no\nPasswordAuthentication no\n")
    with (root / "etc/hosts").open("a") as file:
        file.writelines(f"192.0.2.{n} wn{n:03}\n" for n in range(1, 100))
    for number in range(4):
        (root / f"etc/profile.d/site-{number}.sh").write_text(f"export SITE_{number}=farm\n" * 50)
    (root / "etc/sysctl.d").mkdir(exist_ok=True)
    (root / "etc/sysctl.d/site.conf").write_text("vm.swappiness=10\nnet.core.somaxconn=4096\n")
    _run("chroot", root, "useradd", "--create-home", "pilot")


@contextmanager
def _network_of_this_machine(root: Path) -> Iterator[None]:
    with ExitStack() as stack:
        for name in ("etc/resolv.conf", "etc/hosts"):
            kept = (root / name).read_bytes() if (root / name).exists() else b""
            (root / name).write_bytes((Path("/") / name).read_bytes())
            stack.callback((root / name).write_bytes, kept)
        settings = root / "etc/apt/apt.conf.d/00machine"
        dump = _run("apt-config", "dump", "Acquire::http::Proxy", "Acquire::https::Proxy").stdout
        settings.write_text(dump)
        stack.callback(settings.unlink)
        # No service of the guest starts here.
        policy = root / "usr/sbin/policy-rc.d"
        policy.write_text("#!/bin/sh\nexit 101\n")
        policy.chmod(0o755)
        stack.callback(policy.unlink)
        _run("mount", "-t", "proc", "proc", root / "proc")
        stack.callback(_run, "umount", root / "proc")
        yield


def _apt(root: Path, *arguments: str) -> None:
    _run("chroot", root, "apt-get", "-o", "APT::Sandbox::User=root", *arguments)


def _sources() -> list[tuple[str, str]]:
    """URI and suite as apt is configured on this machine, the release itself first."""
    form = "$(REPO_URI) $(RELEASE)"
    out = _run("apt-get", "indextargets", "--format", form, "Identifier: Packages").stdout
    found = dict.fromkeys(tuple(line.split()) for line in out.splitlines())
    return sorted(((uri, suite) for uri, suite in found), key=lambda source: len(source[1]))


def _run(*command: str | Path) -> subprocess.CompletedProcess[str]:
    environment = os.environ | {"DEBIAN_FRONTEND": "noninteractive", "LC_ALL": "C"}
    done = subprocess.run(
        [str(part) for part in command],
        check=False,
        capture_output=True,
        text=True,
        env=environment,
        stdin=subprocess.DEVNULL,
    )
    if done.returncode:
        raise SystemExit(
            f"{' '.join(map(str, command))}\n{done.stdout[-2000:]}{done.stderr[-2000:]}"
        )
    return done
