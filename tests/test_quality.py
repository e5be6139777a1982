"""The code keeps its own rules: lint, format, types, import directions, size of modules."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
BIN = Path(sys.executable).parent
MODULE_MAX_LINES = 400
NAMES_THAT_SAY_NOTHING = {"utils", "util", "helpers", "common", "misc", "manager", "managers"}


def check(*command: str) -> None:
    environment = os.environ | {"PATH": f"{BIN}:{os.environ['PATH']}"}
    done = subprocess.run(
        [str(BIN / command[0]), *command[1:]],
        check=False,
        cwd=ROOT,
        env=environment,
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stdout + done.stderr


def modules() -> list[Path]:
    tracked = subprocess.run(
        ["git", "ls-files", "--cached", "--others", "--exclude-standard", "*.py"],
        cwd=ROOT,
        capture_output=True,
        text=True,
        check=True,
    )
    return [ROOT / line for line in tracked.stdout.split() if (ROOT / line).exists()]


def test_lint() -> None:
    check("ruff", "check", ".")


def test_format() -> None:
    check("ruff", "format", "--check", ".")


@pytest.mark.timeout(600)
def test_types() -> None:
    check("mypy")


def test_imports_point_one_way() -> None:
    check("lint-imports")


def test_no_module_is_longer_than_a_reader_can_hold() -> None:
    sizes = {str(path): len(path.read_text("utf-8").splitlines()) for path in modules()}
    assert {name: size for name, size in sizes.items() if size > MODULE_MAX_LINES} == {}


def test_no_module_is_called_what_says_nothing() -> None:
    assert [path for path in modules() if path.stem in NAMES_THAT_SAY_NOTHING] == []


def test_shell_scripts_parse() -> None:
    tracked = subprocess.run(
        ["git", "ls-files", "scripts", ".ci"], cwd=ROOT, capture_output=True, text=True, check=True
    )
    for name in tracked.stdout.split():
        script = ROOT / name
        if script.read_bytes().startswith(b"#!/bin/bash"):
            subprocess.run(["bash", "-n", str(script)], check=True)
