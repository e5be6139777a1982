"""Where the farm of these stories is: on 127.0.11.x, so that another farm is not in its way."""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path

from tests.farm.farm import Farm, Loopback
from tests.farm.network import Host
from tests.farm.process import eventually


class Address(Loopback):
    """A host without a namespace."""

    def __init__(self, number: int) -> None:
        Host.__init__(self, "", f"127.0.11.{number}")


@contextmanager
def farm_of(directory: Path, nodes: int) -> Iterator[Farm]:
    """A head and so many running agents, all online."""
    names = [f"wn{number}" for number in range(1, nodes + 1)]
    farm = Farm(directory, Address(1), names)
    try:
        farm.start_head()

        def add(number: int, name: str) -> None:
            # As installed: what is revoked later they learn over the bus alone.
            trust = shutil.copytree(farm.pki / "site" / "trust", directory / f"trust-{name}")
            cache = {"cow_bytes": 1 << 20}
            node = farm.add_node(
                name, Address(number), cache=cache, trust={"ca_directory": str(trust)}
            )
            node.start()

        with ThreadPoolExecutor(nodes) as pool:
            list(pool.map(add, range(2, nodes + 2), names))
        farm.nodes = {name: farm.nodes[name] for name in names}

        def all_online() -> bool:
            return all(row["online"] for row in farm.ask("node", "list")["nodes"])

        eventually("everybody is online", all_online)
        yield farm
    finally:
        farm.stop()
