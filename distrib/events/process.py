"""One run of a handler: its process, its time limit, its last words.

The process itself is the warden's (``warden``), so that it ends when the controller is killed: the
next start of the controller delivers the event again, and no two runs of it overlap for long.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import pwd
import sys
from collections.abc import AsyncIterator, Mapping, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass
from pathlib import Path

from distrib.errors import ConfigInvalid

OUTPUT_MAX_BYTES = 4096
_CHUNK_BYTES = 1 << 16
_WARDEN = Path(__file__).with_name("warden.py")


@dataclass(frozen=True)
class RunAs:
    """Who runs a handler; ``uid`` None: whoever runs the controller."""

    home: str
    uid: int | None = None
    gid: int = 0
    groups: tuple[int, ...] = ()

    @classmethod
    def named(cls, user: str) -> RunAs:
        """The user of that name; empty: ours. Raises ConfigInvalid."""
        try:
            entry = pwd.getpwnam(user) if user else pwd.getpwuid(os.geteuid())
        except KeyError:
            if not user:
                return cls(home="/")
            raise ConfigInvalid(
                f"events.handlers: no user {user!r}", hint="make the user, or leave it empty"
            ) from None
        if not user or entry.pw_uid == os.geteuid():
            return cls(home=entry.pw_dir)
        if os.geteuid() != 0:
            raise ConfigInvalid(
                f"events.handlers: only root may run a handler as {user!r}",
                hint="run the controller as that user, or leave it empty",
            )
        groups = tuple(os.getgrouplist(user, entry.pw_gid))
        return cls(entry.pw_dir, entry.pw_uid, entry.pw_gid, groups)

    def as_argument(self) -> str:
        """As the warden takes it."""
        if self.uid is None:
            return "-"
        return f"{self.uid}:{self.gid}:{','.join(map(str, self.groups))}"


@dataclass(frozen=True)
class Ended:
    """``exit_status`` None: it was ended by the time limit. ``output``: its last 4 KiB."""

    exit_status: int | None
    output: str

    @property
    def ok(self) -> bool:
        """Whether the handler took the event."""
        return self.exit_status == 0


async def run_handler(
    command: str | Sequence[str],
    environment: Mapping[str, str],
    *,
    run_as: RunAs,
    time_limit_s: float,
    grace_s: float,
) -> Ended:
    """Run it once. A ``command`` that is one text is the operator's own line for /bin/sh."""
    argv = ["/bin/sh", "-c", command] if isinstance(command, str) else list(command)
    tail = bytearray()
    async with _pipe_read_into(tail) as output:
        control_read, control_write = os.pipe()
        try:
            process = await asyncio.create_subprocess_exec(
                *(sys.executable, "-I", "-S", str(_WARDEN)),
                *(str(control_read), str(grace_s), run_as.as_argument(), *argv),
                stdin=asyncio.subprocess.DEVNULL,
                stdout=output,
                stderr=output,
                env=dict(environment),
                pass_fds=(control_read,),
            )
        except OSError as error:
            os.close(control_write)
            return Ended(127, f"{argv[0]}: {error.strerror}")
        finally:
            os.close(control_read)
        in_time = True
        try:
            async with asyncio.timeout(time_limit_s):
                await process.wait()
        except TimeoutError:
            in_time = False
        finally:
            os.close(control_write)
            # Also where we are cancelled: the warden ends it within the grace.
            status = await asyncio.shield(process.wait())
    text = bytes(tail).decode(errors="replace").replace("\0", "\N{REPLACEMENT CHARACTER}")
    if in_time:
        return Ended(status, text)
    return Ended(None, f"{text}\n[ended by the time limit of {time_limit_s:g} s]".lstrip())


@asynccontextmanager
async def _pipe_read_into(tail: bytearray) -> AsyncIterator[int]:
    """A pipe to write to; ``tail`` holds the last of it when the block has been left.

    Nobody waits for its end: what a handler has set running beside itself may keep it open.
    """
    loop = asyncio.get_running_loop()
    read, write = os.pipe()
    os.set_blocking(read, False)

    def take() -> bool:
        with contextlib.suppress(BlockingIOError):
            chunk = os.read(read, _CHUNK_BYTES)
            if not chunk:
                loop.remove_reader(read)
            tail.extend(chunk)
            del tail[:-OUTPUT_MAX_BYTES]
            return bool(chunk)
        return False

    loop.add_reader(read, take)
    try:
        yield write
    finally:
        os.close(write)
        for _ in range(64):  # A pipe holds 64 KiB; somebody may go on writing.
            if not take():
                break
        loop.remove_reader(read)
        os.close(read)
