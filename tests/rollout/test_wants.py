"""What queued jobs want comes to a few nodes, and what runs from a denied image is ended."""

from __future__ import annotations

import asyncio
from datetime import timedelta
from typing import Any

import pytest
from sqlalchemy import select, update

from distrib.bus.messages import EndUses, HolderKind, ImageWanted, LeaseHolder, Request, State
from distrib.bus.schema import encode
from distrib.db import models
from distrib.errors import Forbidden, NotFound
from distrib.rollout.prestage_settings import PrestageSettings
from distrib.rollout.prestaging import TooManyWants
from distrib.rollout.wanting import Wish
from tests.rollout.conftest import INFOHASH, WORKER, Site, now
from tests.rollout.test_service import online, turn_until

V2 = "2.0.0"
ONE = PrestageSettings(count=1)


def wish(job: str = "slurm:7", **more: Any) -> Wish:
    return Wish(**({"image": "worker", "job": job, "asked_by": "slurm"} | more))


def audited(site: Site, action: str) -> list[models.Audit]:
    with site.database.reading() as session:
        return list(session.scalars(select(models.Audit).where(models.Audit.action == action)))


async def test_what_a_queued_job_wants_comes_to_one_node_for_as_long_as_it_is_wanted(
    site: Site,
) -> None:
    one, two = site.nodes["wn001"], site.nodes["wn002"]
    async with site.service(prestage=ONE) as rollouts, one.online(), two.online():
        await online(rollouts, "wn001", "wn002")
        first = await rollouts.uses.want(wish())
        assert (first["state"], first["coming"]) == ("coming", ["wn001"])
        assert str(first["rollout"]).startswith("p-")
        # Another job joins it, and nothing more is begun.
        second = await rollouts.uses.want(wish("slurm:8"))
        assert second["rollout"] == first["rollout"]
        assert [row["id"] for row in await rollouts.list()] == [first["rollout"]]
        await one.told(lambda images: V2 in images and images[V2].active)
        one.holds(V2, State.READY)

        async def ready() -> bool:
            return (await rollouts.uses.wants())[0]["state"] == "ready"

        await turn_until(rollouts, ready)
        assert two.desired is None or not two.desired.images
        await rollouts.uses.done_wanting("worker", "slurm:7")
        assert len(await rollouts.uses.wants()) == 1
        await rollouts.uses.done_wanting("worker", "slurm:8")
        # Nobody wants it any more: the node need not keep it, and nobody makes it go.
        await one.told(lambda images: V2 not in images)
        assert one.orders == []
    assert len(audited(site, "image-wanted")) == 2
    assert [row.actor for row in audited(site, "prestage-ended")] == ["prestage"]


async def test_a_node_asks_for_its_job_and_gets_the_image_itself(site: Site) -> None:
    one, two = site.nodes["wn001"], site.nodes["wn002"]
    async with site.service(prestage=ONE) as rollouts, one.online(), two.online():
        await online(rollouts, "wn001", "wn002")
        wanted = ImageWanted(image=WORKER, job="gridengine:4711", user="alice")
        request = Request(node="wn002", sent_at=now(), request=wanted)
        for _ in range(2):
            two.bus.send("distrib/v1/node/wn002/request", encode(request))
        await two.told(lambda images: V2 in images)

        async def asked() -> bool:
            return [row["job"] for row in await rollouts.uses.wants()] == ["gridengine:4711"]

        await turn_until(rollouts, asked)


async def test_only_what_the_site_lists_is_brought_to_whom_it_admits_and_where_it_allows(
    site: Site,
) -> None:
    allowed = PrestageSettings(nodes="wn002", per_minute=6)
    one, two = site.nodes["wn001"], site.nodes["wn002"]
    async with site.service(prestage=allowed) as rollouts, one.online(), two.online():
        await online(rollouts, "wn001", "wn002")
        with pytest.raises(NotFound, match="no node that is online matches"):
            await rollouts.uses.want(wish(nodes="wn001"))
        with pytest.raises(NotFound):
            await rollouts.uses.want(wish(image="no-such-image"))
        with site.database.transaction() as session:
            session.execute(update(models.Image).values(audience={"users": ["alice"]}))
        with pytest.raises(Forbidden, match="not for user bob"):
            await rollouts.uses.want(wish(user="bob"))
        with pytest.raises(Forbidden, match="nobody"):
            await rollouts.uses.want(wish())
        hers = await rollouts.uses.want(wish(user="alice"))
        assert hers["coming"] == ["wn002"]
        with site.database.transaction() as session:
            session.execute(update(models.Image).values(state="denied"))
        with pytest.raises(NotFound, match="not on the site list"):
            await rollouts.uses.want(wish(user="alice"))
        with pytest.raises(TooManyWants):
            await rollouts.uses.want(wish(user="alice"))


async def test_a_want_leaves_what_is_active_as_it_is(site: Site) -> None:
    one = site.nodes["wn001"]
    async with site.service(prestage=ONE) as rollouts, one.online():
        await online(rollouts, "wn001")
        await rollouts.start({"image": "worker@1.0.0", "nodes": "wn001"}, "ops")
        await one.told(lambda images: "1.0.0" in images)
        one.holds("1.0.0", State.READY)
        bare = await rollouts.uses.want(wish())
        assert (bare["image"], bare["rollout"]) == (f"{WORKER}@1.0.0", None)
        await rollouts.uses.want(wish(image="worker@2.0.0"))
        images = await one.told(lambda images: V2 in images)
        assert (images["1.0.0"].active, images[V2].active) == (True, False)


async def test_what_runs_from_a_denied_image_is_ended_also_where_a_node_comes_back(
    site: Site,
) -> None:
    one, two = site.nodes["wn001"], site.nodes["wn002"]
    job = LeaseHolder(
        lease="l-1", user="alice", since=now(), kind=HolderKind.JOB, job="gridengine:4711"
    )
    used = {"leases": 1, "holders": (job,)}
    async with site.service() as rollouts, one.online():
        await online(rollouts, "wn001")
        one.holds(V2, State.BLOCKED, **used)

        async def in_use() -> bool:
            return "leases=1" in str(rollouts._state.fleet.held("wn001", INFOHASH[V2]))

        await turn_until(rollouts, in_use)
        with site.database.transaction() as session:
            row = session.get_one(models.Image, (WORKER, V2))
            row.state = models.ImageState.DENIED
        told = await rollouts.uses.end_uses(WORKER, V2, reason="broken in", actor="ops")
        [use] = told
        assert (use["node"], use["holders"][0]["job"]) == ("wn001", "gridengine:4711")
        order = (await one.cancelled()).orders[0]
        assert order == EndUses(infohash=INFOHASH[V2], text="broken in")
        one.holds(V2, State.BLOCKED)

        async def noted() -> bool:
            return len(audited(site, "uses-ended")) == 1

        await turn_until(rollouts, noted)
        detail = audited(site, "uses-ended")[0].detail
        assert (detail["node"], detail["asked_by"]) == ("wn001", "ops")
        assert detail["holders"][0]["user"] == "alice"
    # Another controller knows of it: a node that was away is told when it returns.
    async with site.service() as rollouts, two.online():
        two.holds(V2, State.BLOCKED, **used)
        assert (await two.cancelled()).orders[0].kind == "end-uses"
        # Taken back: nobody is told any more.
        with site.database.transaction() as session:
            row = session.get_one(models.Image, (WORKER, V2))
            row.state = models.ImageState.APPROVED
        await rollouts._loop.call(rollouts.uses.reload)
        assert rollouts._state._endings.in_force == {}


async def test_wants_lapse(site: Site) -> None:
    ahead = timedelta()
    one = site.nodes["wn001"]
    clock = {"clock": lambda: now() + ahead}
    async with site.service(prestage=ONE, **clock) as rollouts, one.online():
        await online(rollouts, "wn001")
        await rollouts.uses.want(wish())
        await one.told(lambda images: V2 in images)
        ahead = timedelta(hours=2)
        await rollouts._loop.call(rollouts.uses._prestaging.expire)
        async with asyncio.timeout(10):
            await one.told(lambda images: V2 not in images)
