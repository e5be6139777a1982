"""Large images and many: how fast a torrent is made, what seeding costs, what large pieces cost.

    benchmarks/large.py torrent [--size-gb 8]     bytes/s of making one, beside openssl and the disk
    benchmarks/large.py many [--images 200]       memory and CPU of a seeder and an agent at rest
                                                  (under `unshare -n`, with `lo` up)
    benchmarks/large.py pieces [--nodes 6]        chains by piece size, a parent that dies
    benchmarks/large.py versions [--nodes 6]      chains of v1 and v2, and what hash requests cost

Each prints one JSON object with ``--json``, and the same as lines without.
"""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Callable, Sequence
from pathlib import Path

ROOT = Path(__file__).parents[1]
sys.path.insert(0, str(ROOT))

from benchmarks.largeparts import hashing, resting, sizes, versions  # noqa: E402


def main(arguments: Sequence[str] | None = None) -> None:
    """Run one part and print it."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n", maxsplit=1)[0])
    parts = parser.add_subparsers(dest="part", required=True)
    torrent = parts.add_parser("torrent")
    torrent.add_argument("--size-gb", type=float, default=8.0)
    torrent.add_argument("--directory", type=Path, default=Path("/var/tmp"))  # noqa: S108
    torrent.set_defaults(run=lambda given: hashing.measured(given.directory, given.size_gb))
    many = parts.add_parser("many")
    many.add_argument("--images", type=int, default=200)
    many.add_argument("--size-gb", type=float, default=10.0)
    many.add_argument("--seconds", type=float, default=30.0)
    many.set_defaults(
        run=lambda given: resting.measured(given.images, given.size_gb, given.seconds)
    )
    chains = [parts.add_parser("pieces"), parts.add_parser("versions")]
    for chain, run in zip(chains, (sizes.measured, versions.measured), strict=True):
        chain.add_argument("--nodes", type=int, default=6)
        chain.add_argument("--size-mb", type=int, default=64)
        chain.add_argument("--rate-mbit", type=float, default=40.0)
        chain.add_argument("--piece-kib", type=int, nargs="+", default=[64, 256, 1024, 4096])
        chain.add_argument("--rounds", type=int, default=1)
        chain.set_defaults(run=run)
    for part in (torrent, many, *chains):
        part.add_argument("--json", action="store_true")
    given = parser.parse_args(arguments)
    measure: Callable[[argparse.Namespace], dict[str, object]] = given.run
    figures = measure(given)
    if given.json:
        print(json.dumps(figures, indent=1))
        return
    for name, value in figures.items():
        print(f"{name:40} {value}")


if __name__ == "__main__":
    main()
