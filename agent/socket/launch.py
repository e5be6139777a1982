"""The client of a launch: asks for it, brings its inputs, follows it over restarts of the agent."""

from __future__ import annotations

import base64
import signal
import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from types import FrameType
from typing import IO

from agent.socket.client import AgentError, Line, ask
from distrib.errors import DistribError, NetworkError

PUT_BYTES = 512 << 10
RETRY_S = 0.25
FORWARDED = (
    *(signal.SIGTERM, signal.SIGINT, signal.SIGHUP, signal.SIGQUIT, signal.SIGXCPU),
    *(signal.SIGUSR1, signal.SIGUSR2),
)


@dataclass
class Follower:
    """One launch, seen from its client. ``sinks``: what to do with each stream's bytes;
    ``reconnect_s``: how long an agent that went away is waited for; ``on_lease`` hears of the
    launch's lease."""

    socket: Path
    sinks: Mapping[str, Callable[[bytes], None]]
    on_phase: Callable[[str, float], None]
    inputs: Mapping[str, Callable[[], IO[bytes]]] = field(default_factory=dict)
    reconnect_s: float = 120.0
    on_lease: Callable[[str], None] = lambda _lease: None
    lease: str = ""
    token: str = ""
    _got: dict[str, int] = field(default_factory=dict)
    _phases: set[str] = field(default_factory=set)

    def run(self, **request: object) -> Line:
        """Launch, and the result. Raises what the agent answered, NetworkError when it is not
        there or does not come again."""
        try:
            return ask(
                self.socket,
                "launch",
                timeout_s=None,
                on_line=self._on_line,
                inputs=tuple(self.inputs),
                **request,
            )
        except NetworkError:
            if not self.token:
                raise
        return self._come_again()

    def _come_again(self) -> Line:
        until_s = time.monotonic() + self.reconnect_s
        while True:
            try:
                return ask(
                    self.socket,
                    "attach",
                    timeout_s=None,
                    on_line=self._on_line,
                    lease=self.lease,
                    token=self.token,
                    **self._got,
                )
            except AgentError:
                raise
            except NetworkError as error:
                if time.monotonic() >= until_s:
                    raise NetworkError(
                        f"the agent did not come again within {self.reconnect_s:g} s",
                        hint=error.hint,
                    ) from None
                time.sleep(RETRY_S)

    def _on_line(self, line: Line) -> None:
        if "stream" in line:
            name, data = line["stream"], base64.b64decode(line["data"])
            self.sinks[name](data)
            self._got[name] = self._got.get(name, 0) + len(data)
        elif "phase" in line and line["phase"] not in self._phases:
            self._phases.add(line["phase"])
            self.on_phase(line["phase"], line["after_s"])
        elif "token" in line:
            self.lease, self.token = line["lease"], line["token"]
            self.on_lease(self.lease)
            for name, opened in self.inputs.items():
                with opened() as stream:
                    self._put(name, stream)

    def _put(self, name: str, stream: IO[bytes]) -> None:
        for data, last in _with_last(stream):
            ask(
                self.socket,
                "put",
                lease=self.lease,
                token=self.token,
                name=name,
                data=base64.b64encode(data).decode(),
                last=last,
            )

    # -- signals --------------------------------------------------------------------------------

    def forward_signals(self) -> None:
        """From now on signals are the job's. SIGTSTP stops this process, which suspends the guest
        as SIGSTOP does: the agent sees it. A second SIGINT is ours."""
        for number in FORWARDED:
            signal.signal(number, self._forward)
        signal.signal(signal.SIGTSTP, _stop)

    def _forward(self, number: int, _frame: FrameType | None) -> None:
        if number == signal.SIGINT:
            signal.signal(signal.SIGINT, signal.default_int_handler)
        if not self.lease:
            # Nothing runs yet: as if there had been no handler.
            signal.signal(number, signal.SIG_DFL)
            signal.raise_signal(number)
            return
        try:
            name = signal.Signals(number).name
            ask(self.socket, "signal", timeout_s=30, lease=self.lease, signal=name)
        except AgentError:
            return  # it has ended meanwhile
        except DistribError:
            # No agent: a job that is to end does so by our own end.
            if number not in {signal.SIGUSR1, signal.SIGUSR2}:
                signal.signal(number, signal.SIG_DFL)
                signal.raise_signal(number)


def _stop(_number: int, _frame: FrameType | None) -> None:
    # SIGTSTP's own default does nothing in the orphaned process group that a batch job is.
    signal.raise_signal(signal.SIGSTOP)


def _with_last(stream: IO[bytes]) -> Iterator[tuple[bytes, bool]]:
    """Pieces, and whether each is the last one; at least one."""
    data = stream.read(PUT_BYTES)
    while True:
        following = stream.read(PUT_BYTES) if data else b""
        yield data, not following
        if not following:
            return
        data = following
