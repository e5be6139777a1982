"""Answers nodes whose swarm brings nothing: whom they may ask over SSH, and for how much.

At first they are sent to the nodes that the plan names, which costs the seeder nothing; one that
asks again, or has no such node, may ask a seeder, within the budget (``tokens``).
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from datetime import datetime, timedelta

import structlog

from distrib.bus.messages import GrantTokens, TokensWanted, Transport
from distrib.rollout.desired import Assigned, peers_of
from distrib.rollout.fleet import Fleet
from distrib.rollout.planner import Planner
from distrib.rollout.tokens import Asked, Bucket, Queue
from distrib.swarm.relay_peers import RelayPeer
from distrib.swarm.torrent import piece_bytes_for

log = structlog.get_logger(__name__)

TRIED = timedelta(seconds=60)
"""Who asks again within this time was not helped by other nodes."""

DEFAULT_SEEDER_BPS = 62_500_000


class Granting:
    """Only the rollout service's loop changes it. ``seeder_bps`` is what all grants together may
    bring upon the seeders."""

    def __init__(
        self,
        fleet: Fleet,
        planner: Planner,
        *,
        clock: Callable[[], datetime],
        seeder_bps: int = DEFAULT_SEEDER_BPS,
    ) -> None:
        self._fleet = fleet
        self._planner = planner
        self._clock = clock
        self._queue = Queue(Bucket(seeder_bps))
        self._sent: dict[tuple[str, str], datetime] = {}

    def limit(self, seeder_bps: int) -> None:
        """Have another budget."""
        self._queue = Queue(Bucket(seeder_bps), self._queue.waiting)

    def ask(self, node: str, wanted: TokensWanted, held: Iterable[Assigned]) -> None:
        """A node wants leave for one of the images that it is to have (``held``)."""
        size_bytes = next((one.size_bytes for one in held if one.infohash == wanted.infohash), 0)
        if not size_bytes:
            return
        now = self._clock()
        last = self._sent.get((node, wanted.infohash))
        again = last is not None and now - last < TRIED
        costs = again or not self._nodes(node, wanted.infohash)
        piece_bytes = piece_bytes_for(size_bytes)
        pieces = min(wanted.missing_pieces, -(-size_bytes // piece_bytes))
        asked = Asked(node, wanted.infohash, pieces, piece_bytes, costs, now)
        self._queue = self._queue.with_asked(asked)

    def due(self, now: datetime) -> Iterator[tuple[str, GrantTokens]]:
        """Whom to send leave to now."""
        self._sent = {key: at for key, at in self._sent.items() if now - at < TRIED}
        if not self._queue.waiting:
            return
        self._queue, granted = self._queue.served(now)
        for one in granted:
            node, infohash = one.asked.node, one.asked.infohash
            sources = self._nodes(node, infohash)
            if one.asked.costs:
                sources = (*sources, *self._seeders(infohash))
            self._sent[node, infohash] = now
            log.info(
                "tokens-granted",
                node=node,
                infohash=infohash,
                pieces=one.pieces,
                sources=[peer.node for peer in sources],
            )
            yield (
                node,
                GrantTokens(
                    infohash=infohash,
                    transport=Transport.AUTO if one.asked.costs else Transport.TSUNAMI,
                    pieces=one.pieces,
                    sources=peers_of(sources[:8], ssh=True),
                ),
            )

    def _nodes(self, node: str, infohash: str) -> tuple[RelayPeer, ...]:
        links = self._planner.links(node, infohash)
        peers = dict.fromkeys((*links.parents, *links.fallbacks))
        return tuple(
            peer
            for peer in peers
            if peer.node in self._fleet.inventory and peer.ssh_port and peer.host_keys
        )

    def _seeders(self, infohash: str) -> tuple[RelayPeer, ...]:
        found = sorted(self._fleet.seeders_of(infohash), key=lambda member: member.node)
        return tuple(one.peer for one in found if one.ssh_port and one.host_keys)
