"""A user's directory that a guest shares: the user's own, and the very one that was looked at."""

from __future__ import annotations

import os
import shutil
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from agent.launch.domain import Share
from agent.launch.hypervisor import Domain
from agent.launch.job import run_job
from agent.launch.libvirt import Libvirt
from agent.launch.shared import share_of
from agent.launch.spec import JobSpec
from distrib.errors import Forbidden, LaunchFailed
from tests.launch.conftest import AGENT

pytestmark = pytest.mark.root

USER, OTHER = 65534, 65533


@pytest.fixture
def home() -> Iterator[Path]:
    """A site's share root that all may pass through, with a directory of the user's."""
    root = Path(tempfile.mkdtemp(prefix="distrib-home-"))
    root.chmod(0o755)
    (root / "own").mkdir(mode=0o700)
    os.chown(root / "own", USER, USER)
    yield root
    shutil.rmtree(root)


def test_a_users_own_directory_below_the_sites_roots_is_shared(home: Path) -> None:
    here = (home / "own").stat()
    share = share_of(home / "own", USER, (home,))
    assert share.identity == (here.st_dev, here.st_ino)
    for who, roots in ((OTHER, (home,)), (0, (home,)), (USER, ()), (USER, (home / "other",))):
        with pytest.raises(Forbidden):
            share_of(home / "own", who, roots)


def test_what_a_user_may_not_read_is_not_shared_whoever_looks(home: Path) -> None:
    """The agent is root and could open all of these."""
    hidden = home / "hidden"
    hidden.mkdir(mode=0o700)
    (hidden / "own").mkdir()
    os.chown(hidden / "own", USER, USER)
    (home / "closed").mkdir(mode=0o300)
    os.chown(home / "closed", USER, USER)
    for directory in (hidden / "own", home / "closed", home / "nothing"):
        with pytest.raises(Forbidden, match="may read"):
            share_of(directory, USER, (home,))


def test_a_link_leads_to_no_directory_that_is_not_shared(home: Path, tmp_path: Path) -> None:
    outside = Path(tempfile.mkdtemp(prefix="distrib-outside-"))
    os.chown(outside, USER, USER)
    try:
        (home / "link").symlink_to(outside)
        with pytest.raises(Forbidden, match="may not be shared"):
            share_of(home / "link", USER, (home,))
    finally:
        outside.rmdir()
    (home / "inside").symlink_to(home / "own")
    assert Path(share_of(home / "inside", USER, (home,)).path) == home / "own", "without its links"


class BehindTheLook(Libvirt):
    """A libvirt before whose start of a guest something is done to the path that it shares."""

    do: Callable[[], None] = staticmethod(lambda: None)

    async def start(self, xml: str, *, suspended: bool = False) -> Domain:
        self.do()
        return await super().start(xml, suspended=suspended)


async def test_a_link_put_in_its_place_before_qemu_opens_it_ends_the_launch(
    libvirt_uri: str, make_spec: Callable[..., JobSpec], output: Any, home: Path
) -> None:
    own, other = home / "own", home / "other"
    other.mkdir()
    os.chown(other, USER, USER)
    share: Share = share_of(own, USER, (own,))

    def swap() -> None:
        own.rename(home / "moved")
        own.symlink_to(other)

    async with BehindTheLook(libvirt_uri, agent=AGENT) as hypervisor:

        async def run() -> None:
            spec = make_spec("echo never\n", share=share)
            sinks = {"on_stdout": output.out, "on_stderr": output.err}
            await run_job(spec, hypervisor=hypervisor, **sinks)

        # In its place it is taken: the guest runs, and finds that its kernel has no 9p.
        with pytest.raises(LaunchFailed, match="no-share"):
            await run()
        hypervisor.do = swap
        with pytest.raises(LaunchFailed, match="not the directory any more"):
            await run()
        assert await hypervisor.domains() == ()
    assert output.stdout == b""
