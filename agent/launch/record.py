"""What is kept on disk of a launch under way, so that a restarted agent goes on with it
(docs/formats/state.md)."""

from __future__ import annotations

from dataclasses import asdict, dataclass, field
from datetime import datetime
from typing import Any, Literal, cast

from pydantic import TypeAdapter, ValidationError

from agent.cache import durable
from agent.cache.holders import ProcessHolder
from agent.launch.hypervisor import Usage
from agent.launch.runlog import Run
from agent.launch.spec import JobResult, Limits, RunFiles
from distrib.errors import DistribError, ExitStatus, StateCorrupt


@dataclass(frozen=True)
class LaunchRecord:
    """``token``: what its client shows when it comes again; ``uid``: whose client it is;
    ``own_lease``: whether the lease was made for it and ends with it; ``began_s``:
    CLOCK_MONOTONIC of this boot; ``returns_files``: whether a directory comes back."""

    lease: str
    token: str
    uid: int
    client: ProcessHolder
    own_lease: bool
    run: Run
    infohash: str
    began: datetime
    began_s: float
    limits: Limits
    returns_files: bool = False
    phases: dict[str, float] = field(default_factory=dict)
    v: Literal[1] = field(default=1, kw_only=True)


class EarlierFault(DistribError):
    """A fault that was kept, also over a restart of the agent, until its client heard of it."""

    def __init__(self, error: dict[str, Any]) -> None:
        super().__init__(str(error["message"]), hint=str(error["hint"]), **error["ids"])
        self.code = str(error["code"])
        self.exit_status = ExitStatus(int(error["exit"]))


_RECORD = TypeAdapter(LaunchRecord)
Outcome = JobResult | DistribError


def save_record(files: RunFiles, record: LaunchRecord) -> None:
    """It is on disk on return. Raises StorageFailed."""
    durable.replace(files.record, _RECORD.dump_json(record))


def load_record(files: RunFiles) -> LaunchRecord | None:
    """None when there is none that can be read."""
    try:
        return durable.load(files.record, _RECORD.validate_json)
    except (OSError, StateCorrupt, ValidationError):
        return None


def save_outcome(files: RunFiles, outcome: Outcome) -> None:
    """Raises StorageFailed."""
    told: dict[str, Any] = (
        {"result": asdict(outcome)}
        if isinstance(outcome, JobResult)
        else {"error": outcome.as_dict()}
    )
    durable.replace(files.outcome, TypeAdapter(dict[str, Any]).dump_json(told))


def load_outcome(files: RunFiles) -> Outcome | None:
    """None when the launch had not ended."""
    try:
        told = durable.load(files.outcome, TypeAdapter(dict[str, Any]).validate_json)
        if "error" in told:
            return EarlierFault(told["error"])
        result = dict(told["result"])
        usage = Usage(**cast(dict[str, Any], result.pop("usage")))
        return JobResult(**result, usage=usage)
    except (OSError, StateCorrupt, KeyError, TypeError, ValueError):
        return None
