"""Farms for the stories of the relay plan: members by name, and what a plan makes of them."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import replace

from hypothesis import strategies as st

from distrib.swarm.relay import RelayPlan, plan_relay
from distrib.swarm.relay_cost import Terms
from distrib.swarm.relay_groups import Layout
from distrib.swarm.relay_layout import lay_out
from distrib.swarm.relay_peers import Member

SEEDER = Member("seeder", "192.0.2.250", 6881, has_all=True, progress=1.0)
SECOND = Member("seeder2", "192.0.2.251", 6881, has_all=True, progress=1.0)

GIGABIT = 125_000_000
#: Pieces so large that a chain may have two hops; more become trees.
SHALLOW = Terms(200_000_000, 64 << 20, GIGABIT // 10, trees=True)
#: 10 GB: chains of up to a hundred.
TEN_GB = Terms(10_000_000_000, 256 * 1024, GIGABIT, trees=True)

Farm = dict[str, Member]


def node(number: int, rack: str = "R1", **changes: object) -> Member:
    return replace(
        Member(f"wn{number:04}", f"10.0.{number // 250}.{number % 250}", 6881, rack),
        **changes,  # type: ignore[arg-type]
    )


def farm_of(*nodes: Member) -> Farm:
    return {member.node: member for member in nodes}


def rack_farm(count: int, per_rack: int = 40) -> Farm:
    """A farm of racks, all of whose nodes can fetch stripes."""
    return farm_of(
        *(node(n, f"R{n // per_rack:03}", stripe_ports=(6881, 6882)) for n in range(count))
    )


def planned(
    farm: Farm,
    seeders: Sequence[Member] = (SEEDER,),
    terms: Terms = TEN_GB,
    before: tuple[Layout, RelayPlan] | None = None,
) -> tuple[Layout, RelayPlan]:
    """Layout and plan, as the planner makes them."""
    serving = {name: member for name, member in farm.items() if member.serves}
    layout = lay_out(before[0] if before else (), serving, seeders, terms)
    return layout, plan_relay(layout, farm, seeders, before[1] if before else None)


def parents(plan: RelayPlan) -> dict[str, str]:
    """First parents, by node."""
    return {n: links.parents[0].node if links.parents else "" for n, links in plan.links.items()}


def moved(before: RelayPlan, after: RelayPlan) -> set[str]:
    """Nodes of both plans that have another parent."""
    both = before.links.keys() & after.links.keys()
    return {n for n in both if before.links[n].parents != after.links[n].parents}


def hops(farm: Mapping[str, Member], plan: RelayPlan, stripe: int = 0) -> dict[str, int]:
    """How many hops from a source each node is; a ring or a node below nobody is an error."""
    found: dict[str, int] = {}
    for name in farm:
        passed: list[str] = []
        at = name
        while at in farm and not farm[at].has_all and at not in found:
            assert at not in passed, f"a ring: {passed}"
            passed.append(at)
            above = plan.links[at].parents
            assert above, f"nobody feeds {at}"
            at = above[stripe % len(above)].node
        depth = found.get(at, 0)
        for one in reversed(passed):
            depth += 1
            found[one] = depth
        found.setdefault(name, 0)
    return found


def uploads(plan: RelayPlan) -> Counter[str]:
    """Halves of the image that each sends, by the plan."""
    sent: Counter[str] = Counter()
    for links in plan.links.values():
        for parent in links.parents:
            sent[parent.node] += 2 // len(links.parents)
    return sent


def crossings(farm: Mapping[str, Member], plan: RelayPlan) -> Counter[str]:
    """Halves of the image that enter each rack."""
    entered: Counter[str] = Counter()
    for name, links in plan.links.items():
        for parent in links.parents:
            above = farm.get(parent.node)
            if above is None or above.rack != farm[name].rack:
                entered[farm[name].rack] += 2 // len(links.parents)
    return entered


@st.composite
def farms(draw: st.DrawFn, *, most: int = 40, waiting: bool = False) -> Farm:
    """Any farm; with ``waiting`` nobody has any of the image yet."""
    numbers = draw(st.lists(st.integers(1, 200), unique=True, max_size=most))
    rates = st.sampled_from([0, 0, GIGABIT, GIGABIT, GIGABIT // 10])
    some = st.sampled_from([0.0] if waiting else [0.0, 0.0, 0.3, 0.9])
    made = []
    for number in numbers:
        has_all = not waiting and draw(st.integers(0, 5)) == 5
        made.append(
            node(
                number,
                rack=draw(st.sampled_from(["", "R1", "R2", "R3"])),
                has_all=has_all,
                progress=1.0 if has_all else draw(some),
                port=draw(st.sampled_from([6881, 6881, 6881, 0])),
                stripe_ports=(6881, 6882),
                link_bps=draw(rates),
            )
        )
    return farm_of(*made)


seeder_sets = st.sampled_from(
    [(SEEDER,), (SEEDER, SECOND), (replace(SEEDER, link_bps=10 * GIGABIT),)]
)
all_terms = st.sampled_from([SHALLOW, TEN_GB, Terms(), replace(SHALLOW, trees=False)])


def without(farm: Farm, gone: Iterable[str]) -> Farm:
    return {name: member for name, member in farm.items() if name not in set(gone)}
