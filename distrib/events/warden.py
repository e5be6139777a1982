"""Stands between the controller and one handler; run as a script, without the rest of distrib.

``warden.py CONTROL_FD GRACE_S WHO ARGUMENT...`` runs the arguments in a session of their own, with
the environment that it has itself. ``WHO`` is ``UID:GID:GROUP,GROUP...``, or ``-`` for our own.
When the control pipe is closed (by the controller, or because that was killed) the process group
gets SIGTERM and, after the grace, SIGKILL. What a handler leaves behind in its group ends with it.
Exit status: the handler's, or 128 + signal; 127 when it could not be started.
"""

import contextlib
import ctypes
import os
import select
import signal
import subprocess
import sys
from typing import Any

_PR_SET_PDEATHSIG = 1


def main(arguments: list[str]) -> int:
    """Run the handler to its end, or to ours."""
    control, grace_s, who, *command = arguments
    libc = ctypes.CDLL(None)

    def die_with_warden() -> None:
        # After the change of user, which would clear it (prctl(2)).
        libc.prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)

    try:
        handler = subprocess.Popen(
            command,
            stdin=subprocess.DEVNULL,
            cwd="/",
            start_new_session=True,
            preexec_fn=die_with_warden,  # noqa: PLW1509 - this process has one thread
            **_identity(who),
        )
    except (OSError, subprocess.SubprocessError) as error:
        sys.stderr.write(f"{command[0]}: {error}\n")
        return 127
    ended = os.pidfd_open(handler.pid)
    if not _wait(ended, int(control)):
        _signal_group(handler.pid, signal.SIGTERM)
        _wait(ended, None, limit_s=float(grace_s))
    # Before it is reaped its number cannot belong to anybody else.
    _signal_group(handler.pid, signal.SIGKILL)
    status = handler.wait()
    return status if status >= 0 else 128 - status


def _wait(ended: int, control: int | None, *, limit_s: float | None = None) -> bool:
    """Until the handler has ended (True), or the control pipe or the time has (False)."""
    poll = select.poll()  # select(2) knows no numbers above 1023
    for descriptor in (ended, control):
        if descriptor is not None:
            poll.register(descriptor, select.POLLIN)
    return ended in {found for found, _ in poll.poll(None if limit_s is None else limit_s * 1000)}


def _identity(who: str) -> dict[str, Any]:
    if who == "-":
        return {}
    uid, gid, groups = who.split(":")
    return {
        "user": int(uid),
        "group": int(gid),
        "extra_groups": [int(group) for group in groups.split(",") if group],
    }


def _signal_group(leader: int, number: signal.Signals) -> None:
    with contextlib.suppress(ProcessLookupError, PermissionError):
        os.killpg(leader, number)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
