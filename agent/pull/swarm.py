"""The swarm as a source: BitTorrent peers, asked in the order of the relay plan."""

from __future__ import annotations

import asyncio
import contextlib
import errno
import math
from collections.abc import Callable

from agent.pull import machine
from agent.pull.pulling import Answer, Ask, Effect, GiveUp, Leave, ParentLost, Plan, Probe
from agent.pull.source import PieceSink
from distrib.bus.messages import NodeReason, Peer
from distrib.errors import DistribError, NodeError, NoSpace, StorageFailed, TimedOut
from distrib.swarm.events import (
    PeerBanned,
    PeerDown,
    PeersSampled,
    PieceDone,
    StorageFault,
    TransferEvent,
)
from distrib.swarm.transfer import Transfer

TICK_S = 0.2

DIAL_S = 2.5
"""A peer that was dialled is not dialled anew before: libtorrent connects once a second, and the
connection that it is just making would be undone. What has failed is known at once."""

PROBE_LIMIT_S = 0.5
"""A host that has not taken a connection by then does not answer: in a LAN it takes milliseconds,
behind a full queue some tens."""


class SwarmSource:
    """Connects a transfer to its peers and looks elsewhere when they stall.

    ``on_parent_lost`` tells the controller, ``changed`` hears when ``reason`` is another one.
    ``follow`` hands in a new plan at any time.
    """

    name = "swarm"

    def __init__(
        self,
        transfer: Transfer,
        plan: Plan,
        *,
        deadline_s: float | None = None,
        on_parent_lost: Callable[[ParentLost], None] = lambda _: None,
        changed: Callable[[], None] = lambda: None,
    ) -> None:
        self._transfer = transfer
        # Who was dialled as the transfer was opened may be lost before ``bring`` begins.
        transfer.watched = True
        self._on_parent_lost = on_parent_lost
        self._changed = changed
        self._dialled: dict[str, float] = {}
        self._probes: dict[Peer, asyncio.Task[None]] = {}
        now_s = asyncio.get_running_loop().time()
        self._state, self._first = machine.start(plan, now_s=now_s, deadline_s=deadline_s)

    @property
    def reason(self) -> NodeReason | None:
        """Why pieces do not come, while they do not."""
        return self._state.reason

    @property
    def text(self) -> str:
        """The same in words, with the peer's name."""
        return self._state.text

    def follow(self, plan: Plan, *, deadline_s: float | None = None) -> None:
        """Fetch by a new plan, until another deadline, from now on."""
        now_s = self._now_s()
        self._step(machine.on_plan(self._state, plan, now_s=now_s, deadline_s=deadline_s))

    async def bring(self, sink: PieceSink) -> None:
        """See ``Source.bring``. Raises StorageFailed, NoSpace or TimedOut."""
        if sink.infohash != self._transfer.infohash:
            raise NodeError(f"swarm: {sink.infohash[:12]} is another torrent", hint="a bug")
        try:
            await self._until_complete()
        finally:
            self._transfer.watched = False
            probes = list(self._probes.values())
            for probe in probes:
                probe.cancel()
            await asyncio.gather(*probes, return_exceptions=True)

    async def _until_complete(self) -> None:
        self._act(self._first)
        while True:
            now_s = self._now_s()
            while not self._transfer.events.empty():
                self._take(self._transfer.events.get_nowait(), now_s)
            if self._transfer.is_complete:
                return
            self._step(machine.on_tick(self._state, now_s=now_s))
            await self._wait()

    def _now_s(self) -> float:
        return asyncio.get_running_loop().time()

    async def _wait(self) -> None:
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(TICK_S):
                await self._transfer.moved()

    def _take(self, event: TransferEvent, now_s: float) -> None:
        match event:
            case PieceDone() if self._transfer.peers:
                # Without peers somebody else brought it.
                self._step(machine.on_piece(self._state, now_s=now_s))
            case PeersSampled(peers):
                self._step(machine.on_sample(self._state, peers, now_s=now_s))
            case PeerDown(address) if address not in self._transfer.peers:
                if address in self._dialled:
                    self._dialled[address] = -math.inf
                self._step(machine.on_peer_down(self._state, address, now_s=now_s))
            case PeerBanned(address):
                self._step(machine.on_banned(self._state, address, now_s=now_s))
            case StorageFault() as fault:
                raise _fault(fault)
            case _:
                pass

    def _step(self, step: machine.Step) -> None:
        before = self._state
        self._state, effects = step
        self._act(effects)
        if (self._state.reason, self._state.text) != (before.reason, before.text):
            self._changed()

    def _act(self, effects: tuple[Effect, ...]) -> None:
        for effect in effects:
            match effect:
                case Ask(peers):
                    for peer in peers:
                        self._dial(peer)
                case Leave(peers):
                    for peer in peers:
                        self._dialled.pop(peer.address, None)
                        self._transfer.leave(peer.address)
                case Probe(peer):
                    if peer not in self._probes:
                        self._probes[peer] = asyncio.create_task(
                            self._probe(peer), name=f"probe {peer.node}"
                        )
                case ParentLost():
                    self._on_parent_lost(effect)
                case GiveUp(_, text):
                    raise TimedOut(text, hint="start the rollout again with more time")

    def _dial(self, peer: Peer) -> None:
        now_s, dialled_s = self._now_s(), self._dialled.get(peer.address)
        if peer.address in self._transfer.peers:
            return
        if dialled_s is not None:
            if now_s - dialled_s < DIAL_S:
                return
            # libtorrent waits a minute before it tries a peer again that it still knows.
            self._transfer.leave(peer.address)
        self._dialled[peer.address] = now_s
        self._transfer.connect(peer.address, peer.port)

    async def _probe(self, peer: Peer) -> None:
        try:
            answer = await probe(peer)
        finally:
            self._probes.pop(peer, None)
        self._step(machine.on_probe(self._state, peer, answer, now_s=self._now_s()))


async def probe(peer: Peer) -> Answer:
    """Whether a peer's host takes a connection on its port; nothing is said on it."""
    try:
        async with asyncio.timeout(PROBE_LIMIT_S):
            _, writer = await asyncio.open_connection(peer.address, peer.port)
    except ConnectionRefusedError:
        return Answer.REFUSES
    except (OSError, TimeoutError):
        return Answer.NONE
    writer.transport.abort()
    return Answer.TAKES


def _fault(fault: StorageFault) -> DistribError:
    if fault.errno == errno.ENOSPC:
        return NoSpace(fault.message, hint="the file system below the cache is full")
    return StorageFailed(fault.message, hint="see the kernel's log for the device")
