"""Selectors: what operators write, and what they are told when it is wrong."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from distrib.errors import ExitStatus, OperatorError
from distrib.rollout.plan import InventoryNode, parse_selector, targets

FARM = (
    InventoryNode("wn001", "192.0.2.1", "R1", {"gpu": "no", "arch": "x86_64"}),
    InventoryNode("wn002", "192.0.2.2", "R1", {"gpu": "yes"}),
    InventoryNode("wn101", "192.0.2.3", "R2", {"gpu": "no"}),
    InventoryNode("gpu-1.example.org", "192.0.2.4", "R2"),
)


@pytest.mark.parametrize(
    ("text", "names"),
    [
        ("all", "wn001 wn002 wn101 gpu-1.example.org"),
        ("wn001", "wn001"),
        ("wn0*", "wn001 wn002"),
        ("wn?0?", "wn001 wn002 wn101"),
        ("wn[01]01", "wn001 wn101"),
        ("rack=R1", "wn001 wn002"),
        ("label:gpu=no", "wn001 wn101"),
        ("rack=R1+label:gpu=no", "wn001"),
        ("rack=R1+label:gpu=no,gpu-1.example.org", "wn001 gpu-1.example.org"),
        (" wn001 , wn101 ", "wn001 wn101"),
        ("rack=R9", ""),
        ("label:gpu=", None),
        ("", None),
        ("  ", None),
        ("wn001,", None),
        ("wn001++wn002", None),
        ("all,wn001", None),
        ("all+rack=R1", None),
        ("WN001", None),
        ("wn 001", None),
        ("wn00[12", None),
        ("rack=", None),
        ("rak=R1", None),
        ("label=R1", None),
        ("label:=no", None),
        ("rack=R1=R2", None),
        ("../etc", None),
        ("x" * 5000, None),
    ],
)
def test_a_selector_names_these_nodes_or_is_refused(text: str, names: str | None) -> None:
    if names is None:
        with pytest.raises(OperatorError) as refused:
            parse_selector(text)
        assert refused.value.exit_status is ExitStatus.USAGE
        assert "label:" in refused.value.hint
        return
    selector = parse_selector(text)
    assert {node.name for node in FARM if selector.matches(node)} == set(names.split())


def test_targets_are_parted_by_presence() -> None:
    found = targets(parse_selector("rack=R1,wn101"), FARM, {"wn101", "wn001", "stranger"})
    assert found.online == ("wn001", "wn101")
    assert found.offline == ("wn002",)


def test_a_misspelt_name_is_found_a_glob_never_is() -> None:
    assert parse_selector("wn001,wn011,zz*").unknown_names(FARM) == ("wn011",)


@given(st.text(max_size=60))
def test_any_text_is_parsed_or_refused_with_the_exit_status_of_a_usage_fault(text: str) -> None:
    try:
        selector = parse_selector(text)
    except OperatorError:
        return
    assert [selector.matches(node) for node in FARM]
