"""From a denial to the last node that refuses: who is watched, and how.

Real agents are asked for leases without pause, over their sockets. ``SimulatedNodes`` are a fake
for the sake of their number: real MQTT clients over TLS, each with a certificate of its own, that
hold every site list against the real rules (``distrib.trust``) and give "leases" by the newest that
they accepted; they hold no image, and say nothing of themselves.
"""

from __future__ import annotations

import asyncio
import threading
import time
from collections.abc import Iterator
from contextlib import AsyncExitStack, contextmanager
from dataclasses import dataclass, field
from datetime import UTC, datetime

from agent.socket.client import AgentError, ask
from distrib.bus.mqtt import Bus
from distrib.errors import ExitStatus
from distrib.trust.chain import TrustMaterial
from distrib.trust.directory import load_trust_directory
from distrib.trust.sitelist import SiteList, verify_site_list
from distrib.trust.testpki import Authority, Role
from tests.farm.bystander import settings_of
from tests.farm.farm import Farm, Image, Node

LIMIT_S = 60.0
_PAUSE_S = 0.005


@dataclass
class Watched:
    """What one node answered: when it last gave a lease, and when it first refused one."""

    name: str
    given: int = 0
    last_given: datetime | None = None
    first_refused: datetime | None = None
    code: str = ""
    given_after_refusal: int = 0
    refused: threading.Event = field(default_factory=threading.Event)

    def gave(self) -> None:
        self.given += 1
        self.last_given = datetime.now(UTC)
        if self.first_refused is not None:
            self.given_after_refusal += 1

    def refuses(self, code: str) -> None:
        if self.first_refused is None:
            self.first_refused = datetime.now(UTC)
            self.code = code
        self.refused.set()


@contextmanager
def asked_for_leases(nodes: list[Node], image: Image) -> Iterator[list[Watched]]:
    """Ask each agent for leases, one after the other, while the block runs; each is given back."""
    watched = [Watched(node.name) for node in nodes]
    stop = threading.Event()

    def ask_on(node: Node, seen: Watched) -> None:
        while not stop.is_set():
            try:
                lease = ask(node.socket, "lease", image=image.alias)["lease"]
            except AgentError as error:
                assert error.exit_status == ExitStatus.TRUST_REFUSED, error.message
                seen.refuses(error.code)
            else:
                seen.gave()
                ask(node.socket, "release", lease=lease)
            stop.wait(_PAUSE_S)

    threads = [
        threading.Thread(target=ask_on, args=pair, name=pair[0].name)
        for pair in zip(nodes, watched, strict=True)
    ]
    for thread in threads:
        thread.start()
    try:
        yield watched
    finally:
        stop.set()
        for thread in threads:
            thread.join(LIMIT_S)


class SimulatedNode:
    """One node of the fake: believes what ``verify_site_list`` accepts."""

    def __init__(self, name: str, image: Image, trust: TrustMaterial) -> None:
        self.seen = Watched(name)
        self._image = image
        self._trust = trust
        self._list: SiteList | None = None
        self._sha512: str | None = None

    def hear(self, _topic: str, message: bytes) -> None:
        """A site list has come; ask for a lease by what is in force after it."""
        verdict = verify_site_list(
            message,
            trust=self._trust,
            now=datetime.now(UTC),
            last_version=self._list.version if self._list else None,
            last_sha512=self._sha512,
        )
        if verdict.accepted:
            self._list, self._sha512 = verdict.site_list, verdict.message_sha512
        if self._list is not None and self._list.find(self._image.alias):
            self.seen.gave()
        else:
            self.seen.refuses("revoked")


@contextmanager
def simulated_nodes(farm: Farm, image: Image, count: int) -> Iterator[list[Watched]]:
    """``count`` simulated nodes, each of which has given its first lease when the block begins."""
    authority = Authority.load(farm.pki / "site")
    trust = load_trust_directory(authority.trust_directory)
    nodes, buses = [], []
    for number in range(count):
        name = f"sim{number:04}"
        issued = authority.issue(Role.NODE, name, now=datetime.now(UTC))
        node = SimulatedNode(name, image, trust)
        bus = Bus(settings_of(farm, issued.certificate_path.with_suffix("")), client_id=name)
        bus.subscribe(f"{bus.topics.prefix}/site-list", node.hear)
        nodes.append(node)
        buses.append(bus)
    up, loops, done = threading.Event(), [], asyncio.Event()

    async def run() -> None:
        async with AsyncExitStack() as stack:
            for bus in buses:
                await stack.enter_async_context(bus.running())
            loops.append(asyncio.get_running_loop())
            up.set()
            await done.wait()

    thread = threading.Thread(target=lambda: asyncio.run(run()), name="simulated nodes")
    thread.start()
    try:
        assert up.wait(LIMIT_S)
        until(LIMIT_S, lambda: all(node.seen.given for node in nodes))
        yield [node.seen for node in nodes]
    finally:
        loops[0].call_soon_threadsafe(done.set)
        thread.join(LIMIT_S)


def until(limit_s: float, holds: object) -> None:
    """Wait until ``holds()``; seldom enough not to be what is measured."""
    deadline_s = time.monotonic() + limit_s
    while not holds():  # type: ignore[operator]
        assert time.monotonic() < deadline_s, f"not in {limit_s} s"
        time.sleep(0.05)


@dataclass(frozen=True)
class Denial:
    """A denial as it was seen: when the command began, what each node did."""

    began: datetime
    agents: list[Watched]
    simulated: list[Watched]

    @property
    def watched(self) -> list[Watched]:
        return [*self.agents, *self.simulated]

    @property
    def last_refusal_s(self) -> float:
        """From the start of ``distrib image deny`` to the last first refusal."""
        times = [one.first_refused for one in self.watched]
        assert all(times), "not everybody has refused"
        return max((one - self.began).total_seconds() for one in times if one)


def deny_and_watch(farm: Farm, nodes: list[Node], image: Image, *, simulated: int) -> Denial:
    """``distrib image deny`` while everybody is asked for leases, until everybody refuses."""
    with (
        simulated_nodes(farm, image, simulated) as fakes,
        asked_for_leases(nodes, image) as agents,
    ):
        until(LIMIT_S, lambda: all(one.given > 2 for one in agents))
        began = datetime.now(UTC)
        farm.distrib("image", "deny", image.alias, "--reason=CVE-2026-1")
        for one in (*agents, *fakes):
            assert one.refused.wait(LIMIT_S), f"{one.name} still gives leases"
        # And does it go on refusing? A few more tries of each agent say so.
        time.sleep(20 * _PAUSE_S)
    return Denial(began, agents, fakes)


def bring(farm: Farm, image: Image) -> None:
    """The image onto every node that is online."""
    farm.distrib("rollout", "start", image.alias, "--nodes=all", "--wait")
