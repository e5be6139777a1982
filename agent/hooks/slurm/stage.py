"""A job waits in the queue for its image: what burst_buffer.lua runs as the job's stage-in."""

from __future__ import annotations

import time
from pathlib import Path

from agent.hooks.fault import of_node
from agent.hooks.slurm.control import known_features, run
from agent.socket.client import ask
from distrib.errors import DistribError

POLL_S = 2.0
ASK_S = 30.0


def stage(socket: Path, *, job: str, image: str, user: str, feature: str) -> None:
    """Ask for the image until some node has it; then the job may only go to such a node.

    Raises what the agent answers where it is approved no more; waits while the agent is away, as
    long as slurmctld lets it (StageInTimeout)."""
    asked_s = float("-inf")
    while feature not in known_features():
        if time.monotonic() - asked_s >= ASK_S:
            asked_s = time.monotonic()
            try:
                ask(socket, "want", timeout_s=10.0, image=image, user=user, job=f"slurm:{job}")
            except DistribError as error:
                if not of_node(error):
                    raise
        time.sleep(POLL_S)
    run("scontrol", "update", f"JobId={job}", f"Features={feature}")
