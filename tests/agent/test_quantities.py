"""Sizes and times on a command line mean what they mean to the batch system."""

from __future__ import annotations

import click
import pytest

from agent.cli.quantities import MEMORY, TIME


@pytest.mark.parametrize(
    ("text", "mib"),
    [("2048", 2048), ("2G", 2048), ("2g", 1907), ("1.5G", 1536), ("512M", 512), ("512m", 488)],
)
def test_sizes_are_grid_engines(text: str, mib: int) -> None:
    assert MEMORY.convert(text, None, None) == mib


@pytest.mark.parametrize(("text", "seconds"), [("90", 90.0), ("1:30:0", 5400.0), ("0.5", 0.5)])
def test_times_are_grid_engines(text: str, seconds: float) -> None:
    assert TIME.convert(text, None, None) == seconds


@pytest.mark.parametrize("text", ["", "x", "2Q", "-1", "1e9", "nan"])
def test_what_is_no_size_is_refused(text: str) -> None:
    with pytest.raises(click.BadParameter, match="not a size"):
        MEMORY.convert(text, None, None)


@pytest.mark.parametrize("text", ["", "x", "0", "-1", "1:2", "0:0:0", "inf"])
def test_what_is_no_time_is_refused(text: str) -> None:
    with pytest.raises(click.BadParameter, match="time"):
        TIME.convert(text, None, None)
