"""One seeder and one node without any limit: bytes per second, and processor seconds per GB.

Ours (whole agents, SHA-512 included), libtorrent with its defaults, and scp, over the same two
network namespaces in turn. The processor time is that of all processes on both sides (ours: with
broker, controller and seeder), from before the start to after the end.
"""

from __future__ import annotations

import contextlib
import os
import resource
import subprocess
import tempfile
import time
from collections.abc import Callable, Collection, Iterator, Sequence
from contextlib import contextmanager
from functools import partial
from pathlib import Path

from benchmarks.peers.others import Course, measured
from benchmarks.scenarios import Figures
from benchmarks.track import MIB, Track, track
from tests.farm.farm import Image
from tests.farm.network import Host

GB = 1e9
UNSHAPED_MBIT = 10_000.0
"""What buffers are sized for; nothing is shaped to it."""


def pair(size_mb: int, rounds: int, say: Callable[[str], None]) -> dict[str, dict[str, Figures]]:
    """By competitor and round: seconds, MB/s and CPU seconds per GB."""
    results: dict[str, dict[str, Figures]] = {"distrib": {}, "libtorrent": {}, "scp": {}}
    with tempfile.TemporaryDirectory() as scratch:
        course = track(
            Path(scratch), nodes=1, size_mb=size_mb, rate_mbit=UNSHAPED_MBIT, shaped=False
        )
        with course as running:
            hosts = running.network.hosts
            for number in range(1, rounds + 1):
                # That the image is taken in and signed is no part of bringing it.
                ours = partial(_ours, image=running.publish())
                for name, run in (("distrib", ours), ("libtorrent", _libtorrent), ("scp", _scp)):
                    before_s = cpu_s(hosts)
                    seconds = run(running)
                    used_s = cpu_s(hosts) - before_s
                    figures = {
                        "s": round(seconds, 3),
                        "mb_per_s": round(running.size_bytes / 1e6 / seconds, 1),
                        "cpu_s_per_gb": round(used_s * GB / running.size_bytes, 2),
                    }
                    say(f"round {number} {name}: {figures}")
                    results[name][str(number)] = figures
    return results


def cpu_s(hosts: Collection[Host]) -> float:
    """Processor seconds of all that runs on ``hosts``, and of all commands that have ended.

    Whatever else the machine does is not in it, so a busy machine costs little accuracy."""
    ended = resource.getrusage(resource.RUSAGE_CHILDREN)
    total = ended.ru_utime + ended.ru_stime
    for host in hosts:
        command = ["ip", "netns", "pids", host.namespace]
        pids = subprocess.run(command, capture_output=True, text=True, check=True).stdout.split()
        for pid in pids:
            with contextlib.suppress(FileNotFoundError, ProcessLookupError):
                fields = Path(f"/proc/{pid}/stat").read_text("utf-8").rpartition(")")[2].split()
                # proc(5): user, system, and of children that it has waited for.
                total += sum(int(text) for text in fields[11:15]) / os.sysconf("SC_CLK_TCK")
    return total


def _ours(running: Track, image: Image) -> float:
    seconds = max(running.seconds(running.start(image)).values())
    running.compare(image)
    return seconds


def _libtorrent(running: Track) -> float:
    course = _course(running)
    return max(measured("libtorrent", course))


def _scp(running: Track) -> float:
    course = _course(running)
    (host,) = course.hosts
    copy = course.scratch / "scp.raw"
    with tempfile.TemporaryDirectory(dir="/root") as keys, _sshd(host, Path(keys)) as options:
        began_s = time.monotonic()
        target = f"root@{host.address}:{copy}"
        command = [*course.head.prefix, "scp", "-q", *options, str(course.file), target]
        subprocess.run(command, check=True)
        seconds = time.monotonic() - began_s
    subprocess.run(["cmp", "-s", str(course.file), str(copy)], check=True)
    copy.unlink()
    return seconds


@contextmanager
def _sshd(host: Host, keys: Path) -> Iterator[Sequence[str]]:
    """An sshd of its own on a host, and what a client needs to reach it."""
    for name in ("host", "client"):
        key = str(keys / name)
        subprocess.run(["ssh-keygen", "-q", "-t", "ed25519", "-N", "", "-f", key], check=True)
    Path("/run/sshd").mkdir(exist_ok=True)
    allowed = keys / "client.pub"
    settings = [
        f"AuthorizedKeysFile={allowed}", "StrictModes=no", "UsePAM=no", "PidFile=none",
        "PermitRootLogin=prohibit-password", "Subsystem=sftp internal-sftp",
    ]  # fmt: skip
    words = [word for setting in settings for word in ("-o", setting)]
    daemon = ["/usr/sbin/sshd", "-D", "-f", "/dev/null", "-h", str(keys / "host"), "-p", "2222"]
    child = subprocess.Popen([*host.prefix, *daemon, *words], stderr=subprocess.DEVNULL)
    known = keys / "known"
    public = (keys / "host.pub").read_text("ascii").rsplit(" ", 1)[0]
    known.write_text(f"[{host.address}]:2222 {public}\n", "ascii")
    try:
        _until_listening(host, 2222)
        yield (
            "-P", "2222", "-i", str(keys / "client"), "-o", f"UserKnownHostsFile={known}",
            "-o", "IdentitiesOnly=yes", "-F", "/dev/null",
        )  # fmt: skip
    finally:
        child.terminate()
        child.wait()


def _until_listening(host: Host, port: int) -> None:
    command = [*host.prefix, "ss", "-Hltn", f"sport = :{port}"]
    deadline_s = time.monotonic() + 15
    while not subprocess.run(command, capture_output=True, text=True, check=True).stdout:
        if time.monotonic() > deadline_s:
            raise AssertionError(f"nobody listens on {host.address}:{port}")
        time.sleep(0.05)


def _course(running: Track) -> Course:
    """A new source file for a competitor, once all is quiet."""
    file = running.scratch / "source" / "pair.raw"
    file.parent.mkdir(exist_ok=True)
    with file.open("wb") as out:
        for _ in range(0, running.size_bytes, MIB):
            out.write(os.urandom(MIB))
    running.quiet()
    head = running.farm.head_host
    return Course(file, head, running.hosts, running.rate_mbit, running.scratch)
