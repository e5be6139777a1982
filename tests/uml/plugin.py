"""Runs the tests that are marked ``uml`` inside user-mode Linux, all in one boot.

Outside, such a test is not run but asks for its result: the first one boots ``scripts/uml`` with a
pytest of all that were selected, and each then passes on the reports that the inner pytest wrote
for it. Inside (``DISTRIB_IN_UML``) it is run as any other.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
INSIDE = bool(os.environ.get("DISTRIB_IN_UML"))
DISK_BYTES = 96 << 20
DISKS = 3
BOOT_LIMIT_S = 1500.0
"""Of the whole run: far more than it takes, since other things may run on the machine."""

_SELECTED = pytest.StashKey[list[str]]()
_REPORTS = pytest.StashKey["Reports"]()


class Reports:
    """What the tests inside have said."""

    def __init__(self, config: pytest.Config, nodes: list[str]) -> None:
        self._by_node: dict[str, list[pytest.TestReport]] = {}
        # LVM waits for the disk at each step; disks in memory are as good. Inside, /dev is another.
        memory = "/dev/shm" if os.access("/dev/shm", os.W_OK) else None
        with (
            tempfile.TemporaryDirectory(prefix="distrib-uml-") as directory,
            tempfile.TemporaryDirectory(prefix="distrib-uml-", dir=memory) as disks,
        ):
            self._run(config, nodes, Path(directory), Path(disks))

    def _run(self, config: pytest.Config, nodes: list[str], directory: Path, disks: Path) -> None:
        results = directory / "results"
        results.touch()
        arguments = directory / "arguments"
        arguments.write_text("\n".join(nodes))
        command = [str(ROOT / "scripts" / "uml"), "-t", str(int(BOOT_LIMIT_S - 60))]
        for number in range(DISKS):
            disk = disks / f"disk{number}"
            disk.touch()
            os.truncate(disk, DISK_BYTES)
            command += ["-d", str(disk)]
        command += ["--", sys.executable, "-B", "-m", "pytest", "-p", "no:cacheprovider"]
        command += ["-q", "--rootdir", str(ROOT), f"@{arguments}"]
        done = subprocess.run(
            command,
            cwd=ROOT,
            env=os.environ | {"DISTRIB_IN_UML": "1", "DISTRIB_UML_RESULTS": str(results)},
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            errors="replace",
            timeout=BOOT_LIMIT_S,
            check=False,
        )
        self.console = f"scripts/uml ended with {done.returncode}\n{done.stdout[-8000:]}"
        for line in results.read_text().splitlines():
            report = config.hook.pytest_report_from_serializable(
                config=config, data=json.loads(line)
            )
            self._by_node.setdefault(report.nodeid, []).append(report)

    def of(self, item: pytest.Item) -> list[pytest.TestReport]:
        return self._by_node.get(item.nodeid) or [
            pytest.TestReport(
                nodeid=item.nodeid,
                location=item.location,
                keywords={},
                outcome="failed",
                longrepr=f"no result from inside\n{self.console}",
                when="call",
            )
        ]


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    if INSIDE:
        return
    for item in items:
        if item.get_closest_marker("uml"):
            item.add_marker(pytest.mark.timeout(BOOT_LIMIT_S + 60), append=False)


def pytest_collection_finish(session: pytest.Session) -> None:
    chosen = [item.nodeid for item in session.items if item.get_closest_marker("uml")]
    session.config.stash[_SELECTED] = chosen


@pytest.hookimpl(tryfirst=True)
def pytest_runtest_protocol(item: pytest.Item, nextitem: pytest.Item | None) -> bool | None:
    if INSIDE or not item.get_closest_marker("uml"):
        return None
    item.ihook.pytest_runtest_logstart(nodeid=item.nodeid, location=item.location)
    for report in _reports(item):
        item.ihook.pytest_runtest_logreport(report=report)
    item.ihook.pytest_runtest_logfinish(nodeid=item.nodeid, location=item.location)
    # What an earlier test of this module left set up for "the next one" is not wanted any more.
    item.session._setupstate.teardown_exact(nextitem)
    return True


def _reports(item: pytest.Item) -> list[pytest.TestReport]:
    if os.geteuid() != 0:
        skipped = ("", 0, "Skipped: needs root for user-mode Linux")
        return [pytest.TestReport(item.nodeid, item.location, {}, "skipped", skipped, "setup")]
    stash = item.config.stash
    if _REPORTS not in stash:
        stash[_REPORTS] = Reports(item.config, stash[_SELECTED])
    return stash[_REPORTS].of(item)


@pytest.hookimpl(wrapper=True)
def pytest_runtest_logreport(report: pytest.TestReport) -> Iterator[None]:
    if INSIDE:
        config = _inside[0]
        data = config.hook.pytest_report_to_serializable(config=config, report=report)
        with Path(os.environ["DISTRIB_UML_RESULTS"]).open("a") as results:
            results.write(json.dumps(data) + "\n")
    return (yield)


_inside: list[pytest.Config] = []


def pytest_configure(config: pytest.Config) -> None:
    _inside[:] = [config]
