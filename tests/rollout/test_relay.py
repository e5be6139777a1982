"""The relay plan: everybody is reached, nobody waits in a ring, and little moves."""

from __future__ import annotations

from dataclasses import replace

from hypothesis import assume, given, settings
from hypothesis import strategies as st

from distrib.swarm.relay import MAX_NEIGHBOURS
from distrib.swarm.relay_cost import Shape, Terms
from distrib.swarm.relay_groups import chains_of, moved_behind
from distrib.swarm.relay_peers import Member
from distrib.swarm.relay_trees import MOVED_BY_ONE_CHANGE
from tests.relay.farms import (
    GIGABIT,
    SECOND,
    SEEDER,
    SHALLOW,
    Farm,
    all_terms,
    farm_of,
    farms,
    hops,
    moved,
    node,
    parents,
    planned,
    seeder_sets,
    uploads,
    without,
)


def test_a_flash_crowd_is_one_chain_through_the_racks() -> None:
    farm = farm_of(node(4, "R2"), node(1), node(3, "R2"), node(2))
    plan = planned(farm)[1]
    assert parents(plan) == {
        "wn0001": "seeder",
        "wn0002": "wn0001",
        "wn0003": "wn0002",
        "wn0004": "wn0003",
    }
    assert [peer.node for peer in plan.links["wn0004"].fallbacks] == ["wn0002", "seeder"]
    assert [peer.node for peer in plan.links["wn0001"].fallbacks] == []
    assert plan.links["wn0002"].parents[0].address == "10.0.0.1"


def test_a_node_that_has_the_image_feeds_its_rack() -> None:
    farm = farm_of(node(1), node(2), node(3, "R2"), node(4, "R2", has_all=True))
    told = parents(planned(farm)[1])
    assert (told["wn0001"], told["wn0002"], told["wn0003"]) == ("seeder", "wn0001", "wn0004")


def test_two_seeders_feed_two_chains() -> None:
    farm = farm_of(*(node(n, f"R{n % 4}") for n in range(1, 41)))
    plan = planned(farm, [SEEDER, SECOND])[1]
    assert sorted(p for p in parents(plan).values() if p.startswith("s")) == ["seeder", "seeder2"]
    assert max(hops(farm, plan).values()) == 20


def test_a_seeder_with_a_faster_link_feeds_as_many_chains_as_fit() -> None:
    farm = farm_of(*(node(n, f"R{n % 10}") for n in range(1, 41)))
    fast = replace(SEEDER, link_bps=10 * GIGABIT)
    plan = planned(farm, [fast])[1]
    assert list(parents(plan).values()).count("seeder") == 10
    assert max(hops(farm, plan).values()) == 4


def test_who_has_the_image_already_feeds_those_who_come_when_all_have_it() -> None:
    early = farm_of(*(node(n) for n in range(1, 9)))
    before = planned(early)
    done = {name: replace(member, has_all=True, progress=1.0) for name, member in early.items()}
    came = farm_of(*(node(n) for n in range(11, 19)))
    plan = planned(done | came, before=before)[1]
    assert max(hops(done | came, plan).values()) == 1
    assert moved(before[1], plan) == set()


def test_without_a_seeder_a_finished_node_feeds_the_others() -> None:
    farm = farm_of(node(1), node(2, has_all=True), node(3))
    told = parents(planned(farm, [])[1])
    assert (told["wn0001"], told["wn0003"]) == ("wn0002", "wn0001")


def test_who_comes_late_does_not_stall_those_who_are_ahead() -> None:
    farm = farm_of(*(node(n, r, progress=0.5) for n, r in ((1, "R1"), (3, "R1"), (5, "R2"))))
    before = planned(farm)
    late = farm_of(node(2))
    assert parents(planned(farm | late, before=before)[1])["wn0002"] == "wn0005"
    early = {name: replace(member, progress=0.01) for name, member in farm.items()}
    told = parents(planned(early | late, before=before)[1])
    assert (told["wn0002"], told["wn0005"]) == ("wn0003", "wn0002")


def test_a_slow_parent_goes_to_the_end_and_its_child_moves_up() -> None:
    farm = farm_of(node(1), node(2), node(3))
    layout, plan = planned(farm)
    behind = moved_behind(layout, "wn0002")
    told = parents(planned(farm, before=(behind, plan))[1])
    assert told == {"wn0001": "seeder", "wn0003": "wn0001", "wn0002": "wn0003"}
    assert moved_behind(behind, "stranger") == behind


def test_a_node_with_a_slow_link_stands_last_from_the_start() -> None:
    farm = farm_of(
        *(node(n, link_bps=GIGABIT) for n in range(2, 6)),
        node(1, link_bps=GIGABIT // 10),
        node(6, link_bps=GIGABIT // 4),
    )
    told = parents(planned(farm)[1])
    assert (told["wn0002"], told["wn0006"], told["wn0001"]) == ("seeder", "wn0005", "wn0006")


def test_a_node_that_does_not_listen_fetches_and_is_nobodys_peer() -> None:
    farm = farm_of(node(1), node(2, port=0), node(3))
    told = parents(planned(farm)[1])
    assert told == {"wn0001": "seeder", "wn0003": "wn0001", "wn0002": "wn0003"}


def test_after_a_restart_the_chains_come_back_from_what_nodes_were_told() -> None:
    farm = farm_of(*(node(n, f"R{n % 3}", progress=0.5) for n in range(1, 20)))
    layout, plan = planned(farm, [SEEDER, SECOND])
    for slow in ("wn0003", "wn0007"):
        layout = moved_behind(layout, slow)
    before = planned(farm, [SEEDER, SECOND], before=(layout, plan))
    told = {name: [peer.node for peer in own.parents] for name, own in before[1].links.items()}
    again = chains_of(told, {name: member.rack for name, member in farm.items()})
    after = planned(farm, [SEEDER, SECOND], before=(again, before[1]))
    assert moved(before[1], after[1]) == set()


def test_what_nodes_were_told_may_be_a_ring_and_two_below_one() -> None:
    told = {"wn0001": ["wn0002"], "wn0002": ["wn0001"], "wn0003": ["s"], "wn0004": ["wn0003"],
            "wn0005": ["wn0003"]}  # fmt: skip
    farm = farm_of(*(node(n) for n in range(1, 6)))
    plan = planned(farm, before=(chains_of(told, {}), planned({})[1]))[1]
    assert len(hops(farm, plan)) == 5


@given(farms(), seeder_sets, all_terms)
def test_everybody_is_reached_from_a_source_and_nobody_in_a_ring(
    farm: Farm, seeders: tuple[Member, ...], terms: Terms
) -> None:
    plan = planned(farm, seeders, terms)[1]
    assert plan.links.keys() == farm.keys()
    for stripe in (0, 1):
        hops(farm, plan, stripe)


@given(farms(), all_terms)
def test_without_seeders_finished_nodes_reach_everybody(farm: Farm, terms: Terms) -> None:
    assume(any(member.has_all and member.serves for member in farm.values()))
    plan = planned(farm, [], terms)[1]
    for stripe in (0, 1):
        hops(farm, plan, stripe)


@given(farms(), seeder_sets, all_terms)
def test_links_are_bounded_and_name_nobody_twice(
    farm: Farm, seeders: tuple[Member, ...], terms: Terms
) -> None:
    serving = {member.node for member in farm.values() if member.serves}
    serving |= {seeder.node for seeder in seeders}
    for name, links in planned(farm, seeders, terms)[1].links.items():
        assert len(links.parents) <= links.stripes <= 2
        assert len(links.neighbours) <= MAX_NEIGHBOURS
        assert len(set(links.parents)) == len(links.parents)
        named = [p.node for p in (*links.fallbacks, *links.neighbours)]
        above = {p.node for p in links.parents}
        assert len(set(named)) == len(named)
        assert name not in above | set(named)
        assert not above & set(named)
        assert above | set(named) <= serving


@given(farms(waiting=True), all_terms)
def test_nobody_sends_more_than_the_image_once(farm: Farm, terms: Terms) -> None:
    assume(not any(member.link_bps == GIGABIT // 10 for member in farm.values()))
    plan = planned({n: m for n, m in farm.items() if m.serves}, terms=terms)[1]
    assert all(sent <= 2 for sent in uploads(plan).values())


@given(farms(), seeder_sets, all_terms, st.data())
def test_a_node_that_leaves_gives_few_others_a_new_parent(
    farm: Farm, seeders: tuple[Member, ...], terms: Terms, data: st.DataObject
) -> None:
    chain = {name: member for name, member in farm.items() if member.serves}
    assume(chain)
    gone = data.draw(st.sampled_from(sorted(chain)))
    before = planned(chain, seeders, terms)
    # Whom a holder fed is fed by another.
    own = sum(1 for above in parents(before[1]).values() if above == gone)
    after = planned(without(chain, [gone]), seeders, terms, before)[1]
    trees = any(group.shape is Shape.TREES for group in before[0])
    # Who hangs behind the end of its group is behind another one then.
    few = MOVED_BY_ONE_CHANGE + len(before[0]) if trees else own + len(before[0])
    assert len(moved(before[1], after)) <= few
    assert {n for n in after.links if after.links[n] != before[1].links[n]} <= after.changed


@given(farms(), seeder_sets, st.integers(201, 220))
def test_a_node_that_joins_a_chain_gives_at_most_one_other_a_new_parent(
    farm: Farm, seeders: tuple[Member, ...], number: int
) -> None:
    chain = {name: member for name, member in farm.items() if member.serves}
    before = planned(chain, seeders)
    after = planned(chain | farm_of(node(number, "R2")), seeders, before=before)[1]
    slow = {name for group in before[0] if group.slow for name in group.names[:1]}
    assert len(moved(before[1], after) - slow) <= 1


@given(farms(), seeder_sets, all_terms)
def test_who_finishes_moves_nobody(farm: Farm, seeders: tuple[Member, ...], terms: Terms) -> None:
    pulling = {name: member for name, member in farm.items() if not member.has_all}
    before = planned(pulling, seeders, terms)
    done = {n: replace(member, has_all=True, progress=1.0) for n, member in pulling.items()}
    after = planned(done, seeders, terms, before)
    assert after[0] == before[0]
    assert moved(before[1], after[1]) <= {n for n, m in pulling.items() if not m.serves}


@given(farms(), seeder_sets, all_terms, st.randoms())
def test_the_order_of_the_input_does_not_matter(
    farm: Farm, seeders: tuple[Member, ...], terms: Terms, random: object
) -> None:
    names = list(farm)
    random.shuffle(names)  # type: ignore[attr-defined]
    mixed = {name: farm[name] for name in names}
    assert planned(mixed, seeders, terms) == planned(farm, seeders, terms)


@settings(max_examples=40)
@given(farms(), seeder_sets, all_terms, st.data())
def test_whatever_happens_everybody_is_reached(
    farm: Farm, seeders: tuple[Member, ...], terms: Terms, data: st.DataObject
) -> None:
    """Nodes come, go, finish, are found slow; seeders come and go."""
    here: Farm = {}
    before = planned(here, seeders, terms)
    for _ in range(data.draw(st.integers(1, 8))):
        for name in data.draw(st.lists(st.sampled_from(sorted(farm) or ["-"]), max_size=10)):
            if name in here and data.draw(st.booleans()):
                del here[name]
            elif name in here:
                done = data.draw(st.booleans())
                here[name] = replace(here[name], has_all=done, progress=1.0 if done else 0.5)
            elif name in farm:
                here[name] = farm[name]
        layout = before[0]
        for name in data.draw(st.lists(st.sampled_from(sorted(here) or ["-"]), max_size=2)):
            layout = moved_behind(layout, name)
        some = data.draw(st.sampled_from([seeders, (SEEDER,), (SECOND,)]))
        before = planned(here, some, terms, (layout, before[1]))
        assert before[1].links.keys() == here.keys()
        for stripe in (0, 1):
            hops(here, before[1], stripe)
        standing = [name for group in before[0] for name in group.names]
        assert len(standing) == len(set(standing))


def test_trees_of_few_nodes_are_told_in_stripes() -> None:
    farm = farm_of(*(node(n, stripe_ports=(7001, 7002)) for n in range(1, 17)))
    layout, plan = planned(farm, terms=SHALLOW)
    assert [group.shape for group in layout] == [Shape.TREES]
    assert all(links.stripes == 2 for links in plan.links.values())
    for links in plan.links.values():
        wanted = [6881 if peer.node == "seeder" else 7001 + i for i, peer in
                  enumerate(links.parents)]  # fmt: skip
        assert [peer.port for peer in links.parents] == wanted
