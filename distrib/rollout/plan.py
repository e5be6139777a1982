"""Which nodes a rollout is for: the selector grammar of docs/formats/api.md.

::

    selector = "all" | term *("," term)         a node matches when any term does
    term     = factor *("+" factor)             all factors must match
    factor   = NAME-OR-GLOB | "rack=" RACK | "label:" KEY "=" VALUE

Pure: text and inventory in, names out.
"""

from __future__ import annotations

import fnmatch
import re
from collections.abc import Collection, Iterable, Mapping
from dataclasses import dataclass, field

from distrib.errors import OperatorError

MAX_SELECTOR_CHARS = 4000
LINK_LABEL = "link_mbit"
TRANSPORT_LABEL = "transport"

_NAME = re.compile(r"[a-z0-9][a-z0-9.-]{0,62}")
_GLOB = re.compile(r"[a-z0-9.*?\[\]!-]{1,63}")
_VALUE = re.compile(r"[^\s,+=]{1,64}")
_MBIT = re.compile(r"[1-9][0-9]{0,6}")
_KEY = re.compile(r"[\w./-]{1,64}")


def is_link_rate(text: str) -> bool:
    """Whether it can be the value of the label ``link_mbit``."""
    return _MBIT.fullmatch(text) is not None


@dataclass(frozen=True)
class InventoryNode:
    """A node as the site's inventory has it."""

    name: str
    address: str = ""
    rack: str = ""
    labels: Mapping[str, str] = field(default_factory=dict)
    host_keys: tuple[str, ...] = ()

    @property
    def transport(self) -> str:
        """The transport that it is held to, from the label ``transport``; "": the rollout's."""
        return str(self.labels.get(TRANSPORT_LABEL, ""))

    @property
    def link_bps(self) -> int:
        """The rate of its link in bytes per second, from the label ``link_mbit``; 0: not known."""
        text = str(self.labels.get(LINK_LABEL, ""))
        return int(text) * 125_000 if is_link_rate(text) else 0


@dataclass(frozen=True)
class Named:
    """Matches one name, or a glob of names."""

    pattern: str

    @property
    def is_glob(self) -> bool:
        return _NAME.fullmatch(self.pattern) is None

    def matches(self, node: InventoryNode) -> bool:
        return fnmatch.fnmatchcase(node.name, self.pattern)


@dataclass(frozen=True)
class InRack:
    """Matches the nodes of a rack."""

    rack: str

    def matches(self, node: InventoryNode) -> bool:
        return node.rack == self.rack


@dataclass(frozen=True)
class Labelled:
    """Matches the nodes with a label of this value."""

    key: str
    value: str

    def matches(self, node: InventoryNode) -> bool:
        return str(node.labels.get(self.key, "")) == self.value


Factor = Named | InRack | Labelled


@dataclass(frozen=True)
class Selector:
    """A parsed selector. No terms: every node."""

    text: str
    terms: tuple[tuple[Factor, ...], ...]

    def matches(self, node: InventoryNode) -> bool:
        """Whether the selector names ``node``."""
        return not self.terms or any(
            all(factor.matches(node) for factor in term) for term in self.terms
        )

    def unknown_names(self, inventory: Iterable[InventoryNode]) -> tuple[str, ...]:
        """Names (no globs) that no node of the inventory has: most likely misspelt."""
        known = {node.name for node in inventory}
        named = {
            factor.pattern
            for term in self.terms
            for factor in term
            if isinstance(factor, Named) and not factor.is_glob
        }
        return tuple(sorted(named - known))


@dataclass(frozen=True)
class Targets:
    """The nodes that a selector names now; both sorted."""

    online: tuple[str, ...]
    offline: tuple[str, ...]


def parse_selector(text: str) -> Selector:
    """Parse a selector. Raises OperatorError that says which part is wrong and what is allowed."""
    stripped = text.strip()
    if not stripped:
        raise _refusal(text, "it is empty")
    if len(stripped) > MAX_SELECTOR_CHARS:
        raise _refusal(text[:40] + "…", f"longer than {MAX_SELECTOR_CHARS} characters")
    if stripped == "all":
        return Selector(stripped, ())
    terms = tuple(
        tuple(_factor(text, factor.strip()) for factor in term.split("+"))
        for term in stripped.split(",")
    )
    return Selector(stripped, terms)


def targets(
    selector: Selector, inventory: Iterable[InventoryNode], online: Collection[str]
) -> Targets:
    """The nodes of the inventory that ``selector`` names, by whether they are online."""
    names = sorted(node.name for node in inventory if selector.matches(node))
    return Targets(
        online=tuple(name for name in names if name in online),
        offline=tuple(name for name in names if name not in online),
    )


def _factor(text: str, factor: str) -> Factor:
    if not factor:
        raise _refusal(text, "a term is empty")
    if factor == "all":
        raise _refusal(text, "'all' stands alone")
    head, equals, value = factor.partition("=")
    if not equals:
        if _GLOB.fullmatch(factor) is None or not _closed(factor):
            raise _refusal(text, f"{factor!r} is no node name or glob (names are lower case)")
        return Named(factor)
    if _VALUE.fullmatch(value) is None:
        raise _refusal(text, f"{factor!r} has no value, or one with spaces")
    if head == "rack":
        return InRack(value)
    kind, colon, key = head.partition(":")
    if kind == "label" and colon and _KEY.fullmatch(key):
        return Labelled(key, value)
    raise _refusal(text, f"{factor!r} is neither rack=RACK nor label:KEY=VALUE")


def _closed(glob: str) -> bool:
    """Whether every ``[`` has its ``]``: an open one would match itself, which nobody means."""
    return re.fullmatch(r"(?:[^\[\]]|\[!?[^\[\]]+\])*", glob) is not None


def _refusal(text: str, why: str) -> OperatorError:
    return OperatorError(
        f"selector {text!r}: {why}",
        hint="all, or e.g. wn001,wn0*,rack=R1+label:gpu=no ('+' all of, ',' any of)",
        selector=text[:200],
    )
