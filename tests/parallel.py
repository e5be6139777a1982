"""Several processes of tests beside each other (pytest-xdist), out of each other's way.

Each folder has a network namespace of its own, since farms use fixed ports on loopback. What is
slow to build is built once for a folder, so that a folder's tests stay together; those that take
longest are begun first.
"""

from __future__ import annotations

import ctypes
import os
import subprocess
from pathlib import Path

import pytest

from tests.uml.plugin import INSIDE

ROOT = Path(__file__).parent
CLONE_NEWNET = 0x40000000
"""linux/sched.h"""

FIRST = ("uml", "stories", "batch", "launch", "head", "cache", "faults", "intake", "revocation")


def own_network() -> None:
    """Move this thread, and all that it starts, into a new network namespace with loopback up."""
    if ctypes.CDLL(None, use_errno=True).unshare(CLONE_NEWNET) != 0:
        raise OSError(ctypes.get_errno(), "unshare(CLONE_NEWNET)")
    subprocess.run(["ip", "link", "set", "lo", "up"], check=True)


def group_of(item: pytest.Item) -> str:
    """Tests of one group run one after the other in one process."""
    if item.get_closest_marker("uml"):
        return "uml"
    return item.path.relative_to(ROOT).parts[0]


def is_worker() -> bool:
    return "PYTEST_XDIST_WORKER" in os.environ


@pytest.hookimpl(tryfirst=True)
def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    if not is_worker():
        return
    for item in items:
        item.add_marker(pytest.mark.xdist_group(group_of(item)))
    rank = {name: place for place, name in enumerate(FIRST)}
    items.sort(key=lambda item: rank.get(group_of(item), len(FIRST)))


_last_group: list[str] = []


@pytest.hookimpl(tryfirst=True)
def pytest_runtest_protocol(item: pytest.Item) -> None:
    # What the group before keeps running until the end stays behind in its own network.
    if os.geteuid() == 0 and not INSIDE and _last_group != [group_of(item)]:
        own_network()
        _last_group[:] = [group_of(item)]
