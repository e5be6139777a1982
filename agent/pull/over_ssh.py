"""A pull over SSH: the piece hashes first, then the pieces, from whom the plan or leave names."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from dataclasses import dataclass

import structlog

from agent.pull.further import Pulled
from agent.pull.pulling import Plan, Stage
from agent.pull.source import PieceSink, Source
from agent.pull.tsunami import TICK_S, SshAccess, TsunamiSource, fetch_layers
from distrib.bus.messages import NodeReason, Peer, Transport
from distrib.errors import DistribError

log = structlog.get_logger(__name__)

LEARN_AGAIN_S = 1.0


@dataclass(frozen=True)
class TsunamiMaker:
    """Makes the source of a pull: by its plan where SSH is ordered, else from whom there is leave
    to ask."""

    access: SshAccess
    name: str = "tsunami"

    def make(self, pulled: Pulled) -> Source | None:
        """See ``SourceMaker``."""
        source = OverSsh(self.access, pulled)
        return source if source.plan().upto(Stage.EVERYBODY) else None

    async def close(self) -> None:
        """See ``SourceMaker``. Each source ends its own connections."""


class OverSsh:
    """A pull over SSH: the piece hashes first, where they are not known, then the pieces; it
    follows the pull's plan."""

    name = "tsunami"

    def __init__(self, access: SshAccess, pulled: Pulled) -> None:
        self._access = access
        self._pulled = pulled
        self._source: TsunamiSource | None = None

    @property
    def reason(self) -> NodeReason | None:
        """Why pieces do not come, while they do not."""
        return self._source.reason if self._source else None

    @property
    def text(self) -> str:
        """The same in words."""
        return self._source.text if self._source else ""

    def plan(self) -> Plan:
        """Whom to ask, of those that serve over SSH."""
        means = self._pulled.means()
        if means.transport is Transport.TSUNAMI:
            plan = means.plan
            parents = _served(plan.parents)
            stripes = plan.stripes if len(parents) == len(plan.parents) else 1
            return Plan(parents, _served(plan.fallbacks), _served(plan.neighbours), stripes)
        sources = _served(means.tokens[-1].sources) if means.tokens else ()
        return Plan(sources[:1], sources[1:])

    async def bring(self, sink: PieceSink) -> None:
        """See ``Source.bring``."""
        if not self._pulled.knows_hashes():
            await self._learn()
            await sink.complete()
            return
        plan = self.plan()
        self._source = source = TsunamiSource(
            plan, self._access, on_parent_lost=self._pulled.lost, on_bad_peer=self._named
        )
        bringing = asyncio.create_task(source.bring(sink), name="over SSH")
        try:
            while not bringing.done():
                await asyncio.wait({bringing}, timeout=TICK_S)
                if not bringing.done() and (newer := self.plan()) != plan:
                    plan = newer
                    source.follow(plan)
            await bringing
        finally:
            bringing.cancel()
            await asyncio.gather(bringing, return_exceptions=True)

    def _named(self, peer: Peer, why: str) -> None:
        self._pulled.bad_peers[peer.address] += 1
        log.warning("bad-peer", peer=peer.node, address=peer.address, transport=self.name, why=why)

    async def _learn(self) -> None:
        pulled = self._pulled
        while True:
            for peer in self.plan().upto(Stage.EVERYBODY):
                try:
                    torrent = await asyncio.to_thread(
                        fetch_layers, self._access, peer, pulled.raw_info, pulled.info
                    )
                except DistribError as error:
                    log.info("no-hashes", peer=peer.node, code=error.code, why=error.message)
                    continue
                await pulled.learn(torrent)
                return
            await asyncio.sleep(LEARN_AGAIN_S)


def _served(peers: Sequence[Peer]) -> tuple[Peer, ...]:
    return tuple(peer for peer in peers if peer.ssh_port and peer.host_keys)
