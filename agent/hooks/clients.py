"""Commands of a batch system, run with limits."""

from __future__ import annotations

import os
import subprocess
from collections.abc import Mapping, Sequence

from distrib.errors import TimedOut, ToolMissing

TIMEOUT_S = 20.0


def answered(
    command: Sequence[str],
    *,
    missing: str,
    silent: str,
    environment: Mapping[str, str] | None = None,
) -> subprocess.CompletedProcess[str]:
    """A command's outputs and status, in English. ``missing`` and ``silent`` say what to do when it
    is not there, or does not answer within 20 s: ToolMissing, TimedOut."""
    try:
        return subprocess.run(
            command,
            capture_output=True,
            text=True,
            errors="replace",
            timeout=TIMEOUT_S,
            check=False,
            stdin=subprocess.DEVNULL,
            env={**os.environ, "LC_ALL": "C", **(environment or {})},
        )
    except FileNotFoundError:
        raise ToolMissing(f"{command[0]} is not there", hint=missing) from None
    except subprocess.TimeoutExpired:
        raise TimedOut(f"{' '.join(command[:3])}: no answer", hint=silent) from None
