"""A cell's configuration, by attribute, through ``qconf``."""

from __future__ import annotations

import re
import tempfile
from dataclasses import dataclass
from pathlib import Path
from typing import Literal, Protocol

from agent.hooks.clients import answered
from distrib.errors import NodeError, OperatorError

Kind = Literal["complex", "config", "queue", "host"]
NONE = "none"


@dataclass(frozen=True)
class Attribute:
    """One value of a cell. ``of``: the queue or host that it belongs to, or ``global``.

    A ``complex`` is a line of ``qconf -sc`` after its name; for a ``host``, ``name`` is one complex
    of its ``complex_values``."""

    kind: Kind
    of: str
    name: str

    def __str__(self) -> str:
        where = self.kind if self.kind in {"complex", "config"} else f"{self.kind} {self.of}"
        return f"{where} {self.name}"


class Cell(Protocol):
    """What ``install`` needs of a cell."""

    def get(self, attribute: Attribute) -> str | None:
        """The value; None where nothing is set. Raises NotFound-like OperatorError."""
        ...

    def put(self, attribute: Attribute, value: str | None) -> None:
        """Set it, or with None unset it."""
        ...


class Qconf:
    """The cell that this host is an admin host of."""

    def get(self, attribute: Attribute) -> str | None:
        """See ``Cell``. Raises OperatorError with what qconf says."""
        match attribute.kind:
            case "complex":
                return self._complexes().get(attribute.name)
            case "config":
                value = _attributes(self._show("-sconf", "global")).get(attribute.name)
            case "queue":
                value = _attributes(self._show("-sq", attribute.of)).get(attribute.name)
            case "host":
                shown = _attributes(self._show("-se", attribute.of)).get("complex_values", "")
                value = dict(_values(shown)).get(attribute.name)
        return None if value is None or value.lower() == NONE else value

    def put(self, attribute: Attribute, value: str | None) -> None:
        """See ``Cell``. Raises OperatorError with what qconf says."""
        match attribute.kind:
            case "complex":
                self._put_complex(attribute.name, value)
            case "config":
                text = _replaced(self._show("-sconf", "global"), attribute.name, value or NONE)
                self._modify("-Mconf", "global", text)
            case "queue":
                said = ("-mattr", "queue", attribute.name, value or NONE.upper(), attribute.of)
                self._qconf(*said)
            case "host" if value is None:
                pair = f"{attribute.name}={self.get(attribute) or ''}"
                self._qconf("-dattr", "exechost", "complex_values", pair, attribute.of)
            case "host":
                pair = f"{attribute.name}={value}"
                self._qconf("-mattr", "exechost", "complex_values", pair, attribute.of)

    def _complexes(self) -> dict[str, str]:
        return _attributes(self._show("-sc"))

    def _put_complex(self, name: str, value: str | None) -> None:
        complexes = self._complexes()
        complexes.pop(name, None)
        if value is not None:
            complexes[name] = value
        text = "".join(f"{name} {rest}\n" for name, rest in complexes.items())
        self._modify("-Mc", "complexes", text)

    def _modify(self, option: str, name: str, text: str) -> None:
        # The file's name says what is meant.
        with tempfile.TemporaryDirectory(prefix="distrib-qconf-") as directory:
            file = Path(directory) / name
            file.write_text(text, "utf-8")
            self._qconf(option, str(file))

    def _show(self, *arguments: str) -> str:
        return self._qconf(*arguments).replace("\\\n", " ")

    def _qconf(self, *arguments: str) -> str:
        command = ["qconf", *arguments]
        done = answered(
            command,
            missing="run this on an admin host of the cell, or with --wrappers-only",
            silent="is sge_qmaster up?",
            environment={"SGE_SINGLE_LINE": "1"},
        )
        if done.returncode != 0:
            said = " ".join((done.stderr or done.stdout).split())
            if "unable to send message to qmaster" in said or "unable to contact" in said:
                raise NodeError(f"qconf: {said}", hint="is sge_qmaster up?")
            raise OperatorError(f"{' '.join(command)}: {said}", hint="see qconf(1)")
        return done.stdout


def _attributes(text: str) -> dict[str, str]:
    found = {}
    for line in text.splitlines():
        name, _, value = line.strip().partition(" ")
        if name and not name.startswith("#"):
            found[name] = " ".join(value.split())
    return found


def _replaced(text: str, name: str, value: str) -> str:
    line = f"{name} {value}"
    new, count = re.subn(rf"(?m)^{re.escape(name)}[ \t].*$", lambda _: line, text)
    return new if count else f"{text.rstrip()}\n{line}\n"


def _values(text: str) -> list[tuple[str, str]]:
    pairs = (part.partition("=") for part in text.replace(" ", "").split(","))
    return [(name, value) for name, equals, value in pairs if equals]
