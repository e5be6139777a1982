"""Where an image stands among nodes, by what is wanted of them and what they have said."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

from distrib.bus.messages import State as NodeState
from distrib.db.models import Image
from distrib.rollout.fleet import Fleet
from distrib.rollout.state import State
from distrib.rollout.wanting import Candidate

_READY = frozenset({NodeState.READY, NodeState.LEASED})


@dataclass(frozen=True)
class Standing:
    """Nodes by how an image stands there; ``others``: it is not wanted on them."""

    ready: tuple[str, ...]
    coming: tuple[str, ...]
    failed: tuple[str, ...]
    others: tuple[str, ...]

    @property
    def held(self) -> int:
        """Where it is, or may yet be."""
        return len(self.ready) + len(self.coming)


def standing_of(state: State, image: Image, pool: Iterable[str], *, bare: bool) -> Standing:
    """Among the nodes of ``pool``. ``bare``: any active version of the image will do."""
    found: dict[str, list[str]] = {"ready": [], "coming": [], "failed": [], "others": []}
    for node in pool:
        infohash = _infohash_on(state, node, image, bare=bare)
        held = None if infohash is None else state.fleet.held(node, infohash)
        if infohash is None:
            found["others"].append(node)
        elif held is not None and held.state in _READY:
            found["ready"].append(node)
        elif held is not None and held.state is NodeState.FAILED:
            found["failed"].append(node)
        else:
            found["coming"].append(node)
    return Standing(**{key: tuple(nodes) for key, nodes in found.items()})


def candidate_of(fleet: Fleet, node: str, *, failed: bool) -> Candidate:
    """The node as one that may get an image."""
    report = fleet.reports.get(node)
    if report is None:
        return Candidate(node, failed=failed)
    free_bytes = report.capacity_bytes - report.used_bytes
    return Candidate(node, free_bytes, sum(one.leases for one in report.images), failed)


def _infohash_on(state: State, node: str, image: Image, *, bare: bool) -> str | None:
    """Which torrent the job would use there; None: the image is not wanted on the node."""
    for one in state.assigned.get(node, ()):
        if one.identifier != image.identifier:
            continue
        if one.version == image.version or (bare and one.active):
            return one.infohash
    return None
