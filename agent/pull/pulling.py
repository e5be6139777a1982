"""What a pull knows of its peers, what happens to it, and what it has done: data of the machine."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field, replace
from enum import Enum, IntEnum

from distrib.bus.messages import NodeReason, Peer
from distrib.swarm.events import PeerSample

QUIET_MIN_S = 0.4
QUIET_MAX_S = 1.0
QUIET_PIECES = 8
"""Silence after which a peer is probed: the time of so many pieces, within these bounds."""

MISSES = 2
"""Probes without an answer after which a host is dark: one can be lost on a full link."""

HEARD_S = 0.6
"""Who was heard so lately is not dark, whatever a probe says. Samples are this old at most."""

PROBE_EVERY_S = 0.5
PROBE_SELDOM_S = 2.0
"""How often a silent peer is probed; seldom once it has answered."""

NAMED_S = 2.0
"""Silence that is told to the site with its reason, whoever is at fault."""

STALL_MIN_S = 3.0
STALL_MAX_S = 30.0
STALL_PIECES = 20
"""Who has pieces and is silent for the time of so many, within these bounds, has stalled."""

REACH_S = 4.0
"""A peer that cannot be connected to for so long is lost, even if its host answers."""

OPENING_S = 0.5
"""Who loses a connection so soon after its start leaves the next one to its parent: it has not
begun yet, and connects to its children when it does. Two such connections close each other."""

REDIAL_S = 1.0
"""libtorrent makes connections once a second."""

WAIT_MAX_S = 30.0
"""So long a peer is waited for that answers and has nothing new."""

FALLBACK_WAIT_S = 2.0
"""The same for a fallback: it may be below this node, or wait for the same parent."""

RETURN_S = 1.0
"""A lost parent has come back when it has delivered for so long."""

RETRY_MIN_S = 2.0
RETRY_MAX_S = 16.0

LEAVE_S = 5.0
"""Those of the plan before are left once a new parent delivers, or after this time."""

AHEAD_S = 1.0
"""Sooner, new parents that are connected may just not have said yet what they have."""

KNOWN_MAX = 64


class Stage(IntEnum):
    """How far a pull has gone beyond its parents."""

    PARENTS = 0
    FALLBACKS = 1
    EVERYBODY = 2


class Answer(Enum):
    """What a probe found: the host takes connections, refuses them, or is dark."""

    TAKES = "takes"
    REFUSES = "refuses"
    NONE = "none"


@dataclass(frozen=True)
class Plan:
    """Who may be asked, in this order (docs/formats/messages.md, ``desired``)."""

    parents: tuple[Peer, ...] = ()
    fallbacks: tuple[Peer, ...] = ()
    neighbours: tuple[Peer, ...] = ()
    stripes: int = 1

    def upto(self, stage: Stage) -> tuple[Peer, ...]:
        """The peers of all stages up to ``stage``, each once, in order."""
        groups = (self.parents, self.fallbacks, self.neighbours)[: stage + 1]
        return each_once(peer for group in groups for peer in group)

    def of_stripe(self, stripe: int) -> Plan:
        """The plan by which one stripe is fetched: its own parent; the other's comes last."""
        if self.stripes == 1 or len(self.parents) < 2:
            return replace(self, stripes=1)
        own = self.parents[stripe]
        others = tuple(peer for peer in self.parents if peer.node != own.node)
        return Plan((own,), self.fallbacks, (*self.neighbours, *others))


@dataclass(frozen=True)
class Pulling:
    """The state.

    ``current`` are those relied on now, ``asked`` all who may be connected, ``known`` who was ever
    named. ``interval_s`` is the mean time between two pieces, as far as it is known; ``heard_s``
    when something came last, ``heard_from`` by address. ``tried`` are the fallbacks that have had
    their turn, ``leaving`` those of the plan before, until ``leave_s``.
    """

    plan: Plan
    stage: Stage
    current: tuple[Peer, ...]
    asked: tuple[Peer, ...]
    known: tuple[Peer, ...]
    heard_s: float
    dialled_s: float
    began_s: float
    piece_s: float
    interval_s: float = 0.0
    heard_from: Mapping[str, float] = field(default_factory=dict)
    deadline_s: float | None = None
    reason: NodeReason | None = None
    text: str = ""
    misses: Mapping[str, int] = field(default_factory=dict)
    probed_s: Mapping[str, float] = field(default_factory=dict)
    samples: Mapping[str, PeerSample] = field(default_factory=dict)
    bad: frozenset[str] = frozenset()
    back_s: float | None = None
    retry_s: float = RETRY_MIN_S
    retried_s: float = 0.0
    leaving: tuple[Peer, ...] = ()
    leave_s: float = 0.0
    tried: tuple[Peer, ...] = ()

    @property
    def quiet_s(self) -> float:
        """Silence after which the peers relied on are probed."""
        return min(max(QUIET_PIECES * self.interval_s, QUIET_MIN_S), QUIET_MAX_S)

    @property
    def patience_s(self) -> float:
        """Silence after which a peer that has pieces counts as stalled."""
        return min(max(STALL_PIECES * self.interval_s, STALL_MIN_S), STALL_MAX_S)


@dataclass(frozen=True)
class Ask:
    """Effect: connect to these peers; at once, where a connection was tried before and is not."""

    peers: tuple[Peer, ...]


@dataclass(frozen=True)
class Leave:
    """Effect: end the connections to these peers, and make none by oneself."""

    peers: tuple[Peer, ...]


@dataclass(frozen=True)
class Probe:
    """Effect: find out whether the peer's host takes connections; ``on_probe`` hears it."""

    peer: Peer


@dataclass(frozen=True)
class ParentLost:
    """Effect: tell the controller that ``parent`` brings nothing any more, and why."""

    parent: Peer
    now_from: Peer | None
    reason: NodeReason


@dataclass(frozen=True)
class GiveUp:
    """Effect: the pull has failed."""

    reason: NodeReason
    text: str


Effect = Ask | Leave | Probe | ParentLost | GiveUp


def each_once(peers: Iterable[Peer]) -> tuple[Peer, ...]:
    """The peers without repeats, in order."""
    return tuple(dict.fromkeys(peers))
