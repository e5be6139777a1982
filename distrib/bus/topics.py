"""Topic names under the configurable prefix, and what may stand in them (docs/formats/messages.md).

Pure: strings in, strings out.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import Literal, get_args

DEFAULT_PREFIX = "distrib/v1"

NODE_NAME = re.compile(r"[a-z0-9][a-z0-9.-]{0,62}")
INFOHASH = re.compile(r"[0-9a-f]{64}")
RESERVED_NAMES = frozenset({"controller", "seeder", "catalogue", "operator"})
"""Certificates of these names have rights of their own on the broker: no node may be called so."""

NodeTopic = Literal["presence", "desired", "orders", "report", "request", "event"]
_NODE_TOPICS: tuple[NodeTopic, ...] = get_args(NodeTopic)


def is_node_name(name: str) -> bool:
    """Whether ``name`` may be a node's: a lower-case host name that is not reserved."""
    return NODE_NAME.fullmatch(name) is not None and name not in RESERVED_NAMES


@dataclass(frozen=True)
class Topics:
    """All topics of one site. ``prefix`` has no wildcard and no slash at either end."""

    prefix: str = DEFAULT_PREFIX

    @property
    def site_list(self) -> str:
        return f"{self.prefix}/site-list"

    @property
    def crl(self) -> str:
        return f"{self.prefix}/crl"

    @property
    def farm(self) -> str:
        """Who belongs to the farm."""
        return f"{self.prefix}/farm"

    def torrent(self, infohash: str) -> str:
        """Where the info dictionary of ``infohash`` (v2, 64 hex digits) is kept."""
        if INFOHASH.fullmatch(infohash) is None:
            raise ValueError(f"not a v2 info-hash: {infohash!r}")
        return f"{self.prefix}/torrent/{infohash}"

    def node(self, node: str, leaf: NodeTopic) -> str:
        if NODE_NAME.fullmatch(node) is None:
            raise ValueError(f"not a node name: {node!r}")
        return f"{self.prefix}/node/{node}/{leaf}"

    def every_node(self, leaf: NodeTopic) -> str:
        """Subscription to one leaf of all nodes: for the controller alone."""
        return f"{self.prefix}/node/+/{leaf}"

    def seeder(self, name: str) -> str:
        """A seeder's presence."""
        return f"{self.prefix}/seeder/{name}/presence"

    @property
    def every_seeder(self) -> str:
        return f"{self.prefix}/seeder/+/presence"

    def parse_node(self, topic: str) -> tuple[str, NodeTopic] | None:
        """``(node, leaf)`` of a node's topic, or None for any other topic."""
        head = f"{self.prefix}/node/"
        if not topic.startswith(head):
            return None
        node, _, leaf = topic[len(head) :].partition("/")
        if NODE_NAME.fullmatch(node) is None:
            return None
        return next(((node, known) for known in _NODE_TOPICS if known == leaf), None)

    def parse_seeder(self, topic: str) -> str | None:
        """The name in a seeder's presence topic, or None."""
        head, tail = f"{self.prefix}/seeder/", "/presence"
        name = topic[len(head) : -len(tail)]
        fits = topic.startswith(head) and topic.endswith(tail) and NODE_NAME.fullmatch(name)
        return name if fits else None
