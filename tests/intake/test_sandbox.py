"""A hostile tool in the sandbox: what it tries, and what comes of it."""

from __future__ import annotations

import asyncio
import os
import textwrap
import time
from pathlib import Path

import pytest

from distrib.errors import ToolMissing
from distrib.inspection.sandbox import THROW_AWAY_UID, Limits, Ran, Sandbox, ToolFailed, fd_path

SANDBOX = Sandbox.of_user()


def hostile(script: str, limits: Limits | None = None, fds: tuple[int, ...] = ()) -> Ran:
    """A tool that was taken over: Python that does as it pleases."""
    code = textwrap.dedent(script)
    argv = ["python3", "-I", "-c", code]
    return asyncio.run(SANDBOX.run(argv, limits=limits, fds=fds, system=True))


def test_it_sees_no_file_of_the_host() -> None:
    ran = hostile("""
        import os
        for path in ("/etc/passwd", "/etc/shadow", "/var", "/root", "/home", "/proc/1/root/etc"):
            assert not os.path.exists(path), path
        print(sorted(os.listdir("/")))
    """)

    assert ran.status == 0, ran.stderr
    assert b"etc" not in ran.stdout


def test_a_tool_of_the_host_sees_its_libraries_only() -> None:
    ran = asyncio.run(SANDBOX.run(["find", "/usr", "/lib", "-type", "f"]))

    seen = ran.stdout.decode().split()
    assert ran.status == 0, ran.stderr
    assert "/usr/bin/find" in seen
    assert all(
        path in {"/usr/bin/find", "/usr/bin/prlimit"} or ".so" in path or "gconv" in path
        for path in seen
    )


def test_it_is_nobody_and_has_no_rights() -> None:
    ran = hostile("""
        import os
        status = open("/proc/self/status").read()
        caps = [line.split()[1] for line in status.splitlines() if line.startswith("Cap")]
        assert all(int(cap, 16) == 0 for cap in caps), caps
        assert "Seccomp:\\t2" in status
        print(os.getuid())
    """)

    expected = THROW_AWAY_UID if os.geteuid() == 0 else os.geteuid()
    assert ran.stdout.decode().split() == [str(expected)], ran.stderr


def test_it_cannot_connect_not_even_to_this_host() -> None:
    ran = hostile("""
        import socket
        for family in (socket.AF_INET, socket.AF_INET6, socket.AF_UNIX, socket.AF_NETLINK):
            try:
                socket.socket(family, socket.SOCK_STREAM)
            except PermissionError:
                continue
            raise SystemExit(f"a socket of {family}")
        print(open("/proc/net/dev").read().count(":"))
    """)

    assert ran.status == 0, ran.stderr
    assert ran.stdout.split() == [b"1"]  # lo, which is down


@pytest.mark.parametrize(
    "call",
    [
        "libc.ptrace(0, 0, 0, 0)",
        "libc.mount(b'none', b'/tmp', b'tmpfs', 0, None)",
        "libc.unshare(0x10000000)",
        "libc.syscall(250, 0, 0, 0, 0)",  # keyctl
        "libc.syscall(321, 0, 0, 0)",  # bpf
        "libc.syscall(425, 8, 0)",  # io_uring_setup
        "libc.syscall(56, 0x10000000 | 17, 0, 0, 0, 0)",  # clone with CLONE_NEWUSER
    ],
)
def test_calls_that_no_tool_needs_are_refused(call: str) -> None:
    ran = hostile(f"""
        import ctypes, errno
        libc = ctypes.CDLL(None, use_errno=True)
        assert {call} == -1
        print(errno.errorcode[ctypes.get_errno()])
    """)

    assert ran.stdout.split() == [b"EPERM"], ran.stderr


def test_it_cannot_fork_without_end() -> None:
    ran = hostile(
        """
        import os, time
        children = 0
        try:
            while True:
                if os.fork() == 0:
                    time.sleep(60)
                    os._exit(0)
                children += 1
        except BlockingIOError:
            print(children)
        """,
        Limits(processes=20),
    )

    assert ran.status == 0, ran.stderr
    assert int(ran.stdout) < 20


def test_it_cannot_fill_disk_or_memory() -> None:
    ran = hostile("""
        import errno, os
        for path in ("/file", "/dev/shm/file", "/usr/file"):
            try:
                open(path, "wb")
                raise SystemExit(f"{path} could be written")
            except OSError as error:
                assert error.errno in {errno.EROFS, errno.EACCES}, error
        written = 0
        try:
            for number in range(10):
                with open(f"/tmp/{number}", "wb", buffering=0) as file:
                    written += file.write(bytes(500_000))
        except OSError as error:
            assert error.errno == errno.ENOSPC, error
        try:
            bytearray(2 << 30)
        except MemoryError:
            print(written)
    """)

    assert ran.status == 0, ran.stderr
    assert 0 < int(ran.stdout) <= 1 << 20


def test_a_file_that_it_was_given_to_write_grows_to_its_limit_and_not_past(tmp_path: Path) -> None:
    target = tmp_path / "target"
    with target.open("wb") as file:
        argv = ["head", "-c", "100000000", "/dev/zero"]
        limits = Limits(file_bytes=1_000_000)
        ran = asyncio.run(SANDBOX.run(argv, stdout=file.fileno(), limits=limits))

    assert ran.told() == "head was ended by SIGXFSZ"
    assert target.stat().st_size == 1_000_000


def test_what_it_says_is_bounded() -> None:
    with pytest.raises(ToolFailed, match="yes wrote more than 1000000 bytes"):
        asyncio.run(SANDBOX.run(["yes"], limits=Limits(output_bytes=1_000_000)))


def test_it_is_killed_at_its_time_limit_with_all_its_children() -> None:
    def ours() -> set[str]:
        marker = b"long-lived-child"
        found = set()
        for folder in Path("/proc").iterdir():
            if folder.name.isdigit():
                try:
                    command = (folder / "cmdline").read_bytes()
                except OSError:
                    continue
                if marker in command:
                    found.add(folder.name)
        return found

    started = time.monotonic()
    with pytest.raises(ToolFailed, match=r"python3 took longer than 0\.7 s"):
        hostile(
            """
            import os, signal, time
            signal.signal(signal.SIGTERM, signal.SIG_IGN)
            if os.fork() == 0:
                os.setsid()
                os.execv("/usr/bin/sleep", ["long-lived-child", "60"])
            time.sleep(60)
            """,
            Limits(wall_s=0.7),
        )

    assert time.monotonic() - started < 10
    deadline = time.monotonic() + 5
    while ours() and time.monotonic() < deadline:
        os.sched_yield()
    assert ours() == set()


def test_a_file_comes_in_as_a_descriptor_and_can_only_be_read(tmp_path: Path) -> None:
    tmp_path.chmod(0o700)
    image = tmp_path / "image"
    image.write_bytes(b"what is inside")
    image.chmod(0o444)
    with image.open("rb") as file:
        path = fd_path(file.fileno())
        ran = hostile(
            f"""
            print(open({path!r}).read())
            try:
                open({path!r}, "r+b")
            except OSError as error:
                print(error.strerror)
            """,
            fds=(file.fileno(),),
        )

    assert ran.stdout.decode().splitlines()[0] == "what is inside", ran.stderr
    if os.geteuid() == 0:
        assert ran.stdout.decode().splitlines()[1] == "Permission denied"


def test_a_tool_that_is_not_there_is_named() -> None:
    with pytest.raises(ToolMissing, match="no-such-tool is not there"):
        asyncio.run(SANDBOX.run(["no-such-tool"]))
