"""What a push does on a host where something is wrong already."""

from __future__ import annotations

import os
import subprocess
from collections.abc import Callable
from pathlib import Path, PurePosixPath

import pytest

from distrib.errors import StorageFailed
from distrib.tsunami.hosts import PlainHost
from distrib.tsunami.keys import Identity, KnownHosts
from distrib.tsunami.remote import Job, Remote, script
from tests.tsunami.sshd import USER, Sshd

Start = Callable[[int], list[Sshd]]


def test_a_full_disk_costs_no_key_of_the_host(tmp_path: Path) -> None:
    (tmp_path / ".ssh").mkdir()
    keys = tmp_path / ".ssh" / "authorized_keys"
    keys.write_text("ssh-ed25519 AAAA admin\n")
    (tmp_path / "host.sh").write_bytes(script())
    full = tmp_path / "bin" / "grep"
    full.parent.mkdir()
    full.write_text("#!/bin/sh\necho 'grep: write error: No space left on device' >&2\nexit 2\n")
    full.chmod(0o755)

    subprocess.run(
        ["/bin/sh", str(tmp_path / "host.sh"), "clean", str(tmp_path / "pushed")],
        env={"HOME": str(tmp_path), "PATH": f"{full.parent}:{os.defpath}"},
        check=True,
        capture_output=True,
        timeout=20,
    )

    assert keys.read_text() == "ssh-ed25519 AAAA admin\n"
    assert [one.name for one in keys.parent.iterdir()] == ["authorized_keys"]


def test_a_directory_that_somebody_laid_there_is_not_used(
    sshds: Start, tmp_path: Path, key: Path
) -> None:
    (host,) = sshds(1)
    job = Job("ab" * 64, 1, 4, PurePosixPath(tmp_path / "image.raw"))
    (tmp_path / "theirs").mkdir()
    Path(job.directory).symlink_to(tmp_path / "theirs")
    remote = Remote(
        PlainHost(host.address, USER, host.port),
        job,
        identity=Identity.read(key),
        known_hosts=KnownHosts(host.known_hosts_line),
        tell=lambda _: None,
    )

    with pytest.raises(StorageFailed, match="is not ours"):
        remote.clean()

    assert list((tmp_path / "theirs").iterdir()) == []
