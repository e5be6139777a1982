"""Nodes and versions that come back: who is online, and what there is to go back to."""

from __future__ import annotations

import asyncio
from typing import Any

import pytest

from distrib.bus.messages import State
from distrib.errors import NetworkError
from distrib.rollout.service import Rollouts
from tests.rollout.test_service import V1, V2, online, until


async def test_a_connected_node_that_is_forgotten_and_added_again_is_online(site: Any) -> None:
    one, two = site.nodes["wn001"], site.nodes["wn002"]
    async with site.service(silent_s=1.0) as rollouts, one.online(), two.online():
        await online(rollouts, "wn001", "wn002")
        failed = await rollouts.start({"image": f"worker@{V1}", "nodes": "all"}, "alice")
        await until(rollouts, failed["id"], lambda seen: seen["state"] == "failed")
        await rollouts.forget("wn002", "alice")
        assert (await rollouts.node_view("wn002"))["online"] is False
        site.add_node("wn002", address="192.0.2.2")
        rollouts.node_changed("wn002")
        await online(rollouts, "wn002")
        # What did not go well before is none of its business.
        rows = (await rollouts.show(failed["id"]))["nodes"]
        assert [row["node"] for row in rows] == ["wn001", "wn003"]
        again = await rollouts.start({"image": "worker", "nodes": "wn002"}, "alice")
        await two.told(lambda images: V2 in images and V1 not in images)
        two.holds(V2, State.READY)
        await until(rollouts, again["id"], lambda seen: seen["state"] == "done")


async def test_a_rollout_of_what_is_active_keeps_the_version_to_go_back_to(site: Any) -> None:
    one = site.nodes["wn001"]
    async with site.service() as rollouts, one.online():
        await online(rollouts, "wn001")
        for version in (V1, V2, V2):
            started = await rollouts.start({"image": f"worker@{version}", "nodes": "all"}, "alice")
            told = await one.told(
                lambda images, version=version, rollout=started["id"]: (
                    version in images and images[version].rollout == rollout
                )
            )
            one.holds(version, State.READY)
            await until(rollouts, started["id"], lambda seen: seen["state"] == "done")
        assert (told[V1].active, told[V2].active) == (False, True)


async def test_who_is_online_is_not_told_before_it_is_known(site: Any) -> None:
    rollouts = Rollouts(
        database=site.database, bus=site.settings("controller"), orders_key=site.key
    )
    task = asyncio.create_task(rollouts.run())
    with pytest.raises(NetworkError, match="not synced yet"):
        await rollouts.node_view("wn001")
    async with site.nodes["wn001"].online():
        asked = asyncio.create_task(rollouts.node_view("wn001"))
        async with rollouts.bus.running():
            assert (await asked)["online"]
    task.cancel()
    await asyncio.gather(task, return_exceptions=True)
