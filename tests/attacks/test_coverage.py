"""The tables of README.md name tests that are there, and every scenario of this folder."""

from __future__ import annotations

import re
from pathlib import Path

HERE = Path(__file__).parent
NAMED = re.compile(r"`([\w/]+\.py)::(test_\w+)`")
DEFINED = re.compile(r"^ *(?:async )?def (test_\w+)", re.MULTILINE)


def test_every_test_that_the_tables_name_is_there() -> None:
    named = NAMED.findall((HERE / "README.md").read_text("utf-8"))
    assert len(named) > 80
    for module, name in named:
        file = (HERE if "/" not in module else HERE.parent) / module
        assert name in DEFINED.findall(file.read_text("utf-8")), f"{module}::{name}"


def test_every_module_of_attacks_is_in_the_tables() -> None:
    named = {module for module, _ in NAMED.findall((HERE / "README.md").read_text("utf-8"))}
    own = {file.name for file in HERE.glob("test_*.py")} - {Path(__file__).name}
    assert own <= named
