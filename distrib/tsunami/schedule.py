"""Who sends which piece to whom next: pieces x hosts x slots, for hosts that decide nothing.

The rules:
- a transfer takes a slot at both ends, so nobody's fan-out or fan-in exceeds its slots;
- the rarest piece goes first, counting copies under way: a source alone with a piece sends it once;
- a source takes turns between its own rack and others. To another rack go first the pieces that are
  not there yet: each crosses about once, and no rack waits until another is full;
- what failed is tried elsewhere; bad sources are set aside with a reason (``trouble``);
- hosts join with what they have, leave, and become sources with their first piece;
- a transfer that takes far longer than others is lost; a host past its deadline is given up.

Work per event follows the hosts that have a free slot, not pieces x hosts: between two calls no
free source can serve a free target, so only hosts that an event touched are looked at.

Pure: times are seconds of any clock, given by the caller; chance comes from ``seed``.
"""

from __future__ import annotations

import heapq
from collections import defaultdict, deque
from collections.abc import Iterable, Iterator
from itertools import count
from random import Random

from distrib.tsunami.party import Host, Order, gives
from distrib.tsunami.pool import Pool
from distrib.tsunami.rarity import Rarity, pieces_of
from distrib.tsunami.trouble import Fault, Trouble

CANDIDATES = 6
"""So many that fit are compared before one is taken."""

PATIENCE_MIN_S = 30.0
PATIENCE = 8.0
"""A transfer is lost after so many times the mean duration, and not before the least."""


class Schedule:
    """One file on its way to its targets."""

    def __init__(self, pieces: int, *, seed: int = 0) -> None:
        self.pieces = pieces
        self.set_aside: dict[str, str] = {}
        self.were_set_aside: dict[str, str] = {}
        self.given_up: dict[str, str] = {}
        self._all = (1 << pieces) - 1
        self._random = Random(seed)  # noqa: S311 - chance, not secrets
        self._rarity = Rarity(pieces, self._random)
        self._trouble = Trouble()
        self._hosts: dict[str, Host] = {}
        self._orders: dict[int, Order] = {}
        self._numbers = count(1)
        self._touched: deque[Host] = deque()
        self._givers: Pool[Host] = Pool(self._random)
        self._hungry: Pool[Host] = Pool(self._random)
        self._near_givers: defaultdict[str, Pool[Host]] = defaultdict(self._pool)
        self._near_hungry: defaultdict[str, Pool[Host]] = defaultdict(self._pool)
        self._in_rack: defaultdict[str, int] = defaultdict(int)
        self._timers: list[tuple[float, int, str, str]] = []
        self._mean_s = 0.0

    # -- hosts ------------------------------------------------------------------------------------

    def join(
        self,
        name: str,
        *,
        have: Iterable[int] = (),
        rack: str = "",
        up_slots: int = 4,
        down_slots: int = 4,
        target: bool = True,
        origin: bool = False,
        deadline_s: float | None = None,
        fetches: bool = True,
    ) -> None:
        """A host is there. An ``origin`` has every piece and is no target; one that does not fetch
        is fed by origins only."""
        if name in self._hosts:
            raise ValueError(f"{name} has joined already")
        host = Host(name, rack, up_slots, down_slots, target and not origin, origin, fetches)
        self._hosts[name] = host
        self.given_up.pop(name, None)
        held = range(self.pieces) if origin else have
        for piece in held:
            self._hold(host, piece)
        if deadline_s is not None:
            heapq.heappush(self._timers, (deadline_s, 0, name, ""))
        self._touch(host)

    def leave(self, name: str) -> tuple[Order, ...]:
        """A host is gone; the orders that were under way with it are over."""
        host = self._hosts.get(name)
        if host is None:
            return ()
        ended = tuple(host.orders.values())
        for order in ended:
            self._end(order)
        for piece in pieces_of(host.have):
            self._rarity.remove(piece)
        del self._hosts[name]
        self.set_aside.pop(name, None)
        host.target, host.have = False, 0
        self._place(host)
        self._recount_rack(host.rack)
        return ended

    def give_up(self, name: str, why: str) -> tuple[Order, ...]:
        """Feed a host no more; what it has it may still serve."""
        host = self._hosts[name]
        host.target = False
        self.given_up[name] = why
        ended = tuple(order for order in host.orders.values() if order.target == name)
        for order in ended:
            self._end(order)
        self._touch(host)
        return ended

    def holds(self, name: str, piece: int) -> None:
        """A host turns out to have a piece."""
        host = self._hosts.get(name)
        if host is not None and not host.have >> piece & 1:
            for order in list(host.orders.values()):
                if order.target == name and order.piece == piece:
                    self._end(order)
            self._hold(host, piece)
            self._touch(host)

    def lacks(self, name: str, piece: int) -> None:
        """A host turns out not to have a piece."""
        host = self._hosts.get(name)
        if host is not None and host.have >> piece & 1:
            host.have ^= 1 << piece
            self._rarity.remove(piece)
            self._recount_rack(host.rack)
            self._touch(host)

    # -- transfers --------------------------------------------------------------------------------

    def next_orders(self, now_s: float) -> list[Order]:
        """All transfers that begin now. Follows every other call."""
        begun: list[Order] = []
        while self._touched:
            host = self._touched.popleft()
            while (found := self._target_for(host)) is not None:
                begun.append(self._begin(host, *found, now_s))
            while (found := self._source_for(host)) is not None:
                begun.append(self._begin(found[0], host, found[1], now_s))
        if not begun and not self._orders and len(self._hungry) and self.set_aside:
            # Better a bad source than none: what it sends is checked.
            for name in list(self.set_aside):
                self._bring_back(name)
            return self.next_orders(now_s)
        return begun

    def done(self, order: Order, now_s: float) -> bool:
        """The piece arrived and was verified; whether the order was still under way."""
        if order.number not in self._orders:
            self.holds(order.target, order.piece)
            return False
        took_s = now_s - order.began_s
        self._mean_s = 0.9 * self._mean_s + 0.1 * took_s if self._mean_s else took_s
        self._end(order)
        self._hold(self._hosts[order.target], order.piece)
        self._trouble.worked(order.source, order.target)
        return True

    def failed(self, order: Order, fault: Fault, now_s: float, why: str = "") -> None:
        """The piece did not arrive; it will be tried elsewhere."""
        if order.number not in self._orders:
            return
        self._end(order)
        source, target = self._hosts[order.source], self._hosts[order.target]
        apart_s = self._trouble.failed(source.name, target.name, fault)
        target.parted[source.name] = now_s + apart_s
        heapq.heappush(self._timers, (now_s + apart_s, 1, target.name, source.name))
        aside_s = 0.0 if source.origin else self._trouble.aside_s(source.name)
        if aside_s and not source.aside:
            source.aside = True
            sent = "sent wrong bytes" if fault is Fault.WRONG else "did not deliver"
            told = f"{sent}: piece {order.piece} at {target.name}" + (why and f": {why}")
            self.set_aside[source.name] = self.were_set_aside[source.name] = told
            heapq.heappush(self._timers, (now_s + aside_s, 2, source.name, ""))
        if self._trouble.is_hopeless(target.name, sources=len(self._hosts) - 1):
            self.give_up(target.name, why or f"{fault.value} time and again")

    def tick(self, now_s: float) -> list[Order]:
        """Time passes: the orders that took too long or whose target is given up are over."""
        ended: list[Order] = []
        while self._timers and self._timers[0][0] <= now_s:
            _, kind, name, other = heapq.heappop(self._timers)
            ended += self._on_timer(kind, name, other, now_s)
        return ended

    @property
    def wake_s(self) -> float | None:
        """When ``tick`` is due."""
        return self._timers[0][0] if self._timers else None

    # -- questions --------------------------------------------------------------------------------

    @property
    def is_over(self) -> bool:
        """Whether every target that was not given up has everything."""
        return all(self.is_complete(host.name) for host in self._hosts.values() if host.target)

    def is_complete(self, name: str) -> bool:
        host = self._hosts.get(name)
        return host is not None and host.have == self._all

    def missing(self, name: str) -> list[int]:
        """The pieces that a host has not got, ascending."""
        return list(pieces_of(self._all & ~self._hosts[name].have))

    @property
    def under_way(self) -> tuple[Order, ...]:
        return tuple(self._orders.values())

    # -- matching ---------------------------------------------------------------------------------

    def _target_for(self, source: Host) -> tuple[Host, int] | None:
        if not gives(source):
            return None
        source.near_turn = not source.near_turn
        near = self._near_hungry[source.rack]
        return self._best(
            ((host, self._fits(source, host)) for host in near.walk() if host is not source),
            (
                (host, self._fits(source, host))
                for host in self._hungry.walk()
                if host.rack != source.rack
            ),
            near_first=source.near_turn,
        )

    def _source_for(self, target: Host) -> tuple[Host, int] | None:
        if not self._is_hungry(target):
            return None
        target.near_turn = not target.near_turn
        near = self._near_givers[target.rack]
        return self._best(
            ((host, self._fits(host, target)) for host in near.walk() if host is not target),
            (
                (host, self._fits(host, target))
                for host in self._givers.walk()
                if host.rack != target.rack
            ),
            near_first=target.near_turn,
            rack=target.rack,
        )

    def _best(
        self,
        near: Iterator[tuple[Host, int]],
        far: Iterator[tuple[Host, int]],
        *,
        near_first: bool,
        rack: str | None = None,
    ) -> tuple[Host, int] | None:
        """Near, or far with a piece that the rack has not got; else whatever there is."""
        spare: list[tuple[Host, int]] = []

        def fresh() -> Iterator[tuple[Host, int]]:
            for host, fits in far:
                new = fits and fits & ~self._in_rack[host.rack if rack is None else rack]
                if not new and fits and len(spare) < CANDIDATES:
                    spare.append((host, fits))
                yield host, new

        for group in (near, fresh()) if near_first else (fresh(), near):
            found = self._rarest_of(group)
            if found is not None:
                return found
        return self._rarest_of(iter(spare))

    def _rarest_of(self, group: Iterator[tuple[Host, int]]) -> tuple[Host, int] | None:
        best: tuple[Host, int] | None = None
        fewest, seen = 0, 0
        for host, fits in group:
            if not fits:
                continue
            piece, copies = self._rarity.rarest(fits)
            if best is None or copies < fewest:
                best, fewest = (host, piece), copies
            seen += 1
            if seen == CANDIDATES:
                break
        return best

    @staticmethod
    def _fits(source: Host, target: Host) -> int:
        """What one could give the other now."""
        if target.parted and source.name in target.parted:
            return 0
        if not (target.fetches or source.origin):
            return 0
        return source.have & ~target.have & ~target.coming

    # -- keeping count ----------------------------------------------------------------------------

    def _pool(self) -> Pool[Host]:
        return Pool(self._random)

    def _begin(self, source: Host, target: Host, piece: int, now_s: float) -> Order:
        order = Order(next(self._numbers), piece, source.name, target.name, now_s)
        self._orders[order.number] = order
        source.orders[order.number] = target.orders[order.number] = order
        source.up_used += 1
        target.down_used += 1
        target.coming |= 1 << piece
        self._in_rack[target.rack] |= 1 << piece
        self._rarity.add(piece)
        patience_s = max(PATIENCE_MIN_S, PATIENCE * self._mean_s)
        heapq.heappush(self._timers, (now_s + patience_s, 3, str(order.number), ""))
        self._place(source)
        self._place(target)
        return order

    def _end(self, order: Order) -> None:
        del self._orders[order.number]
        source, target = self._hosts[order.source], self._hosts[order.target]
        del source.orders[order.number]
        del target.orders[order.number]
        source.up_used -= 1
        target.down_used -= 1
        target.coming ^= 1 << order.piece
        self._rarity.remove(order.piece)
        self._touch(source)
        self._touch(target)

    def _hold(self, host: Host, piece: int) -> None:
        if not host.have >> piece & 1:
            host.have |= 1 << piece
            self._in_rack[host.rack] |= 1 << piece
            self._rarity.add(piece)

    def _recount_rack(self, rack: str) -> None:
        held = 0
        for host in self._hosts.values():
            if host.rack == rack:
                held |= host.have | host.coming
        self._in_rack[rack] = held

    def _touch(self, host: Host) -> None:
        self._place(host)
        self._touched.append(host)

    def _place(self, host: Host) -> None:
        giving = host.name in self._hosts and gives(host)
        self._givers.put(host, inside=giving)
        self._near_givers[host.rack].put(host, inside=giving)
        hungry = host.name in self._hosts and self._is_hungry(host)
        self._hungry.put(host, inside=hungry)
        self._near_hungry[host.rack].put(host, inside=hungry)

    def _is_hungry(self, host: Host) -> bool:
        wants = host.target and (host.have | host.coming) != self._all
        return wants and host.down_used < host.down_slots

    def _on_timer(self, kind: int, name: str, other: str, now_s: float) -> Iterable[Order]:
        host = self._hosts.get(name)
        if kind == 3:
            late = self._orders.get(int(name))
            if late is None:
                return ()
            self.failed(late, Fault.LOST, now_s, "took too long")
            return (late,)
        if host is None:
            return ()
        if kind == 0 and host.target and host.have != self._all:
            return self.give_up(name, "its deadline has passed")
        if kind == 1 and host.parted.get(other, now_s + 1) <= now_s:
            del host.parted[other]
            self._touch(host)
        elif kind == 2 and host.aside:
            self._bring_back(name)
        return ()

    def _bring_back(self, name: str) -> None:
        host = self._hosts[name]
        host.aside = False
        del self.set_aside[name]
        self._trouble.forgive(name)
        self._touch(host)
