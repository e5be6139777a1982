"""What a guest took, put into what Grid Engine accounts for its job.

sge_shepherd writes ``usage`` (``NAME=VALUE`` lines, getrusage(2) of the job's processes on the
host) into the job's directory when the job has ended, and sge_execd reads it when the epilog has.
CPU time in ``accounting(5)`` is then the greater of ``ru_utime`` + ``ru_stime`` and what was seen
of the processes on the host, which for a guest is its client's alone.
"""

from __future__ import annotations

import os
import re
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from distrib.errors import StorageFailed

FILE = "usage"
BLOCK_BYTES = 512
"""Of ``ru_inblock`` and ``ru_oublock`` (getrusage(2))."""

_LINE = re.compile(r"(?m)^(ru_utime|ru_maxrss|ru_inblock|ru_oublock)=([0-9.]+)[ \t]*$")


def with_guests(text: str, runs: Iterable[Mapping[str, Any]]) -> str:
    """A ``usage`` file with what ``runs`` (lines of the run log) took added; memory: the greatest.

    A line that is not there, or is no number, stays as it is."""
    more = {"ru_utime": 0.0, "ru_inblock": 0.0, "ru_oublock": 0.0}
    peak_kib = 0.0
    for run in runs:
        more["ru_utime"] += run.get("cpu_s", 0.0)
        more["ru_inblock"] += run.get("read_bytes", 0) // BLOCK_BYTES
        more["ru_oublock"] += run.get("written_bytes", 0) // BLOCK_BYTES
        peak_kib = max(peak_kib, run.get("peak_memory_bytes", 0) // 1024)

    def changed(match: re.Match[str]) -> str:
        name = match[1]
        try:
            was = float(match[2])
        except ValueError:
            return match[0]
        if name == "ru_utime":
            return f"{name}={was + more[name]:.6f}"
        return f"{name}={max(was, peak_kib) if name == 'ru_maxrss' else was + more[name]:.0f}"

    return _LINE.sub(changed, text)


def add_guests(spool: Path, runs: Iterable[Mapping[str, Any]]) -> bool:
    """Change the ``usage`` of the job whose directory is ``spool``; False where it has none, since
    it never ran. Raises StorageFailed."""
    file = spool / FILE
    try:
        text = file.read_text("utf-8")
        partial = spool / f".{FILE}.partial"
        partial.write_text(with_guests(text, runs), "utf-8")
        owner = file.stat()
        os.chown(partial, owner.st_uid, owner.st_gid)
        partial.chmod(owner.st_mode & 0o777)
        partial.replace(file)
    except FileNotFoundError:
        return False
    except (OSError, UnicodeDecodeError) as error:
        raise StorageFailed(f"{file}: {error}", path=str(file)) from None
    return True
