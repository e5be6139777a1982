"""What a guest sends back as the job's directory: nothing of it lands anywhere else."""

from __future__ import annotations

import io
import tarfile
from pathlib import Path

from agent.cli.workdir import Directory


def tar_of(*members: tuple[str, bytes | str]) -> bytes:
    """Files with bytes, symbolic links with a text."""
    packed = io.BytesIO()
    with tarfile.open(fileobj=packed, mode="w") as tar:
        for name, content in members:
            info = tarfile.TarInfo(name)
            info.mode = 0o4755
            if isinstance(content, str):
                info.type, info.linkname = tarfile.SYMTYPE, content
                tar.addfile(info)
            else:
                info.size = len(content)
                tar.addfile(info, io.BytesIO(content))
    return packed.getvalue()


def bring_back(work: Path, *members: tuple[str, bytes | str]) -> None:
    with Directory(work).unpacking() as sink:
        sink(tar_of(*members))


def test_a_guest_does_not_write_through_links_of_the_directory(tmp_path: Path) -> None:
    home, work = tmp_path / "home", tmp_path / "work"
    home.mkdir()
    work.mkdir()
    (work / "data").symlink_to(home)
    (work / "notes").symlink_to(home / "profile")
    (home / "profile").write_text("mine")

    bring_back(work, ("./data/authorized_keys", b"evil"), ("./notes", b"evil"))

    assert [one.name for one in home.iterdir()] == ["profile"]
    assert (home / "profile").read_text() == "mine"
    assert (work / "data" / "authorized_keys").read_bytes() == b"evil"
    assert not (work / "data").is_symlink()


def test_a_link_that_one_guest_leaves_leads_the_next_one_nowhere(tmp_path: Path) -> None:
    home, work = tmp_path / "home", tmp_path / "work"
    home.mkdir()
    work.mkdir()

    bring_back(work, ("./door", str(home)))
    bring_back(work, ("./door/authorized_keys", b"evil"))

    assert list(home.iterdir()) == []


def test_what_is_not_in_the_tar_stays_and_what_is_takes_its_place(tmp_path: Path) -> None:
    (tmp_path / "sub").mkdir()
    (tmp_path / "sub" / "old").write_text("old")
    (tmp_path / "sub" / "kept").write_text("kept")

    bring_back(tmp_path, ("./sub/old", b"new"), ("./sub/link", "kept"))

    assert (tmp_path / "sub" / "old").read_text() == "new"
    assert (tmp_path / "sub" / "old").stat().st_mode & 0o7000 == 0
    assert (tmp_path / "sub" / "link").read_text() == "kept"
    assert [one.name for one in tmp_path.iterdir()] == ["sub"]
