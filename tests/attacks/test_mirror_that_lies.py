"""The mirror that lies: it has the endorser's place on the web, and only old messages of his."""

from __future__ import annotations

from datetime import timedelta

import pytest

from tests.head.stories import entry, image_bytes
from tests.subscriptions.conftest import endorser, follower, head, logged, pki, server, successor
from tests.subscriptions.server import ListServer
from tests.subscriptions.stories import Follower, codes

__all__ = ["endorser", "follower", "head", "logged", "pki", "server", "successor"]

BAD = "7cb7a2d5-0f0e-4f43-9a11-000000000001"
HOUR = timedelta(hours=1)


async def test_an_old_list_that_is_replayed_for_ever_runs_out_with_its_images(
    follower: Follower, server: ListServer
) -> None:
    """The endorser has withdrawn the image since, and the mirror does not say so."""
    follower.subscribe()
    image = entry(image_bytes(1), identifier=BAD)
    await follower.follows(image, version="1", lifetime=timedelta(hours=6))
    await follower.approve(BAD, image_bytes(1))
    for hours in (1, 3, 5):
        follower.head.clock.ahead = hours * HOUR
        assert (await follower.poll()).code == "unchanged"
        assert [each.identifier for each in follower.head.site_list().images] == [BAD]
    follower.head.clock.ahead = 7 * HOUR
    late = await follower.poll()
    assert "list-expired" in codes(late)
    follower.head.catalogue.publisher.publish_if_due()
    assert follower.head.site_list().images == ()
    # It was not fresh any more from its end on, however often it was sent.
    assert late.ok_at is not None
    assert late.ok_at < follower.head.clock() - HOUR


@pytest.mark.parametrize("last", ["1", "2"])
async def test_a_mirror_that_goes_back_and_forth_brings_nothing_back(
    follower: Follower, server: ListServer, last: str
) -> None:
    follower.subscribe()
    image = entry(image_bytes(1), identifier=BAD)
    old = follower.endorser.sign(image, version="1")
    new = follower.endorser.sign(version="2")
    server.serve(old)
    await follower.poll()
    server.serve(new)
    await follower.poll()
    assert follower.states() == {"0001@1.0.0": "revoked"}
    for message in (old, new, old) if last == "1" else (old, new):
        server.serve(message)
        polled = await follower.poll()
        assert follower.states() == {"0001@1.0.0": "revoked"}
    assert codes(polled) == (["version-down"] if last == "1" else [])
