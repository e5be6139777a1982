"""Who fed whom, as reports say: kept for as many peers as a node can have, however it lies."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta

from distrib.bus.messages import ImageReport, Link, Report, State
from distrib.rollout.movement import GIVERS_MAX, Movement

INFOHASH = "a1" * 32


def test_a_node_that_names_new_peers_in_each_report_costs_no_more() -> None:
    now = datetime(2026, 3, 1, tzinfo=UTC)
    movement = Movement(lambda: now)

    def reports(*peers: str) -> None:
        image = ImageReport(
            identifier="7cb7a2d5-0f0e-4f43-9a11-3a9f5e0f6c11",
            version="1",
            infohash=INFOHASH,
            state=State.PULLING,
            since=now,
            links=tuple(Link(node=peer, address="192.0.2.1", download_bps=1) for peer in peers),
        )
        movement.heard(Report(node="wn001", boot_id="b", sent_at=now, images=(image,)))

    reports("wn002", "wn003")
    for turn in range(40):
        now += timedelta(seconds=1)
        reports("wn002", *(f"no{turn}-{n}" for n in range(31)))
    dry_s = movement.dry_s("wn001", INFOHASH, now)
    assert len(dry_s) == GIVERS_MAX
    assert dry_s["wn002"] == 0
    assert "wn003" not in dry_s
