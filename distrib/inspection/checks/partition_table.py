"""The disk has a partition table, and its partitions are where they can be."""

from __future__ import annotations

from distrib.inspection.checks.subject import Finding, Outcome, Subject, line


class PartitionTable:
    """``partition-table``."""

    name = "partition-table"

    async def look(self, subject: Subject) -> Finding:
        layout = subject.layout
        told = [f"{region.name}: {region.told}" for region in layout.regions]
        if layout.faults:
            return Finding(Outcome.FAIL, line(layout.faults))
        if layout.label is None:
            return Finding(Outcome.FAIL, line(["no partition table", *told]))
        return Finding(Outcome.PASS, line([layout.label, *told]))
