"""The relay plan: everybody is reached, nobody waits in a ring, and little moves."""

from __future__ import annotations

from dataclasses import replace

from hypothesis import given
from hypothesis import strategies as st

from distrib.swarm.relay import (
    MAX_NEIGHBOURS,
    Links,
    Member,
    demoted,
    line_of,
    line_up,
    plan_relay,
)

SEEDER = Member("seeder", "192.0.2.250", 6881, has_all=True)
SECOND = Member("seeder2", "192.0.2.251", 6881, has_all=True)


def node(number: int, rack: str = "R1", **changes: object) -> Member:
    return replace(
        Member(f"wn{number:03}", f"192.0.2.{number}", 6881, rack),
        **changes,  # type: ignore[arg-type]
    )


def parents(plan: dict[str, Links]) -> dict[str, str]:
    return {name: links.parents[0].node if links.parents else "" for name, links in plan.items()}


@st.composite
def farms(draw: st.DrawFn) -> tuple[Member, ...]:
    numbers = draw(st.lists(st.integers(1, 200), unique=True, max_size=40))
    return tuple(
        node(
            number,
            rack=draw(st.sampled_from(["", "R1", "R2", "R3"])),
            has_all=draw(st.booleans()) and draw(st.booleans()),
            port=draw(st.sampled_from([6881, 6881, 6881, 0])),
            progress=draw(st.sampled_from([0.0, 0.0, 0.3, 0.9])),
        )
        for number in numbers
    )


seeder_sets = st.sampled_from([(SEEDER,), (SEEDER, SECOND), (SECOND,)])


def test_a_flash_crowd_is_one_chain_through_the_racks() -> None:
    farm = [node(4, "R2"), node(1), node(3, "R2"), node(2)]
    plan = plan_relay(line_up((), farm), farm, [SEEDER])
    assert parents(plan) == {
        "wn001": "seeder",
        "wn002": "wn001",
        "wn003": "wn002",
        "wn004": "wn003",
    }
    assert [peer.node for peer in plan["wn004"].fallbacks] == ["wn002", "seeder"]
    assert [peer.node for peer in plan["wn001"].fallbacks] == []
    assert [peer.node for peer in plan["wn004"].neighbours] == ["wn001"]
    assert plan["wn002"].parents[0].address == "192.0.2.1"


def test_a_node_that_has_the_image_feeds_its_rack() -> None:
    farm = [node(1), node(2), node(3, "R2"), node(4, "R2", has_all=True)]
    plan = plan_relay(line_up((), farm), farm, [SEEDER])
    assert parents(plan)["wn003"] == "wn004"


def test_a_second_seeder_heads_a_chain_of_its_own() -> None:
    farm = [node(n, f"R{n % 4}") for n in range(1, 41)]
    plan = plan_relay(line_up((), farm), farm, [SEEDER, SECOND])
    heads = [name for name, parent in parents(plan).items() if parent.startswith("seeder")]
    assert 1 <= len(heads) <= 2


def test_without_a_seeder_a_finished_node_feeds_the_head_of_the_line() -> None:
    farm = [node(1), node(2, has_all=True), node(3)]
    plan = plan_relay(("wn001", "wn002", "wn003"), farm, [])
    assert parents(plan)["wn001"] == "wn002"
    assert parents(plan)["wn003"] == "wn002"


def test_who_comes_late_does_not_stall_those_who_are_ahead() -> None:
    farm = [node(1, progress=0.5), node(3, progress=0.5), node(5, "R2", progress=0.5)]
    line = line_up((), farm)
    late = node(2)
    assert line_up(line, [*farm, late]) == ("wn001", "wn003", "wn005", "wn002")
    early = line_up(line, [*(replace(member, progress=0.01) for member in farm), late])
    assert early == ("wn001", "wn003", "wn002", "wn005")


def test_a_slow_parent_goes_to_the_end_and_its_child_moves_up() -> None:
    farm = [node(1), node(2), node(3)]
    line = demoted(line_up((), farm), "wn002")
    plan = plan_relay(line, farm, [SEEDER])
    assert parents(plan) == {"wn001": "seeder", "wn003": "wn001", "wn002": "wn003"}
    assert demoted(line, "stranger") == line


def test_a_node_that_does_not_listen_fetches_and_is_nobodys_peer() -> None:
    farm = [node(1), node(2, port=0), node(3)]
    plan = plan_relay(line_up((), farm), farm, [SEEDER])
    assert parents(plan) == {"wn001": "seeder", "wn003": "wn001", "wn002": "wn003"}


def test_after_a_restart_the_line_comes_back_from_what_nodes_were_told() -> None:
    farm = [node(n, progress=0.5) for n in range(1, 20)]
    line = demoted(demoted(line_up((), farm), "wn003"), "wn007")
    plan = plan_relay(line, farm, [SEEDER])
    assert line_of(parents(plan)) == line


@given(farms(), seeder_sets)
def test_everybody_is_reached_from_a_source_and_nobody_in_a_ring(
    farm: tuple[Member, ...], seeders: tuple[Member, ...]
) -> None:
    by_name = {member.node: member for member in farm}
    plan = plan_relay(line_up((), farm), farm, seeders)
    assert plan.keys() == by_name.keys()
    for name in by_name:
        passed, at = {name}, name
        while at in by_name and not by_name[at].has_all:
            at = plan[at].parents[0].node
            assert at not in passed
            passed.add(at)


@given(farms())
def test_without_seeders_finished_nodes_reach_everybody(farm: tuple[Member, ...]) -> None:
    by_name = {member.node: member for member in farm}
    if not any(member.has_all and member.serves for member in farm):
        return
    plan = plan_relay(line_up((), farm), farm, [])
    for name in by_name:
        passed, at = {name}, name
        while not by_name[at].has_all:
            at = plan[at].parents[0].node
            assert at not in passed
            passed.add(at)


@given(farms(), seeder_sets)
def test_links_are_bounded_and_name_nobody_twice(
    farm: tuple[Member, ...], seeders: tuple[Member, ...]
) -> None:
    serving = {member.node for member in farm if member.serves} | {s.node for s in seeders}
    for name, links in plan_relay(line_up((), farm), farm, seeders).items():
        assert len(links.parents) <= 1
        assert len(links.neighbours) <= MAX_NEIGHBOURS
        named = [p.node for p in (*links.parents, *links.fallbacks, *links.neighbours)]
        assert len(set(named)) == len(named)
        assert name not in named
        assert set(named) <= serving


@given(farms(), seeder_sets, st.data())
def test_a_node_that_leaves_gives_one_other_a_new_parent(
    farm: tuple[Member, ...], seeders: tuple[Member, ...], data: st.DataObject
) -> None:
    chain = tuple(member for member in farm if member.serves)
    if not chain:
        return
    gone = data.draw(st.sampled_from(chain))
    line = line_up((), chain)
    before = plan_relay(line, chain, seeders)
    rest = [member for member in chain if member is not gone]
    after = plan_relay(line_up(line, rest), rest, seeders)
    # With a second seeder, the rack of who left may also have a new first node.
    moved = [name for name in after if after[name].parents != before[name].parents]
    assert len(moved) <= len(seeders)
    assert sum(after[name] != before[name] for name in after) <= 2 * MAX_NEIGHBOURS + 4


@given(farms(), seeder_sets, st.integers(201, 220))
def test_a_node_that_joins_gives_at_most_one_other_a_new_parent(
    farm: tuple[Member, ...], seeders: tuple[Member, ...], number: int
) -> None:
    chain = tuple(member for member in farm if member.serves)
    line = line_up((), chain)
    before = plan_relay(line, chain, seeders)
    grown = (*chain, node(number, "R2"))
    after = plan_relay(line_up(line, grown), grown, seeders)
    moved = [name for name in before if after[name].parents != before[name].parents]
    assert len(moved) <= len(seeders)


@given(farms(), seeder_sets)
def test_who_finishes_moves_nobody(farm: tuple[Member, ...], seeders: tuple[Member, ...]) -> None:
    line = line_up((), farm)
    done = tuple(replace(member, has_all=True, progress=1.0) for member in farm)
    assert line_up(line, done) == line
    assert plan_relay(line, done, seeders) == plan_relay(line, farm, seeders)


@given(farms(), seeder_sets, st.randoms())
def test_the_order_of_the_input_does_not_matter(
    farm: tuple[Member, ...], seeders: tuple[Member, ...], random: object
) -> None:
    mixed = list(farm)
    random.shuffle(mixed)  # type: ignore[attr-defined]
    assert line_up((), mixed) == line_up((), farm)
