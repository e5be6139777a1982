"""What the site called an image is remembered, so that one that was denied is told as denied."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest

import agent.aliases
from agent.aliases import KnownAliases
from distrib.errors import ExitStatus, NotFound, Revoked
from tests.agent.test_operations import Place, place
from tests.trust.conftest import World, world

__all__ = ["place", "world"]


async def test_a_denied_image_named_by_its_alias_alone_is_revoked(
    place: Place, world: World, tmp_path: Path
) -> None:
    alias, image = "ccin2p3", world.site_image()
    listed = replace(world.site_list(), images=(replace(image, aliases=(alias,)),))
    authority = place.authority
    authority.site_list = None
    authority.offer_site_list(world.signed_site_list(listed))
    await place.lease(image=alias)
    version = str(int(listed.version) + 1)
    without = replace(listed, version=version, images=())
    authority.offer_site_list(world.signed_site_list(without))
    for name in (alias, f"{alias}@{listed.images[0].version}"):
        with pytest.raises(Revoked) as caught:
            await place.lease(image=name)
        assert caught.value.exit_status == ExitStatus.TRUST_REFUSED
    with pytest.raises(NotFound):
        await place.lease(image="never-heard-of")

    # Also over a restart, and on a node that never held its bytes.
    later = KnownAliases(tmp_path / "state")
    later.load()
    assert later.meant(alias) == listed.images[0].identifier


def test_a_damaged_file_and_too_many_names_do_no_harm(
    tmp_path: Path, world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(agent.aliases, "KNOWN_MAX", 2)
    image = world.site_image()
    (tmp_path / "aliases.json").write_text('{"aliases": 7}')
    known = KnownAliases(tmp_path)
    known.load()
    for names in (("a", "b"), ("c",), ("a",)):
        known.learn([replace(image, aliases=names)])
    again = KnownAliases(tmp_path)
    again.load()
    assert [again.meant(name) is not None for name in ("a", "b", "c")] == [True, False, True]
