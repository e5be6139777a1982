"""LVM's own shell, kept running: the start of the program is most of what a call costs.

Commands go to its standard input, a line each; answers come on a descriptor of their own
(``LVM_REPORT_FD``) as JSON: the report, if the command makes one, and the log of the command, whose
last row is its status. That is what LVM has for its D-Bus service, hence the profile's name.

Nothing is taken for granted: a command that takes too long, an answer that is not JSON or speaks
of another command, or an end in the middle ends the shell, and the next command starts another.
Until a shell has answered a question well it is given no changes. The shell's parser knows quotes
around whole arguments, and no escapes (``lvm_split`` in tools/lvm.c): what it could misunderstand
it is not given.
"""

from __future__ import annotations

import contextlib
import json
import os
import re
import select
import signal
import subprocess
import threading
import time
import weakref
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

import structlog

log = structlog.get_logger(__name__)

_UDEV_CONTROL: Final = Path("/run/udev/control")
_PROFILE: Final = "lvmdbusd"
# LVM touches 10 MB of heap before each suspend, so as not to fault while a device stands still
# (lib/mm/memlock.c). A heap that is not given back is touched without a fault the next time: 0.4 s
# of a lease in user-mode Linux.
_KEPT_HEAP_BYTES: Final = 64 << 20
_QUOTED: Final = re.compile(r"[ -&(-~]+")  # printable, no apostrophe
_PLAIN: Final = re.compile(r"[A-Za-z0-9_+./=:@,%-]+")
_ARGUMENTS_MAX: Final = 60  # MAX_ARGS of tools/lvm.c is 64
_ANSWER_MAX_BYTES: Final = 64 << 20
_FIRST_ANSWER_S: Final = 15.0
_INTERRUPT_GRACE_S: Final = 10.0
_END_GRACE_S: Final = 1.0
_MESSAGES: Final = ("error", "warn")


class ShellLostError(Exception):
    """The shell ended, or said what cannot be understood; whether the command was done is not
    known."""


class TooSlowError(Exception):
    """No answer within the time limit; the command was interrupted."""


@dataclass(frozen=True)
class Answer:
    """``report``: JSON, as the tool itself prints it with ``--reportformat json``. ``errors``: a
    complaint a line, of a command that failed."""

    ok: bool
    report: str
    errors: str


class LvmShell:
    """One child, one command at a time; safe to call from several threads. A forked process gets
    a child of its own."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._child: _Child | None = None
        self._proven = False
        self._unfit = False

    def ask(
        self,
        arguments: Sequence[str],
        *,
        changes: bool,
        environment: Mapping[str, str],
        timeout_s: float,
    ) -> Answer | None:
        """Run a command. None when it has to be run by itself: there is no such shell here, or
        its parser would not take these arguments. Raises ShellLostError or TooSlowError."""
        line = command_line(arguments)
        if line is None or self._unfit or (changes and not self._proven):
            return None
        until_s = time.monotonic() + timeout_s
        if not self._lock.acquire(timeout=timeout_s):
            raise TooSlowError
        try:
            child = self._running(environment)
            if child is None:
                return None
            if not self._proven:
                until_s = time.monotonic() + min(timeout_s, _FIRST_ANSWER_S)
            return self._ask(child, arguments[0], line, until_s)
        except (ShellLostError, TooSlowError) as error:
            log.warning("lvm-shell-lost", command=arguments[0], why=repr(error))
            self._unfit = not self._proven
            self._proven = False
            if self._unfit:
                raise ShellLostError("it does not answer as it should") from error
            raise
        finally:
            self._lock.release()

    def _ask(self, child: _Child, tool: str, line: str, until_s: float) -> Answer:
        try:
            found = child.say(line, tool, until_s)
            errors = _complaints(found)
            if not _ok(found) and not errors:
                errors = _complaints(child.say("lastlog", None, until_s))
        except BaseException as error:
            self._child = None
            child.end(interrupt=isinstance(error, TooSlowError))
            raise
        self._proven = True
        return Answer(_ok(found), json.dumps({"report": found.get("report", [])}), errors)

    def _running(self, environment: Mapping[str, str]) -> _Child | None:
        child = self._child
        if child is not None and child.pid_of_owner != os.getpid():
            child.forget()
            child = None
        if child is not None and not child.fits(environment):
            child.end()
            child = None
        if child is None:
            try:
                child = _Child(environment)
            except OSError:
                return None
        self._child = child
        return child


class _Child:
    def __init__(self, environment: Mapping[str, str]) -> None:
        self.pid_of_owner = os.getpid()
        self._environment = dict(environment)
        self._udev = udev_runs()
        answers, said = os.pipe()
        try:
            process = subprocess.Popen(
                ["lvm"],
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=subprocess.STDOUT,
                bufsize=0,
                pass_fds=(said,),
                env=self._environment
                | {"LVM_REPORT_FD": str(said), "LVM_COMMAND_PROFILE": _PROFILE}
                | {"MALLOC_TRIM_THRESHOLD_": str(_KEPT_HEAP_BYTES)},
                # Signals to the agent's group must not end it between two steps of a change.
                start_new_session=True,
            )
        except BaseException:
            os.close(answers)
            raise
        finally:
            os.close(said)
        assert process.stdin is not None  # noqa: S101 - PIPE
        assert process.stdout is not None  # noqa: S101 - PIPE
        self._process = process
        self._commands, self._chatter = process.stdin.fileno(), process.stdout.fileno()
        self._answers = answers
        # With its input at its end the shell ends by itself, after the command at hand.
        self._finalizer = weakref.finalize(self, _end, process, answers, os.getpid())

    def fits(self, environment: Mapping[str, str]) -> bool:
        """Whether it runs, and under what is so now: that there is a udev, libdevmapper asks
        once in its life."""
        runs = self._process.poll() is None
        return runs and self._environment == environment and self._udev == udev_runs()

    def say(self, line: str, tool: str | None, until_s: float) -> dict[str, Any]:
        """Give a line and read the answer to it; ``tool``: what the answer must speak of."""
        try:
            os.write(self._commands, line.encode() + b"\n")
        except OSError as error:
            raise ShellLostError(f"it does not listen: {error.strerror}") from error
        said = bytearray()
        watched = [self._answers, self._chatter]
        while True:
            left_s = until_s - time.monotonic()
            ready, _, _ = select.select(watched, [], [], max(0.0, left_s))
            if self._answers in ready:
                chunk = os.read(self._answers, 1 << 16)
                said += chunk
                if not chunk or len(said) > _ANSWER_MAX_BYTES:
                    raise ShellLostError("it ended, or does not come to an end")
                found = _whole(said)
                if found is not None:
                    _check(found, tool)
                    return found
            elif self._chatter in ready:
                if not os.read(self._chatter, 1 << 16):
                    watched.remove(self._chatter)
            elif left_s <= 0:
                raise TooSlowError

    def end(self, *, interrupt: bool = False) -> None:
        """End the shell; ``interrupt``: LVM takes one where it waits for a lock, and not between
        two steps of a change."""
        if interrupt:
            self._process.send_signal(signal.SIGINT)
            ready, _, _ = select.select([self._answers], [], [], _INTERRUPT_GRACE_S)
            if not ready:
                self._process.kill()
        self._finalizer()

    def forget(self) -> None:
        """In a forked process: the child is the other's."""
        self._process.returncode = 0
        self._finalizer()


def _end(process: subprocess.Popen[bytes], answers: int, pid_of_owner: int) -> None:
    for stream in (process.stdin, process.stdout):
        with contextlib.suppress(OSError):
            if stream is not None:
                stream.close()
    with contextlib.suppress(OSError):
        os.close(answers)
    if os.getpid() != pid_of_owner:
        return
    try:
        process.wait(_END_GRACE_S)
    except subprocess.TimeoutExpired:
        process.kill()
        with contextlib.suppress(subprocess.TimeoutExpired):
            process.wait(_END_GRACE_S)


def udev_runs() -> bool:
    return _UDEV_CONTROL.exists()


def command_line(arguments: Sequence[str]) -> str | None:
    """A line that the shell's parser takes apart into these arguments; None where there is none
    that it surely does."""
    if len(arguments) > _ARGUMENTS_MAX:
        return None
    said = []
    for argument in arguments:
        if _PLAIN.fullmatch(argument):
            said.append(argument)
        elif _QUOTED.fullmatch(argument) and "!" not in argument:
            said.append(f"'{argument}'")
        else:
            return None
    return " ".join(said)


def _whole(said: bytearray) -> dict[str, Any] | None:
    """The answer, once all of it is there."""
    if not said.rstrip().endswith(b"}"):
        return None
    try:
        found = json.loads(said.decode(errors="replace"))
    except ValueError:
        return None
    return found if isinstance(found, dict) else None


def _check(found: dict[str, Any], tool: str | None) -> None:
    try:
        rows = found["log"]
        last = rows[-1]
        fits = (
            all(isinstance(row["log_message"], str) for row in rows)
            and last["log_type"] == "status"
            and last["log_context"] == "shell"
            and (tool is None or last["log_object_name"] == tool)
            and last["log_ret_code"].isdecimal()
        )
    except (LookupError, TypeError, AttributeError) as error:
        raise ShellLostError(f"no log of the command: {error!r}") from error
    if not fits:
        raise ShellLostError(f"the log is of something else: {last}")


def _ok(found: dict[str, Any]) -> bool:
    last = found["log"][-1]
    return bool(last["log_message"] == "success" and last["log_ret_code"] == "1")


def _complaints(found: dict[str, Any]) -> str:
    return "\n".join(row["log_message"] for row in found["log"] if row.get("log_type") in _MESSAGES)
