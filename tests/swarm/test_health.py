"""Who does not move, why, and at whom to look: by what nodes say and what the plan is."""

from __future__ import annotations

from dataclasses import replace

from distrib.swarm.health import Stall, Watched, find_stalls

MOVES = Watched(
    parents=("seeder",), state="pulling", bytes_done=50, rate_bps=100, silent_s=1.0, still_s=0.5
)
STILL = replace(MOVES, rate_bps=0, still_s=30.0)


def chain(*nodes: Watched) -> dict[str, Watched]:
    """wn0 below the seeder, wn1 below wn0, ..."""
    return {
        f"wn{n}": replace(node, parents=(f"wn{n - 1}",)) if n else node
        for n, node in enumerate(nodes)
    }


def found(nodes: dict[str, Watched], *, seeders: tuple[str, ...] = ("seeder",)) -> dict[str, Stall]:
    return find_stalls(nodes, seeders, patience_s=10.0)


def reasons(stalls: dict[str, Stall]) -> dict[str, tuple[str, str]]:
    return {name: (stall.reason, stall.by) for name, stall in stalls.items()}


def test_a_chain_that_moves_has_nobody_in_trouble() -> None:
    assert found(chain(MOVES, MOVES, replace(MOVES, state="ready", rate_bps=0))) == {}


def test_who_waits_for_a_node_that_is_gone_names_that_node() -> None:
    nodes = chain(MOVES, replace(STILL, online=False), STILL, replace(STILL, reason="stalled"))
    assert reasons(found(nodes)) == {
        "wn1": ("offline", ""),
        "wn2": ("behind-slow-node", "wn1"),
        "wn3": ("behind-slow-node", "wn1"),
    }


def test_of_two_stripes_the_one_that_stopped_coming_is_followed_to_its_culprit() -> None:
    """wn2 has stripe 0 from wn0, which came to its end, and stripe 1 from wn1, whose disk is full;
    wn0's other parent went away long ago, and wn0 was fed elsewhere since."""
    nodes = {
        "gone": replace(STILL, online=False),
        "wn0": replace(STILL, parents=("gone", "wn1"), dry_s={"gone": 11.0, "wn1": 31.0}),
        "wn1": replace(STILL, state="failed", reason="no-space"),
        "wn2": replace(STILL, parents=("wn0", "wn1"), dry_s={"wn0": 12.0, "wn1": 30.0}),
        "never": replace(STILL, parents=("wn0", "wn1"), dry_s={"wn0": 12.0}),
    }
    told = reasons(found(nodes))
    for name in ("wn0", "wn2", "never"):
        assert told[name] == ("behind-slow-node", "wn1")


def test_of_two_parents_who_have_what_is_missing_the_silent_one_is_slow() -> None:
    ahead = replace(MOVES, bytes_done=90)
    last = replace(STILL, parents=("wn0", "wn1"), dry_s={"wn0": 12.0, "wn1": 30.0})
    nodes = {"wn0": ahead, "wn1": ahead, "wn2": last}
    assert reasons(found(nodes))["wn2"] == ("parent-slow", "wn1")


def test_a_full_disk_is_named_and_not_what_waits_for_it() -> None:
    nodes = chain(MOVES, replace(STILL, state="failed", reason="no-space", text="1 GiB"), STILL)
    stalls = found(nodes)
    assert stalls["wn1"] == Stall("no-space", text="1 GiB", since_s=30.0)
    assert (stalls["wn2"].reason, stalls["wn2"].by) == ("behind-slow-node", "wn1")


def test_a_seeder_that_sends_nothing_is_the_slow_parent() -> None:
    assert reasons(found(chain(STILL, STILL))) == {
        "wn0": ("parent-slow", "seeder"),
        "wn1": ("behind-slow-node", "wn0"),
    }


def test_a_parent_that_moves_and_gives_nothing_on_is_slow() -> None:
    nodes = chain(replace(MOVES, bytes_done=90), STILL)
    assert reasons(found(nodes)) == {"wn1": ("parent-slow", "wn0")}


def test_without_a_seeder_and_without_a_holder_nobody_is_blamed() -> None:
    nodes = chain(STILL, STILL)
    assert {stall.reason for stall in found(nodes, seeders=()).values()} == {"no-seeder"}
    nodes["wn9"] = replace(MOVES, state="ready")
    assert "no-seeder" not in {stall.reason for stall in found(nodes, seeders=()).values()}


def test_a_node_that_says_nothing_is_told_apart_from_one_that_is_gone() -> None:
    silent, never = replace(MOVES, silent_s=60.0), replace(MOVES, silent_s=None, state="")
    assert reasons(found(chain(MOVES, silent))) == {"wn1": ("no-report", "")}
    assert reasons(found(chain(MOVES, never))) == {"wn1": ("no-report", "")}


def test_a_slow_node_is_named_and_those_behind_it_are_not_blamed() -> None:
    slow = replace(MOVES, rate_bps=30)
    nodes = chain(MOVES, MOVES, MOVES, MOVES, slow, slow, slow)
    assert reasons(found(nodes)) == {
        "wn4": ("slow", ""),
        "wn5": ("behind-slow-node", "wn4"),
        "wn6": ("behind-slow-node", "wn4"),
    }


def test_all_children_slower_than_their_parent_means_the_parent() -> None:
    slow = replace(MOVES, parents=("wn0",), rate_bps=20)
    nodes = {f"other{n}": MOVES for n in range(3)} | {"wn0": MOVES, "wn1": slow, "wn2": slow}
    assert reasons(found(nodes)) == {
        "wn1": ("parent-slow", "wn0"),
        "wn2": ("parent-slow", "wn0"),
    }


def test_who_hashes_its_image_stands_still_without_fault() -> None:
    assert found(chain(replace(STILL, state="verifying"))) == {}


def test_a_plan_in_a_circle_ends() -> None:
    nodes = {"wn0": replace(STILL, parents=("wn1",)), "wn1": replace(STILL, parents=("wn0",))}
    assert set(found(nodes)) == {"wn0", "wn1"}
