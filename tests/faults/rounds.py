"""Rounds of kill -9: one thing is begun, the agent is killed in it, started again, looked at.

What is begun is chosen among what the disk has just now, so that the rounds make one long life:
images come (also as copies of an older version), are leased, given back, evicted, come again. The
moment is random, or aimed: when something on the disk says that a step has just begun.
"""

from __future__ import annotations

import os
import random
import statistics
import subprocess
import time
from collections import Counter
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass, field

from distrib.errors import DistribError
from tests.farm.process import eventually
from tests.faults.victim import Victim

RATE_BPS = 3 << 20
COW, SCRATCH = 1 << 20, 64 << 10

TAIL_MAX_BYTES = RATE_BPS + (2 << 20)
TAIL_MEDIAN_BYTES = RATE_BPS // 5 + (1 << 20)
"""What a kill may cost in fetching again: what came since the last note for this boot (every 0.1 s
and 1 % of the image, agent/pull/pull.py), at the seeder's rate, and the requests in flight, which
the seeder has counted as sent (1 MiB). Twice 0.1 s for the median of all kills; a second and
2 MiB for each, since the machine may have other things to do."""

AIM_LIMIT_S = 4.0


@dataclass
class Rounds:
    """A node, what it should hold, and what has been seen of it."""

    victim: Victim
    sent: Callable[[], dict[str, int]]
    chance: random.Random
    jobs: dict[str, subprocess.Popen[bytes]] = field(default_factory=dict)
    perhaps: set[str] = field(default_factory=set)
    done: Counter[str] = field(default_factory=Counter)
    tails: list[int] = field(default_factory=list)
    resumed: int = 0

    def run(self, count: int) -> None:
        self.victim.start([])
        self.victim.kill()
        for _ in range(count):
            self.one()
        self.finish()

    def one(self) -> None:
        """Begin something, kill, start, look, kill again."""
        name, begin, aims, desired = self._choose()
        victim = self.victim
        noted = {infohash: victim.noted_bytes(infohash) for infohash in desired}
        before, states = self.sent(), victim.records()
        victim.start(desired)
        self.look()
        begin()
        aimed = self.chance.random() < 0.6
        if aimed:
            _until(self.chance.choice(aims))
            time.sleep(self.chance.choice((0, 0, 0.003, 0.02)))
        else:
            time.sleep(self.chance.random())
        victim.kill()
        self.done[name] += 1
        self._count_tails(desired, noted, before, states)
        for job in list(self.jobs):
            if self.chance.random() < 0.15:
                self._end(job)
        print(f"{name} {'aimed' if aimed else 'random'}: {victim.records().values()}", flush=True)

    def finish(self) -> None:
        """All images come, all jobs end; then nothing is left."""
        victim = self.victim
        for job in list(self.jobs):
            self._end(job)
        victim.start([])
        self.look()
        for lease in victim.ask("leases")["leases"]:
            victim.ask("release", lease=lease["lease"])
        eventually("all is removed", lambda: self._collected() and not victim.records())
        assert victim.instances() == set()
        assert victim.loops() == set()
        assert victim.strays() == set()
        assert victim.ask("status")["report"]["used_bytes"] == 0
        if self.tails:
            assert statistics.median(self.tails) <= TAIL_MEDIAN_BYTES, self.tails
        print(f"{dict(self.done)}, {len(self.tails)} pulls cut, {self.resumed} of them resumed;"
              f" fetched again: {sorted(self.tails)}")  # fmt: skip

    # What is looked at after each start -------------------------------------------------------

    def look(self) -> None:
        """The invariants, on an agent that has just started (and may be pulling already)."""
        victim = self.victim
        report = victim.ask("status")["report"]
        leases = {one["lease"]: one for one in victim.ask("leases")["leases"]}
        for image in report["images"]:
            if image["state"] in ("ready", "leased"):
                infohash = image["infohash"]
                assert victim.sha512(infohash) == victim.site.sha512[infohash], "ready means right"
            # What is not desired any more is given up; beside leases there may be no room.
            failed = image["state"] == "failed"
            assert not failed or image["reason"] in ("cancelled", "no-space"), image
        alive = {lease for lease, job in self.jobs.items() if job.poll() is None}
        assert alive <= leases.keys(), "a lease lives as long as its holder"
        unknown = leases.keys() - alive
        # Given, and the answer was never heard: its holder is this process.
        assert all(leases[one]["holder"].get("pid") == os.getpid() for one in unknown)
        eventually("instances are those of leases", lambda: victim.instances() == leases.keys())
        loops = victim.loops_of(leases.values())
        eventually("loops are those of leases", lambda: len(victim.loops()) == loops)
        assert all(os.path.exists(one["device"]) for one in leases.values())  # noqa: PTH110
        assert victim.mounts() == []
        seen = victim.strays()
        if seen:
            eventually("nothing half made stays", lambda: not (seen & victim.strays()))
        eventually("own bytes are what is accounted", self._agrees, limit_s=20)
        for one in unknown:
            victim.ask("release", lease=one)

    def _agrees(self) -> bool:
        on_disk = self.victim.accounted_bytes()
        return bool(self.victim.ask("status")["report"]["used_bytes"] == on_disk)

    # What is begun ----------------------------------------------------------------------------

    def _choose(
        self,
    ) -> tuple[str, Callable[[], None], list[Callable[[], bool]], list[str]]:
        """Name, what to do, what to aim at, and what the site desires meanwhile."""
        victim, chance = self.victim, self.chance
        records = victim.records()
        ready = [one for one, state in records.items() if state == "ready"]
        missing = [one for one in victim.site.names if one not in ready]
        under_way = [one for one in missing if one in records]
        kinds = ["pull"] * (3 if missing else 0)
        kinds += ["lease"] * (2 if ready else 0)
        kinds += ["release"] * (2 if self.jobs else 0)
        kinds += ["evict"] * len(ready)
        kind = chance.choice(kinds)
        if chance.random() < 0.8:
            kind = min(kinds, key=lambda one: self.done[one])  # each has its turn
        if kind == "pull":
            wanted = chance.choice(under_way or missing)
            return kind, lambda: None, self._aims_of_pull(wanted), self._kept(ready, wanted)
        if kind == "lease":
            image = chance.choice(ready)
            aims = [
                lambda: len(list((victim.state / "leases").iterdir())) > len(self.jobs),
                lambda: len(victim.instances()) > len(self.jobs),
            ]
            return kind, lambda: self._lease(image), aims, ready
        if kind == "release":
            lease = chance.choice(list(self.jobs))
            aims = [
                lambda: not (victim.state / "leases" / f"{lease}.json").exists(),
                lambda: lease not in victim.instances(),
            ]
            return kind, lambda: self._release(lease), aims, ready
        gone = chance.choice(ready)
        aims = [
            lambda: victim.records().get(gone) != "ready",
            lambda: gone not in victim.records(),
        ]
        kept = [one for one in ready if one != gone]
        return kind, lambda: self._ask_later("gc"), aims, kept

    def _kept(self, ready: list[str], wanted: str) -> list[str]:
        """Some of what is there stays desired; the rest may have to make room."""
        return [*(one for one in ready[:1] if self.chance.random() < 0.7), wanted]

    def _aims_of_pull(self, infohash: str) -> list[Callable[[], bool]]:
        victim = self.victim
        half = victim.site.size_bytes[infohash] // 2
        home = victim.cache / "volumes" / infohash
        return [
            lambda: victim.records().get(infohash) == "verifying",
            lambda: victim.records().get(infohash) == "verifying",
            lambda: victim.records().get(infohash) == "ready",
            lambda: (home / "sealed").exists() or victim.records().get(infohash) == "ready",
            lambda: victim.noted_bytes(infohash) > half,
            (victim.state / "resume" / f"{infohash}.json").exists,
        ]

    def _lease(self, infohash: str) -> None:
        """Half of the leases are heard of; of the others the answer may be lost."""
        image = self.victim.site.names[infohash]
        block = self.chance.random() < 0.3
        room = {"cow_bytes": COW, "scratch_bytes": SCRATCH}
        if self.chance.random() < 0.5:
            holder = {"kind": "process", "pid": os.getpid()}
            self._ask_later("lease", image=image, holder=holder, block=block, **room)
            return
        job = subprocess.Popen(["sleep", "3600"])
        try:
            given = self.victim.ask(
                "lease", image=image, holder={"kind": "process", "pid": job.pid}, block=block,
                **room,
            )  # fmt: skip
        except DistribError:
            job.kill()
            job.wait()
            raise
        self.jobs[given["lease"]] = job

    def _release(self, lease: str) -> None:
        job = self.jobs.pop(lease)
        job.kill()
        job.wait()
        self._ask_later("release", lease=lease)

    def _ask_later(self, op: str, **args: object) -> None:
        self.victim.meanwhile(op, **args)

    def _end(self, lease: str) -> None:
        job = self.jobs.pop(lease)
        job.kill()
        job.wait()

    def _collected(self) -> bool:
        with suppress(DistribError):
            self.victim.ask("gc")
        return True

    def _count_tails(
        self,
        desired: list[str],
        noted: dict[str, int],
        before: dict[str, int],
        states: dict[str, str],
    ) -> None:
        """How much of what a killed pull had fetched will be fetched again."""
        after, victim = self.sent(), self.victim
        for infohash in desired:
            fetched = after[infohash] - before[infohash]
            if not fetched or states.get(infohash) == "ready":
                continue
            now = victim.records().get(infohash)
            size = victim.site.size_bytes[infohash]
            kept = victim.noted_bytes(infohash) if now == "pulling" else size
            tail = noted[infohash] + fetched - kept
            assert tail <= TAIL_MAX_BYTES, (infohash, noted[infohash], fetched, kept)
            if now == "pulling":
                self.tails.append(max(0, tail))
                self.resumed += kept > 0


def _until(holds: Callable[[], bool]) -> None:
    """Wait until it holds, looking all the time; it may never."""
    deadline_s = time.monotonic() + AIM_LIMIT_S
    while time.monotonic() < deadline_s:
        with suppress(OSError):
            if holds():
                return
