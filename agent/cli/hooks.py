"""``distrib-agent hooks``: batch systems set up, and what their hooks call."""

from __future__ import annotations

from collections.abc import Mapping
from typing import ClassVar

import click

from distrib.command import Lazy, LazyGroup


class Systems(LazyGroup):
    """The batch systems."""

    commands_by_name: ClassVar[Mapping[str, Lazy]] = {
        "gridengine": Lazy("agent.cli.gridengine", "gridengine", "Grid Engine."),
        "slurm": Lazy("agent.cli.slurm", "slurm", "Slurm."),
        "htcondor": Lazy("agent.cli.htcondor", "htcondor", "HTCondor."),
        "lsf": Lazy("agent.cli.lsf", "lsf", "LSF."),
    }


@click.command(cls=Systems)
def hooks() -> None:
    """Set up a batch system so that its jobs run in guests."""
