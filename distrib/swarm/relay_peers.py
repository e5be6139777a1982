"""Who takes part in a relay plan, and what each is told. Pure."""

from __future__ import annotations

from dataclasses import dataclass, field


@dataclass(frozen=True)
class RelayPeer:
    """Where a node or a seeder answers to BitTorrent, and to SSH where it serves pieces so."""

    node: str
    address: str
    port: int
    ssh_port: int = 0
    host_keys: tuple[str, ...] = ()


@dataclass(frozen=True)
class Member:
    """A node that wants or holds the image; with ``port`` 0 nobody can fetch from it."""

    node: str
    address: str
    port: int
    rack: str = ""
    has_all: bool = False
    progress: float = 0.0
    """Part of the image that it holds, 0 to 1."""
    link_bps: int = 0
    """Rate of its link in bytes per second, 0 where it is not known."""
    stripe_ports: tuple[int, ...] = ()
    """Where it serves each stripe; () for a node that fetches all from one parent."""
    ssh_port: int = 0
    """Where its sshd serves pieces; 0: it does not."""
    host_keys: tuple[str, ...] = ()

    @property
    def peer(self) -> RelayPeer:
        return self._at(self.port)

    def stripe_peer(self, stripe: int) -> RelayPeer:
        """Where it serves a stripe."""
        port = self.stripe_ports[stripe] if stripe < len(self.stripe_ports) else self.port
        return self._at(port)

    def _at(self, port: int) -> RelayPeer:
        return RelayPeer(self.node, self.address, port, self.ssh_port, self.host_keys)

    @property
    def serves(self) -> bool:
        return self.port > 0 and self.address != ""


@dataclass(frozen=True)
class Links:
    """What one node is told of its peers.

    With ``stripes`` 2, ``parents[i]`` feeds the pieces whose index leaves i when divided by 2.
    ``children`` fetch from the node, with two stripes those of the first, ``second_children`` those
    of the second: both sides of a link connect, so that it stands once both can.
    ``opens_after_ms`` keeps the two from doing it in the same moment, when neither link would stand
    (docs/decisions/0045-crossing.md); a node that has begun is not told anew for it.
    """

    parents: tuple[RelayPeer, ...] = ()
    fallbacks: tuple[RelayPeer, ...] = ()
    neighbours: tuple[RelayPeer, ...] = ()
    stripes: int = 1
    children: tuple[RelayPeer, ...] = ()
    second_children: tuple[RelayPeer, ...] = ()
    opens_after_ms: int = field(default=0, compare=False)
