"""What is written to a host of Slurm and taken away again; what is the site's own stays."""

from __future__ import annotations

from pathlib import Path

import pytest

from agent.hooks.slurm.install import Wish, install, remove
from agent.hooks.slurm.wrappers import Places
from distrib.errors import Conflict

# Slurm's --distribution, and a plugin that calls ours as docs/batch.md says.
OWN = """\
local distrib = dofile("/etc/slurm/distrib.lua")
function slurm_job_submit(job, partitions, uid)
  if job.task_dist then slurm.log_user("no --distribution here") end
  return distrib.submit(job)
end
"""


@pytest.fixture
def wish(tmp_path: Path) -> Wish:
    conf = tmp_path / "etc" / "slurm.conf"
    conf.parent.mkdir()
    conf.write_text("ClusterName=c\n")
    places = Places(
        tmp_path / "lib", Path("/run/x.sock"), Path("/usr/bin"), conf.parent / "distrib.lua", True
    )
    return Wish(conf, places)


def test_all_of_it_is_written_once_and_taken_away(wish: Wish) -> None:
    before = wish.configuration.read_text()
    assert len(install(wish, dry_run=False)) == len(remove(wish, dry_run=True))
    assert install(wish, dry_run=False) == []
    remove(wish, dry_run=False)
    assert [file.name for file in wish.configuration.parent.iterdir()] == ["slurm.conf"]
    assert wish.configuration.read_text() == before


@pytest.mark.parametrize(
    ("name", "text"),
    [
        ("job_submit.lua", OWN),
        ("burst_buffer.conf", "Directive=VM\nStageInTimeout=60\n"),
        ("burst_buffer.lua", "-- for this distribution\n"),
    ],
)
def test_the_sites_own_plugins_are_neither_overwritten_nor_taken_away(
    wish: Wish, name: str, text: str
) -> None:
    own = wish.configuration.parent / name
    own.write_text(text)
    with pytest.raises(Conflict, match="the site's own"):
        install(wish, dry_run=False)
    assert wish.configuration.read_text() == "ClusterName=c\n"
    remove(wish, dry_run=False)
    assert own.read_text() == text
