"""``distrib torrent``: torrents, made offline, and those of the site for other clients."""

from __future__ import annotations

import base64
from pathlib import Path

import click

from distrib.cli.client import connected, path_of
from distrib.cli.output import json_option, print_json, print_line
from distrib.cli.progress import progress
from distrib.errors import NotFound, OperatorError, TorrentMismatch
from distrib.swarm.torrent import info_of, make_torrent, parse_info, piece_bytes_for

FILE = click.Path(path_type=Path)


@click.group("torrent")
def torrent() -> None:
    """Torrents: make one, export one."""


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


@torrent.command("export")
@click.argument("ref", metavar="IMAGE")
@click.option("-o", "--output", type=FILE, required=True, help="Where the torrent goes.")
@json_option
def export(*, ref: str, output: Path, as_json: bool) -> None:
    """Write the torrent of IMAGE for a foreign client, and print where it finds a peer.

    The client must speak BitTorrent v2 and be told the peer: there is no tracker. Seeders and nodes
    serve it where its network is among those that the site's settings call foreign.
    """
    with connected() as client:
        found = client.get(path_of("swarm", ref, "torrent"))
    content = base64.b64decode(found.pop("torrent"))
    info = parse_info(info_of(content))
    if info.infohash != found["infohash"]:
        raise TorrentMismatch(
            f"the head gave torrent {info.infohash[:12]} in the place of {found['infohash'][:12]}",
            hint="its store is damaged: approve the image again",
        )
    try:
        output.write_bytes(content)
    except OSError as error:
        raise OperatorError(f"{output}: {error.strerror}", hint="check -o") from None
    if as_json:
        print_json(found | {"file": str(output)})
        return
    print_line(info.infohash)
    for peer in found["peers"]:
        print_line(f"peer {peer['address']}:{peer['port']} ({peer['node']})")
    if not found["peers"]:
        print_line("no seeder is online that has it: distrib swarm show names them")
