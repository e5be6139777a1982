"""kill -9 of a child before one of its lines that change something on disk or in the kernel."""

from __future__ import annotations

import os
import re
import signal
import sys
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from types import FrameType
from typing import Any

import agent.cache

HERE = Path(agent.cache.__file__).parent
CHANGES = re.compile(
    r"os\.(open|write|fsync|posix_fallocate|fchmod)\(|\.(rename|replace|unlink|rmdir|mkdir|chmod)\("
    r"|symlink_to\(|ioctl\(|subprocess\.run\("
)
STEPS = {
    str(module): {
        number
        for number, line in enumerate(module.read_text().splitlines(), 1)
        if CHANGES.search(line)
    }
    for module in HERE.glob("*.py")
}


def in_a_child(work: Callable[[], None], die_at: int) -> int:
    """Run ``work`` in a child that kills itself before its n-th step; how many it took."""
    read, write = os.pipe()
    child = os.fork()
    if child == 0:
        taken = 0

        def trace(frame: FrameType, event: str, _: Any) -> Any:
            nonlocal taken
            steps = STEPS.get(frame.f_code.co_filename)
            if steps is None:
                return None
            if event == "line" and frame.f_lineno in steps:
                taken += 1
                if taken == die_at:
                    os.kill(os.getpid(), signal.SIGKILL)
            return trace

        status = 1
        with suppress(BaseException):
            sys.settrace(trace)
            work()
            sys.settrace(None)
            os.write(write, str(taken).encode())
            status = 0
        os._exit(status)
    os.close(write)
    with os.fdopen(read, "rb") as said:
        steps_taken = said.read()
    _, status = os.waitpid(child, 0)
    assert status in (0, signal.SIGKILL), "the child ends well or is killed"
    return int(steps_taken or die_at)
