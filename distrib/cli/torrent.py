"""``distrib torrent``: torrents, offline."""

from __future__ import annotations

from pathlib import Path

import click

from distrib.cli.output import json_option, print_json, print_line
from distrib.cli.progress import progress
from distrib.errors import NotFound, OperatorError
from distrib.swarm.torrent import make_torrent, piece_bytes_for

FILE = click.Path(path_type=Path)


@click.group("torrent")
def torrent() -> None:
    """Torrents, offline."""


@torrent.command("create")
@click.argument("file", type=FILE)
@click.option("-o", "--output", type=FILE, required=True, help="Where the torrent goes.")
@click.option("--piece-size", "piece_bytes", type=int, help="In bytes, a power of two.")
@json_option
def create(*, file: Path, output: Path, piece_bytes: int | None, as_json: bool) -> None:
    """Make the v2 torrent of the image FILE and print its info-hash.

    As an approval does it: private, no trackers, the file is called image.raw in it.
    """
    if not file.is_file():
        raise NotFound(f"{file}: no such file", hint="name an image file")
    size_bytes = file.stat().st_size
    with progress(f"hashing {file.name}", size_bytes, silent=as_json) as advance:
        try:
            info = make_torrent(
                file,
                piece_bytes=piece_bytes or piece_bytes_for(size_bytes),
                out=output,
                on_progress=advance,
            )
        except OSError as error:
            raise OperatorError(f"{output}: {error.strerror}", hint="check -o") from None
    if as_json:
        print_json(
            {
                "file": str(file),
                "torrent": str(output),
                "infohash": info.infohash,
                "size_bytes": info.size_bytes,
                "piece_bytes": info.piece_bytes,
                "pieces": info.pieces,
            }
        )
    else:
        print_line(info.infohash)
