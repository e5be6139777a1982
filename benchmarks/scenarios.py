"""What befalls a rollout: nodes and seeders that die, links that go dark or slow, starts that are
spread, nodes that come and go, two racks, two images at once.

Each function runs once over a track whose agents are online and returns its figures; ratios are to
the bound, what one link needs to carry the image once. All copies are compared, also those of the
nodes that something befell, once they are well again.
"""

from __future__ import annotations

import os
import random
import signal
import statistics
import subprocess
import time
from collections.abc import Callable, Collection, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from benchmarks.track import Started, Track
from tests.farm.farm import Image, Node

Figures = dict[str, float]

HALF_WAY = (0.4, 0.6)
"""Between these: at the half itself, with the usual sizes, a child is just asking for the next 512
hashes, and libtorrent asks again only after 3 s (docs/decisions/0045-crossing.md)."""

SPREAD_S = 5.0
CHURN = 0.1


def death(track: Track) -> Figures:
    """kill -9 of the node in the middle of the chain, when it has about half of the image."""

    def befall(node: Node) -> None:
        node.kill()

    return _one_fails(track, befall, Node.start)


def dark(track: Track) -> Figures:
    """The link of the node in the middle loses everything, with no FIN and its carrier kept."""

    def befall(node: Node) -> None:
        track.network.cut(node.host)

    def heal(node: Node) -> None:
        track.network.mend(node.host)

    return _one_fails(track, befall, heal)


def slow(track: Track) -> Figures:
    """From about half-way on, the link of the node in the middle carries a quarter."""

    def befall(node: Node) -> None:
        track.network.shape(node.host, track.rate_mbit / 4)

    def heal(node: Node) -> None:
        track.network.shape(node.host, track.rate_mbit)

    return _one_fails(track, befall, heal)


def spread(track: Track) -> Figures:
    """The nodes are targeted one after another, within five seconds."""
    image = track.publish()
    gap_s = SPREAD_S / max(len(track.nodes) - 1, 1)

    def later(place: int) -> Started:
        time.sleep(place * gap_s)
        return track.start(image, track.nodes[place].name)

    with ThreadPoolExecutor(len(track.nodes)) as pool:
        started = list(pool.map(later, range(len(track.nodes))))
    own: dict[str, float] = {}
    for one in started:
        own |= track.seconds(one)
    track.compare(image)
    return {
        "each_over_own_start": _over(track, max(own.values())),
        "median_over_own_start": _over(track, statistics.median(own.values())),
    }


def churn(track: Track) -> Figures:
    """A tenth of the nodes leave with a third of the image, and come back a third of F/R later."""
    image = track.publish()
    started = track.start(image)
    leaving = _inner(track, image, max(1, round(CHURN * len(track.nodes))), share=1 / 3)
    for node in leaving:
        node.stop()
    time.sleep(track.bound_s / 3)
    for node in leaving:
        node.start()
    came = track.seconds(started)
    track.compare(image)
    gone = {node.name for node in leaving}
    return _summary(track, _without(came, gone)) | {
        "complete": len(came),
        "who_left_over_bound": _over(track, max(came[name] for name in gone)),
    }


def seeder_death(track: Track) -> Figures:
    """The seeder is killed, and kept from coming back, as soon as it has sent one copy."""
    image = track.publish()
    started = track.start(image)
    time.sleep(track.bound_s / 2)
    # The first in the line has all pieces when the seeder has sent one copy, and hardly sooner.
    track.half_way(track.in_order(image)[0], image, share=1.0)
    with _no_seeder(track):
        came = track.seconds(started)
    track.compare(image)
    return _summary(track, came) | {"complete": len(came)}


def racks(track: Track) -> Figures:
    """Two racks with one link between them; the head is in the first."""
    image = track.publish()
    before = track.network.between_racks_bytes()
    started = track.start(image)
    came = track.seconds(started, asked_from=0.9)
    into, back = (
        now - then for now, then in zip(track.network.between_racks_bytes(), before, strict=True)
    )
    track.compare(image)
    return _summary(track, came) | {
        "bytes_between_racks_over_f": round(into / track.size_bytes, 3),
        "bytes_back_over_f": round(back / track.size_bytes, 3),
    }


def two_images(track: Track) -> Figures:
    """Two images one after the other, then two at once."""
    alone_s = 0.0
    for _ in range(2):
        image = track.publish()
        alone_s += max(track.seconds(track.start(image)).values())
        track.compare(image)
    both = [track.publish(), track.publish()]
    with ThreadPoolExecutor(len(both)) as pool:
        began_s = time.monotonic()
        started = list(pool.map(track.start, both))
        gap_s = time.monotonic() - began_s
    lasts = [max(track.seconds(one).values()) for one in started]
    for image in both:
        track.compare(image)
    return {
        "sum_over_serial": round(max(lasts) / alone_s, 3),
        "serial_over_bound": _over(track, alone_s / 2),
        "starts_apart_s": round(gap_s, 3),
    }


SCENARIOS: Mapping[str, Callable[[Track], Figures]] = {
    "death": death,
    "dark": dark,
    "slow": slow,
    "spread": spread,
    "churn": churn,
    "seeder-death": seeder_death,
    "racks": racks,
    "two-images": two_images,
}


def _one_fails(
    track: Track, befall: Callable[[Node], None], heal: Callable[[Node], None]
) -> Figures:
    """Something befalls the node in the middle, half-way; the others' last, then its own end."""
    image = track.publish()
    started = track.start(image)
    share = random.uniform(*HALF_WAY)
    (victim,) = _inner(track, image, 1, share=share)
    befall(victim)
    came = _without(track.seconds(started, but={victim.name}), {victim.name})
    heal(victim)
    own = track.seconds(started)[victim.name]
    track.compare(image)
    return _summary(track, came) | {
        "its_own_over_bound": _over(track, own),
        "befell_at": round(share, 3),
    }


def _inner(track: Track, image: Image, count: int, *, share: float) -> list[Node]:
    """Nodes with others before and after them, once the first of them has ``share`` of it."""
    time.sleep(track.bound_s * share * 0.7)
    # Pieces come in order down a chain: who has most stands first.
    order = track.in_order(image)
    step = len(order) // (count + 1)
    chosen = [order[step * (place + 1)] for place in range(count)]
    track.half_way(chosen[0], image, share)
    return chosen


def _summary(track: Track, came: Mapping[str, float]) -> Figures:
    return {
        "last_over_bound": _over(track, max(came.values())),
        "median_over_bound": _over(track, statistics.median(came.values())),
    }


def _without(came: Mapping[str, float], names: Collection[str]) -> dict[str, float]:
    return {name: seconds for name, seconds in came.items() if name not in names}


def _over(track: Track, seconds: float) -> float:
    return round(seconds / track.bound_s, 3)


class _no_seeder:  # noqa: N801 - a context manager, used as a verb
    """The seeder is dead while this lasts: who supervises it is stopped, and then goes on."""

    def __init__(self, track: Track) -> None:
        assert track.farm.head is not None
        self._supervisor = next(_processes(track.farm.head.pid, "up"))

    def __enter__(self) -> None:
        seeder = next(_processes(self._supervisor, "seeder"))
        os.kill(self._supervisor, signal.SIGSTOP)
        os.kill(seeder, signal.SIGKILL)

    def __exit__(self, *_: object) -> None:
        os.kill(self._supervisor, signal.SIGCONT)


def _processes(root: int, word: str) -> Iterator[int]:
    """Process ``root`` and those below it that have ``word`` on their command line."""
    found = [root]
    for pid in found:
        children = subprocess.run(
            ["pgrep", "-P", str(pid)], capture_output=True, text=True, check=False
        )
        found += map(int, children.stdout.split())
    for pid in found:
        if word.encode() in Path(f"/proc/{pid}/cmdline").read_bytes().split(b"\0"):
            yield pid
