"""The file of hosts of a push: one a line, ``[user@]host[:port] [rack=NAME]``."""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import Final

from distrib.errors import OperatorError
from distrib.tsunami.keys import SSH_PORT

HOSTS_MAX: Final = 5000

_LINE = re.compile(
    r"(?:(?P<user>[A-Za-z0-9_][\w.-]*\$?)@)?"
    r"(?:\[(?P<bracketed>[0-9A-Fa-f:.%\w]+)\]|(?P<host>[A-Za-z0-9_][\w.-]*))"
    r"(?::(?P<port>\d{1,5}))?(?P<rest>(?:\s+\w+=[\w.-]+)*)"
)


@dataclass(frozen=True)
class PlainHost:
    """Where a host is, and as whom one logs in."""

    address: str
    user: str
    port: int = SSH_PORT
    rack: str = ""

    @property
    def name(self) -> str:
        """As the operator knows it; unique in a push."""
        address = f"[{self.address}]" if ":" in self.address else self.address
        return address if self.port == SSH_PORT else f"{address}:{self.port}"


def parse_hosts(text: str, *, user: str, where: str) -> tuple[PlainHost, ...]:
    """Raises OperatorError that names the line."""
    found: dict[str, PlainHost] = {}
    for number, raw in enumerate(text.splitlines(), 1):
        line = raw.partition("#")[0].strip()
        if not line:
            continue
        host = _parse(line, user)
        if host is None:
            raise OperatorError(
                f"{where}, line {number}: not a host: {line[:80]}",
                hint="[user@]host[:port] [rack=NAME]",
            )
        if host.name in found:
            raise OperatorError(f"{where}, line {number}: {host.name} a second time", hint="once")
        found[host.name] = host
    if not 0 < len(found) <= HOSTS_MAX:
        raise OperatorError(f"{where}: {len(found)} hosts", hint=f"1 to {HOSTS_MAX}")
    return tuple(found.values())


def _parse(line: str, user: str) -> PlainHost | None:
    match = _LINE.fullmatch(line)
    if match is None:
        return None
    words = dict(word.split("=", 1) for word in match["rest"].split())
    port = int(match["port"] or SSH_PORT)
    if words.keys() - {"rack"} or not 0 < port < 65536:
        return None
    address = match["bracketed"] or match["host"]
    return PlainHost(address, match["user"] or user, port, words.get("rack", ""))
