"""aria2, plain libtorrent and uftp (multicast) over the same shaped links.

Each function distributes one file from the head to all hosts and returns, by host, the seconds from
the start to the last byte. libtorrent and uftpd run already when the clock starts; aria2 starts
with it. Every copy is compared byte for byte, and nobody listens afterwards.
"""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path

import libtorrent as lt

from tests.farm.network import Host

HERE = Path(__file__).parent
LIMIT_S = 900.0
TRACKER_PORT = 6969


@dataclass(frozen=True)
class Course:
    """What is to be brought where. ``rate_mbit`` is that of every link."""

    file: Path
    head: Host
    hosts: Sequence[Host]
    rate_mbit: float
    scratch: Path


class NotThere(Exception):
    """A program that is compared with is not installed."""


def libtorrent_defaults(course: Course) -> list[float]:
    """Default settings and a tracker; v1, pieces of 1 MiB, as most clients would make them."""
    with ExitStack() as stack:
        torrent = stack.enter_context(_tracked_torrent(course, piece_bytes=1 << 20))
        program = str(HERE / "plain_libtorrent.py")

        def start(host: Host, directory: Path, role: str) -> subprocess.Popen[str]:
            return stack.enter_context(
                _child(
                    [sys.executable, program, host.address, torrent, directory, role],
                    host,
                    pipes=True,
                )
            )

        seeder = start(course.head, course.file.parent, "seed")
        nodes = [start(host, _folder(course, host), "fetch") for host in course.hosts]
        for child in (seeder, *nodes):
            assert _line(child) == "listening"
        began_s = time.monotonic()
        for child in (seeder, *nodes):
            _tell(child)
        seconds = _when_done(nodes, began_s, lambda child: _line(child) == "done")
        # Its last pieces are hashed, and maybe not written: ended now, it would lose them.
        for child in nodes:
            assert _line(child) == "written"
        return seconds


def aria2(course: Course) -> list[float]:
    """Default settings, a tracker, pieces of 256 KiB; the clock starts with the processes."""
    _need("aria2c")
    with ExitStack() as stack:
        torrent = stack.enter_context(_tracked_torrent(course, piece_bytes=1 << 18))
        common = [
            "aria2c", "--enable-dht=false", "--enable-dht6=false", "--bt-enable-lpd=false",
            "--enable-peer-exchange=true", "--listen-port=6881", "--file-allocation=none",
            "--bt-tracker-interval=5", "--quiet=true", "--no-conf=true",
        ]  # fmt: skip
        seeding = ["--seed-ratio=0.0", "--bt-seed-unverified=true", "--check-integrity=false"]
        stack.enter_context(
            _child([*common, *seeding, f"--dir={course.file.parent}", torrent], course.head)
        )
        time.sleep(2)
        began_s = time.monotonic()
        nodes = []
        for host in course.hosts:
            folder = _folder(course, host)
            hook = folder / "complete"
            hook.write_text(f"#!/bin/sh\n: > {folder}/done\n")
            hook.chmod(0o755)
            options = ["--seed-ratio=0.0", f"--on-bt-download-complete={hook}", f"--dir={folder}"]
            stack.enter_context(_child([*common, *options, torrent], host))
            nodes.append(folder / "done")
        return _when_there(nodes, began_s)


def uftp(course: Course) -> list[float]:
    """Multicast at 92.5 % of the link, as it has to be told; its announce phase is included."""
    _need("uftp", "uftpd")
    with ExitStack() as stack:
        for host in course.hosts:
            _run("ip", "-n", host.namespace, "route", "replace", "224.0.0.0/4", "dev", "eth0")
            folder = _folder(course, host)
            stack.enter_context(
                _child(
                    ["uftpd", "-d", "-I", "eth0", "-D", str(folder), "-U", _uid(host)],
                    host,
                )
            )
        _run("ip", "-n", course.head.namespace, "route", "replace", "224.0.0.0/4", "dev", "eth0")
        time.sleep(1)
        began_s = time.monotonic()
        sending = [
            "uftp", "-I", "eth0", "-R", str(int(course.rate_mbit * 925)), "-U", "0x0A4D0001",
            "-H", ",".join(_uid(host) for host in course.hosts), str(course.file),
        ]  # fmt: skip
        done = subprocess.run(
            [*course.head.prefix, *sending],
            cwd=course.scratch,
            capture_output=True,
            text=True,
            timeout=LIMIT_S,
            check=False,
        )
        took_s = time.monotonic() - began_s
        if done.returncode != 0:
            raise AssertionError(f"uftp: exit {done.returncode}: {done.stderr[-500:]}")
        # The sender ends when the last host has confirmed.
        return [took_s] * len(course.hosts)


COMPETITORS: dict[str, Callable[[Course], list[float]]] = {
    "libtorrent": libtorrent_defaults,
    "aria2": aria2,
    "uftp": uftp,
}


def measured(name: str, course: Course) -> list[float]:
    """Run one of ``COMPETITORS``, compare every copy, and leave nothing behind."""
    try:
        seconds = COMPETITORS[name](course)
        for host in course.hosts:
            copy = _folder(course, host) / course.file.name
            same = subprocess.run(["cmp", "-s", course.file, copy], check=False)
            if same.returncode != 0:
                raise AssertionError(f"{name}: {host.address} has other bytes")
        return seconds
    finally:
        for host in course.hosts:
            shutil.rmtree(_folder(course, host), ignore_errors=True)


def _folder(course: Course, host: Host) -> Path:
    folder = course.scratch / "copies" / host.address
    folder.mkdir(parents=True, exist_ok=True)
    return folder


@contextmanager
def _tracked_torrent(course: Course, *, piece_bytes: int) -> Iterator[str]:
    files = lt.file_storage()
    files.add_file(course.file.name, course.file.stat().st_size)
    made = lt.create_torrent(files, piece_bytes, lt.create_torrent.v1_only)
    made.add_tracker(f"http://{course.head.address}:{TRACKER_PORT}/announce")
    lt.set_piece_hashes(made, str(course.file.parent))
    torrent = course.scratch / "course.torrent"
    torrent.write_bytes(lt.bencode(made.generate()))
    command = [sys.executable, str(HERE / "tracker.py"), course.head.address, str(TRACKER_PORT)]
    with _child(command, course.head):
        _until_listening(course.head, TRACKER_PORT)
        yield str(torrent)
    torrent.unlink()


@contextmanager
def _child(
    command: Sequence[str | Path], host: Host, *, pipes: bool = False
) -> Iterator[subprocess.Popen[str]]:
    child = subprocess.Popen(
        [*host.prefix, *map(str, command)],
        stdin=subprocess.PIPE if pipes else subprocess.DEVNULL,
        stdout=subprocess.PIPE if pipes else subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
        text=True,
        env=os.environ | {"PYTHONPATH": str(HERE.parents[1])},
    )
    try:
        yield child
    finally:
        child.kill()
        child.wait()
        for pipe in (child.stdin, child.stdout):
            if pipe is not None:
                pipe.close()


def _line(child: subprocess.Popen[str]) -> str:
    assert child.stdout is not None
    return child.stdout.readline().strip()


def _tell(child: subprocess.Popen[str]) -> None:
    assert child.stdin is not None
    child.stdin.write("go\n")
    child.stdin.flush()


def _when_done(
    nodes: Sequence[subprocess.Popen[str]],
    began_s: float,
    is_done: Callable[[subprocess.Popen[str]], bool],
) -> list[float]:
    # In order of hosts: a line that came early is read late, so only the last one's time is exact.
    seconds = []
    for child in nodes:
        if not is_done(child):
            raise AssertionError("a node ended without its copy")
        seconds.append(time.monotonic() - began_s)
    return seconds


def _when_there(files: Sequence[Path], began_s: float) -> list[float]:
    found: dict[Path, float] = {}
    while len(found) < len(files):
        for file in files:
            if file not in found and file.exists():
                found[file] = time.monotonic() - began_s
        if time.monotonic() - began_s > LIMIT_S:
            raise AssertionError(f"{len(files) - len(found)} hosts without a copy")
        time.sleep(0.02)
    return [found[file] for file in files]


def _until_listening(host: Host, port: int) -> None:
    deadline_s = time.monotonic() + 15
    while time.monotonic() < deadline_s:
        if f":{port} " in _run("ss", "-Hltn", host=host):
            return
        time.sleep(0.05)
    raise AssertionError(f"nobody listens on {host.address}:{port}")


def _run(*command: str, host: Host | None = None) -> str:
    prefix = host.prefix if host else ()
    return subprocess.run([*prefix, *command], capture_output=True, text=True, check=True).stdout


def _need(*programs: str) -> None:
    for program in programs:
        if shutil.which(program) is None:
            raise NotThere(f"{program} is not installed: scripts/setup brings it")


def _uid(host: Host) -> str:
    return "0x" + "".join(f"{int(part):02X}" for part in host.address.split("."))
