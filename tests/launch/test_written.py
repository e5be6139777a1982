"""A file that a guest writes to tells when it has grown, and when its QEMU is gone."""

from __future__ import annotations

import asyncio
import subprocess
import sys
from pathlib import Path

from agent.launch.written import Written, is_let_go

WRITER = """
import sys
with open(sys.argv[1], "ab", buffering=0) as file:
    for line in sys.stdin.buffer:
        file.write(line)
"""


async def test_a_file_tells_of_each_line_and_of_its_writers_end(tmp_path: Path) -> None:
    path = tmp_path / "result"
    path.touch()
    changed = asyncio.Event()
    with Written(path, changed.set) as written:
        written.arm()
        writer = await asyncio.create_subprocess_exec(
            *(sys.executable, "-c", WRITER, path), stdin=subprocess.PIPE
        )
        assert writer.stdin is not None
        for text in (b"ready\n", b"0\n"):
            writer.stdin.write(text)
            async with asyncio.timeout(60):
                await changed.wait()
            assert path.read_bytes().endswith(text)
            assert not is_let_go(path), "it may write more"
            changed.clear()
            written.arm()
        writer.stdin.close()
        async with asyncio.timeout(60):
            await changed.wait()
            await writer.wait()
        assert is_let_go(path)


async def test_one_that_writes_all_the_time_is_told_of_once(tmp_path: Path) -> None:
    path = tmp_path / "result"
    told = 0

    def tell() -> None:
        nonlocal told
        told += 1

    with path.open("ab", buffering=0) as file, Written(path, tell) as written:
        written.arm()
        for _ in range(100):
            file.write(b"x")
            await asyncio.sleep(0)
        assert told == 1
        written.arm()
        await asyncio.sleep(0)
        await asyncio.sleep(0)
        assert told == 2, "what came meanwhile is told of at once"


def test_what_is_not_there_is_not_let_go(tmp_path: Path) -> None:
    assert not is_let_go(tmp_path / "nothing")


async def test_a_file_that_cannot_be_watched_is_only_looked_at(tmp_path: Path) -> None:
    with Written(tmp_path / "nothing", lambda: None) as written:
        written.arm()
