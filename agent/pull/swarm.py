"""The swarm as a source: BitTorrent peers, asked in the order of the relay plan."""

from __future__ import annotations

import asyncio
import contextlib
import errno
from collections.abc import Callable

from agent.pull import machine
from agent.pull.machine import Ask, Effect, GiveUp, ParentLost, Plan
from agent.pull.source import PieceSink
from distrib.bus.messages import NodeReason
from distrib.errors import DistribError, NodeError, NoSpace, StorageFailed, TimedOut
from distrib.swarm.events import PeerDown, PieceDone, StorageFault, TransferEvent
from distrib.swarm.transfer import Transfer

TICK_S = 0.5


class SwarmSource:
    """Connects a transfer to its peers and looks elsewhere when they stall.

    ``on_parent_lost`` tells the controller. ``follow`` hands in a new plan at any time.
    """

    name = "swarm"

    def __init__(
        self,
        transfer: Transfer,
        plan: Plan,
        *,
        deadline_s: float | None = None,
        on_parent_lost: Callable[[ParentLost], None] = lambda _: None,
    ) -> None:
        self._transfer = transfer
        self._on_parent_lost = on_parent_lost
        now_s = asyncio.get_running_loop().time()
        self._state, self._first = machine.start(plan, now_s=now_s, deadline_s=deadline_s)

    @property
    def reason(self) -> NodeReason | None:
        """Why pieces do not come, while they do not."""
        return self._state.reason

    def follow(self, plan: Plan, *, deadline_s: float | None = None) -> None:
        """Fetch by a new plan, until another deadline, from now on."""
        now_s = self._now_s()
        self._step(machine.on_plan(self._state, plan, now_s=now_s, deadline_s=deadline_s))

    async def bring(self, sink: PieceSink) -> None:
        """See ``Source.bring``. Raises StorageFailed, NoSpace or TimedOut."""
        if sink.infohash != self._transfer.infohash:
            raise NodeError(f"swarm: {sink.infohash[:12]} is another torrent", hint="a bug")
        self._transfer.watched = True
        try:
            await self._until_complete()
        finally:
            self._transfer.watched = False

    async def _until_complete(self) -> None:
        self._act(self._first)
        while True:
            now_s, connected = self._now_s(), len(self._transfer.peers)
            while not self._transfer.events.empty():
                self._take(self._transfer.events.get_nowait(), connected, now_s)
            if self._transfer.is_complete:
                return
            self._step(machine.on_tick(self._state, connected=connected, now_s=now_s))
            await self._wait()

    def _now_s(self) -> float:
        return asyncio.get_running_loop().time()

    async def _wait(self) -> None:
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(TICK_S):
                await self._transfer.moved()

    def _take(self, event: TransferEvent, connected: int, now_s: float) -> None:
        match event:
            case PieceDone():
                self._step(machine.on_piece(self._state, now_s=now_s))
            case PeerDown(address, _):
                down = machine.on_peer_down(self._state, address, connected=connected)
                self._step(down)
            case StorageFault() as fault:
                raise _fault(fault)

    def _step(self, step: machine.Step) -> None:
        self._state, effects = step
        self._act(effects)

    def _act(self, effects: tuple[Effect, ...]) -> None:
        for effect in effects:
            match effect:
                case Ask(peers):
                    for peer in peers:
                        self._transfer.connect(peer.address, peer.port)
                case ParentLost():
                    self._on_parent_lost(effect)
                case GiveUp(_, text):
                    raise TimedOut(text, hint="start the rollout again with more time")


def _fault(fault: StorageFault) -> DistribError:
    if fault.errno == errno.ENOSPC:
        return NoSpace(fault.message, hint="the file system below the cache is full")
    return StorageFailed(fault.message, hint="see the kernel's log for the device")
