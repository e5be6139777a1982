"""The simulator of plans: true to a piece-by-piece account, and to chains that were measured."""

from __future__ import annotations

import json

import pytest

from benchmarks.relay import (
    MEASURED,
    Measured,
    cost_of,
    costs,
    farm_of,
    main,
    seconds,
)
from distrib.swarm.relay import RelayPlan, plan_relay
from distrib.swarm.relay_cost import DELAY_SHARE, FIRST_PIECE_S, HOP_S, WIRE, Terms
from distrib.swarm.relay_layout import lay_out
from distrib.swarm.relay_peers import Member

SEEDER = Member("seeder", "192.0.2.1", 6881, has_all=True)


def piece_by_piece(plan: RelayPlan, terms: Terms, rates: dict[str, int]) -> dict[str, float]:
    """When each node has everything: every piece of every hop, one after another."""
    pieces = terms.size_bytes // terms.piece_bytes
    had: dict[tuple[str, int], list[float]] = {}

    def of(name: str, stripe: int) -> list[float]:
        if (name, stripe) not in had:
            above = plan.links[name].parents
            parent = above[stripe % len(above)].node
            piece_s = WIRE * terms.piece_bytes * len(above) / min(rates[name], rates[parent])
            count = pieces // len(above)
            source = of(parent, stripe) if parent in plan.links else [0.0] * count
            row: list[float] = []
            for piece in range(count):
                begun = max(source[piece] + HOP_S, row[-1] if row else 0.0)
                row.append(begun + piece_s)
            had[name, stripe] = row
        return had[name, stripe]

    return {
        name: FIRST_PIECE_S + max(of(name, s)[-1] for s in range(len(links.parents)))
        for name, links in plan.links.items()
    }


@pytest.mark.parametrize("trees", [False, True])
def test_a_path_takes_what_its_pieces_take_one_by_one(trees: bool) -> None:
    terms = Terms(64 << 20, 64 << 10, link_bps=2_500_000, trees=trees)
    farm = farm_of(200, link_bps=terms.link_bps)
    plan = plan_relay(lay_out((), farm, [SEEDER], terms), farm, [SEEDER])
    rates = dict.fromkeys([*farm, "seeder"], terms.link_bps)
    counted = piece_by_piece(plan, terms, rates)
    assert seconds(plan, terms, rates, rates) == pytest.approx(counted, rel=1e-9)


def test_a_slow_link_slows_all_behind_it_in_both_accounts() -> None:
    terms = Terms(16 << 20, 64 << 10, link_bps=2_500_000)
    farm = farm_of(12, link_bps=terms.link_bps)
    plan = plan_relay(lay_out((), farm, [SEEDER], terms), farm, [SEEDER])
    rates = dict.fromkeys([*farm, "seeder"], terms.link_bps) | {"wn0005": 700_000}
    found = seconds(plan, terms, rates, rates)
    assert found == pytest.approx(piece_by_piece(plan, terms, rates), rel=1e-9)
    assert found["wn0011"] > 3 * found["wn0004"]


@pytest.mark.parametrize("point", MEASURED, ids=lambda one: f"{one.piece_bytes >> 10}K")
def test_the_model_is_within_five_percent_of_chains_that_were_measured(point: Measured) -> None:
    terms = Terms(point.size_bytes, point.piece_bytes, link_bps=2_500_000)
    model = cost_of(16, seeder_links=1, terms=terms).last_over_bound
    low, high = point.last_over_bound
    assert 0.95 * low <= model <= 1.05 * high


def test_ten_gigabytes_reach_any_farm_within_the_delay_that_is_allowed() -> None:
    chosen = [cost for cost in costs(10_000_000_000) if cost.piece_kib == 512]
    for nodes in (16, 500, 5000):
        of = [cost for cost in chosen if cost.nodes == nodes]
        assert min(cost.delay_share for cost in of) <= DELAY_SHARE
    trees = [cost for cost in chosen if cost.shapes == "trees"]
    assert {cost.nodes for cost in trees} == {500, 5000}
    assert all(cost.delay_share < 0.02 for cost in trees)
    assert all(cost.seeder_copies == cost.seeder_links for cost in trees)
    assert all(cost.rack_copies <= 1 for cost in chosen)


def test_the_benchmark_prints_the_plans(capsys: pytest.CaptureFixture[str]) -> None:
    main(["--size-gb", "2", "--json"])
    shown = json.loads(capsys.readouterr().out)
    assert shown["size_gb"] == 2
    assert {row["nodes"] for row in shown["plans"]} == {16, 500, 5000}
