"""SSH as a source: pieces from peers' `serve-pieces`, asked in the order of the relay plan.

The plan, its repair and its deadline are those of the swarm (``machine``): a peer that is asked is
logged in to, and what is missing is subscribed to there, so that a parent sends on what it gets
itself. Sessions are worker threads; the sink is spoken to in the event loop only. Where several
peers are connected, each is subscribed to a share of what is missing, dealt anew as they come and
go and every two seconds: a piece may come twice after a change, never be forgotten.
"""

from __future__ import annotations

import asyncio
import contextlib
import threading
from collections import Counter
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from functools import partial
from typing import TypeVar

import structlog

from agent.pull import machine
from agent.pull.pulling import Answer, Ask, Effect, GiveUp, Leave, ParentLost, Plan, Probe, Stage
from agent.pull.source import PieceSink
from distrib.bus.messages import NodeReason, Peer
from distrib.errors import DistribError, MessageInvalid, NetworkError, TimedOut
from distrib.swarm.events import PeerSample
from distrib.swarm.pieces import piece_hashes, torrent_with_layer
from distrib.swarm.torrent import TorrentInfo
from distrib.tsunami.client import COMMAND, PieceClient
from distrib.tsunami.keys import HostKeyRefused, HostTrust, Identity
from distrib.tsunami.protocol import Have, Piece
from distrib.tsunami.ssh import Limits, SshKeyRefused, connect

log = structlog.get_logger(__name__)

T = TypeVar("T")

TICK_S = 0.5
OFFERS_MAX_BYTES = 8 << 20
"""Of each peer, what may wait for its hash; more waits in the SSH window, then at the peer."""

ROOM_S = 0.5
# Of each peer that a pull knows one reads; what is asked, and its end, need another for a moment.
THREADS_MAX = 256
BAD_MAX = 2

_STRANGE = (HostKeyRefused, SshKeyRefused, MessageInvalid)
"""What does not mend itself: somebody is to look at it."""

SHARE_AGAIN_S = 2.0


@dataclass(frozen=True)
class SshAccess:
    """How this node logs in to others. ``authorities`` sign host keys, where the site has one.

    ``identity`` is asked at each log-in: keys are rotated under a running agent."""

    identity: Callable[[], Identity]
    user: str
    authorities: tuple[str, ...] = ()
    limits: Limits = field(default_factory=Limits)

    def open(self, peer: Peer, infohash: str) -> PieceClient:
        """Log in to a peer and begin `serve-pieces` there. Blocks. Raises DistribError."""
        trust = HostTrust(peer.host_keys, self.authorities, (peer.node, peer.address))
        connection = connect(
            peer.address,
            peer.ssh_port,
            self.user,
            identity=self.identity(),
            trust=trust,
            limits=self.limits,
        )
        try:
            return PieceClient(
                connection.run(COMMAND), infohash, peer=peer.node, on_close=connection.close
            )
        except BaseException:
            connection.close()
            raise


def fetch_layers(access: SshAccess, peer: Peer, raw_info: bytes, info: TorrentInfo) -> bytes:
    """The torrent with its piece layer, asked from a peer over SSH and checked against the root.

    Without it nothing that comes over SSH could be hashed. Blocks. Raises DistribError."""
    with contextlib.closing(access.open(peer, info.infohash)) as client:
        client.open(size_bytes=info.size_bytes, piece_bytes=info.piece_bytes)
        torrent = torrent_with_layer(raw_info, client.layer() if info.pieces > 1 else b"")
    piece_hashes(torrent, info)
    return torrent


@dataclass(eq=False)
class _Session:
    peer: Peer
    task: asyncio.Task[None] | None = None
    client: PieceClient | None = None
    have: bytearray = field(default_factory=bytearray)
    spoilt: set[int] = field(default_factory=set)
    received_bytes: int = 0
    over: bool = False
    lock: threading.Lock = field(default_factory=threading.Lock)

    def dial(self, access: SshAccess, infohash: str) -> PieceClient:
        """In a thread, which cannot be cancelled: what it opened for nobody, it closes itself."""
        client = access.open(self.peer, infohash)
        with self.lock:
            if not self.over:
                self.client = client
                return client
        client.close()
        raise NetworkError(f"{self.peer.node}: not needed any more", hint="")

    def let_go(self) -> PieceClient | None:
        """The session is over; what is to be closed yet."""
        with self.lock:
            self.over = True
            client, self.client = self.client, None
        return client


class TsunamiSource:
    """Logs in to peers, and looks elsewhere when they stall. The sink's torrent knows its piece
    layer (``fetch_layers``). ``brought`` is told the peer and the bytes of each good piece."""

    name = "tsunami"

    def __init__(
        self,
        plan: Plan,
        access: SshAccess,
        *,
        deadline_s: float | None = None,
        on_parent_lost: Callable[[ParentLost], None] = lambda _: None,
        on_bad_peer: Callable[[Peer, str], None] = lambda _peer, _why: None,
        brought: Callable[[Peer, int], None] = lambda _peer, _bytes: None,
    ) -> None:
        self._access = access
        self._on_parent_lost = on_parent_lost
        self._on_bad_peer = on_bad_peer
        self._brought = brought
        self._sessions: dict[str, _Session] = {}
        # By host key, not by address as in a swarm: nobody else can have sent what was bad.
        self._bad: Counter[str] = Counter()
        self._sink: PieceSink | None = None
        self._shared_s = 0.0
        self._good: set[int] = set()
        self._tasks: set[asyncio.Task[None]] = set()
        # Of its own: sessions wait in threads, and the loop's few are for the disk.
        self._threads = ThreadPoolExecutor(THREADS_MAX, thread_name_prefix="pieces")
        self._state, self._first = machine.start(plan, now_s=self._now_s(), deadline_s=deadline_s)

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
        self._step(machine.on_plan(self._state, plan, now_s=self._now_s(), deadline_s=deadline_s))

    async def bring(self, sink: PieceSink) -> None:
        """See ``Source.bring``. Raises TimedOut at the deadline."""
        self._sink = sink
        complete = asyncio.create_task(sink.complete(), name="complete")
        try:
            self._act(self._first)
            while not complete.done():
                await asyncio.wait({complete}, timeout=TICK_S)
                self._step(machine.on_sample(self._state, self._samples(), now_s=self._now_s()))
                self._step(machine.on_tick(self._state, now_s=self._now_s()))
                if self._now_s() - self._shared_s > SHARE_AGAIN_S and len(self._open()) > 1:
                    self._share()
        finally:
            complete.cancel()
            tasks = [one.task for one in self._sessions.values() if one.task] + list(self._tasks)
            for session in list(self._sessions.values()):
                self._close(session)
            for task in tasks:
                task.cancel()
            await asyncio.gather(complete, *tasks, return_exceptions=True)
            # Of these, those that close.
            await asyncio.gather(*self._tasks, return_exceptions=True)
            self._sink = None
            self._threads.shutdown(wait=False)

    # -- what the plan's machine wants ------------------------------------------------------------

    def _step(self, step: machine.Step) -> None:
        self._state, effects = step
        self._act(effects)

    def _act(self, effects: tuple[Effect, ...]) -> None:
        for effect in effects:
            match effect:
                case Ask(peers):
                    for peer in peers:
                        self._dial(peer)
                case Leave(peers):
                    for peer in peers:
                        session = self._sessions.get(peer.address)
                        if session is not None:
                            self._close(session)
                case Probe(peer):
                    self._spawn(self._probe(peer), f"probe {peer.node}")
                case ParentLost():
                    self._on_parent_lost(effect)
                case GiveUp(_, text):
                    raise TimedOut(text, hint="start the rollout again with more time")

    def _dial(self, peer: Peer) -> None:
        if self._sink is None or peer.address in self._sessions or not peer.ssh_port:
            return
        if self._bad[peer.node] >= BAD_MAX and self._state.stage is not Stage.EVERYBODY:
            return
        session = _Session(peer)
        self._sessions[peer.address] = session
        session.task = asyncio.create_task(self._run(session), name=f"pieces from {peer.node}")

    async def _probe(self, peer: Peer) -> None:
        try:
            async with asyncio.timeout(1.0):
                _, writer = await asyncio.open_connection(peer.address, peer.ssh_port)
            writer.transport.abort()
            answer = Answer.TAKES
        except ConnectionRefusedError:
            answer = Answer.REFUSES
        except (OSError, TimeoutError):
            answer = Answer.NONE
        self._step(machine.on_probe(self._state, peer, answer, now_s=self._now_s()))

    # -- a session --------------------------------------------------------------------------------

    async def _run(self, session: _Session) -> None:
        address, sink = session.peer.address, self._sink
        assert sink is not None  # noqa: S101 - dialled inside ``bring``
        loop = asyncio.get_running_loop()
        try:
            client = await self._in_thread(session.dial, self._access, sink.infohash)
            session.have = await self._in_thread(
                partial(client.open, size_bytes=sink.size_bytes, piece_bytes=sink.piece_bytes)
            )
            self._share()
            room = threading.Semaphore(max(1, OFFERS_MAX_BYTES // sink.piece_bytes))

            def hand_on(piece: Piece) -> None:
                # Not for ever: the loop that makes room may have ended.
                while not room.acquire(timeout=ROOM_S):
                    if session.over:
                        raise NetworkError(f"{session.peer.node}: not needed any more", hint="")
                loop.call_soon_threadsafe(self._take, session, piece, room)

            await self._in_thread(_read, client, hand_on, session.have)
        except DistribError as error:
            told = log.warning if isinstance(error, _STRANGE) else log.info
            told("peer-ended", peer=session.peer.node, code=error.code, why=error.message)
        finally:
            self._close(session)
        self._step(machine.on_peer_down(self._state, address, now_s=self._now_s()))
        self._share()

    def _take(self, session: _Session, piece: Piece, room: threading.Semaphore) -> None:
        session.received_bytes += len(piece.data)
        self._spawn(self._offer(session, piece, room), f"piece {piece.index}")

    async def _offer(self, session: _Session, piece: Piece, room: threading.Semaphore) -> None:
        sink = self._sink
        try:
            if sink is None:
                return
            if await sink.offer(piece.index, piece.data):
                if piece.index not in self._good:
                    self._good.add(piece.index)
                    self._brought(session.peer, len(piece.data))
                self._step(machine.on_piece(self._state, now_s=self._now_s()))
                return
        finally:
            room.release()
        self._bad[session.peer.node] += 1
        session.have[piece.index] = 0
        session.spoilt.add(piece.index)
        self._on_bad_peer(session.peer, f"piece {piece.index} failed its hash")
        if self._bad[session.peer.node] >= BAD_MAX:
            self._close(session)
            address = session.peer.address
            self._step(machine.on_banned(self._state, address, now_s=self._now_s()))
        self._share()

    def _share(self) -> None:
        """Subscribe each session to its share of what is missing; what only one has, there."""
        sink, sessions = self._sink, self._open()
        if sink is None or not sessions:
            return
        self._shared_s = self._now_s()
        stripe_of = {peer.address: i for i, peer in enumerate(self._state.plan.parents)}
        striped = self._state.plan.stripes > 1 and len(stripe_of) > 1
        feeds = [stripe_of.get(one.peer.address) if striped else None for one in sessions]
        parents = {peer.address for peer in self._state.plan.parents}
        first = [n for n, one in enumerate(sessions) if one.peer.address in parents]
        wanted = _shares(sink.missing(), [one.have for one in sessions], feeds, first)
        for session, share in zip(sessions, wanted, strict=True):
            self._spawn(self._subscribe(session, share), "subscribe")

    async def _subscribe(self, session: _Session, share: bytearray) -> None:
        # The session may be let go meanwhile.
        if (client := session.client) is not None:
            with contextlib.suppress(NetworkError):
                await self._in_thread(client.subscribe, share)
                # Sent before, and bad: nobody else has it.
                for index in [one for one in session.spoilt if share[one]]:
                    session.spoilt.discard(index)
                    await self._in_thread(client.get, index, 1)

    def _open(self) -> list[_Session]:
        return [one for one in self._sessions.values() if one.client and one.have]

    def _close(self, session: _Session) -> None:
        if self._sessions.get(session.peer.address) is session:
            del self._sessions[session.peer.address]
        client = session.let_go()
        if client is not None:
            # Closing joins paramiko's thread.
            self._spawn(self._in_thread(client.close), "close")

    def _samples(self) -> list[PeerSample]:
        missing = self._sink.missing() if self._sink else []
        return [
            PeerSample(
                one.peer.address,
                one.peer.ssh_port,
                any(one.have[index] for index in missing),
                one.received_bytes,
                0,
                0,
                0,
            )
            for one in self._open()
        ]

    async def _in_thread(self, work: Callable[..., T], *args: object) -> T:
        return await asyncio.get_running_loop().run_in_executor(self._threads, work, *args)

    def _spawn(self, work: object, name: str) -> None:
        task = asyncio.ensure_future(work)  # type: ignore[call-overload]
        task.set_name(name)
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)

    @staticmethod
    def _now_s() -> float:
        return asyncio.get_running_loop().time()


def _read(client: PieceClient, hand_on: Callable[[Piece], None], have: bytearray) -> None:
    """In a thread: everything that comes, until the end. Raises DistribError."""
    while (message := client.next()) is not None:
        match message:
            case Piece(index):
                have[index] = 1
                hand_on(message)
            case Have(first, count):
                have[first : first + count] = b"\x01" * count


def _shares(
    missing: Sequence[int],
    have: Sequence[bytearray],
    feeds: Sequence[int | None],
    first: Sequence[int] = (),
) -> list[bytearray]:
    """Of every missing piece, who is to send it: who feeds its stripe, by the plan; else those that
    have it in turn; where nobody has it yet, ``first`` in turn (the parents; without any, all),
    until the shares are dealt anew."""
    shares = [bytearray(len(one)) for one in have]
    stripes = len({one for one in feeds if one is not None})
    for turn, index in enumerate(missing):
        if stripes > 1:
            shares[feeds.index(index % stripes)][index] = 1
            continue
        holders = [number for number, one in enumerate(have) if one[index]]
        some = holders or first or range(len(have))
        shares[some[turn % len(some)]][index] = 1
    return shares
