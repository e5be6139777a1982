"""``distrib swarm caps``: what nodes exchange at most, by how near the peer is, or of a rollout."""

from __future__ import annotations

from typing import Any

import click

from distrib.cli.client import connected, path_of
from distrib.cli.output import json_option, print_json, print_line, print_table

_BITS_PER_BYTE = 8
_TIERS = ("rack", "room", "elsewhere")


_DEFAULT = "default"


class Mbit(click.ParamType[dict[str, int] | str]):
    """``MBIT`` both ways, ``DOWN/UP``, or ``default``."""

    name = "mbit"

    def convert(
        self, value: Any, param: click.Parameter | None, ctx: click.Context | None
    ) -> dict[str, int] | str:
        """Bytes per second each way, or ``_DEFAULT``."""
        if isinstance(value, dict):
            return value
        if value == _DEFAULT:
            return _DEFAULT
        down, slash, up = str(value).partition("/")
        try:
            rates = [float(text) for text in (down, up if slash else down)]
        except ValueError:
            rates = [-1.0]
        if not all(0 <= rate <= 1e7 for rate in rates):
            self.fail(f"{value!r}: Mbit/s, as 200, or 200/50 (down/up), 0 for none, default")
        bps = [int(rate * 1_000_000 / _BITS_PER_BYTE) for rate in rates]
        return {"download_bps": bps[0], "upload_bps": bps[1]}


@click.command("caps")
@click.option("--rack", type=Mbit(), metavar="MBIT", help="With its own rack.")
@click.option("--room", type=Mbit(), metavar="MBIT", help="With its own room.")
@click.option("--elsewhere", type=Mbit(), metavar="MBIT", help="With all others.")
@click.option("--rollout", metavar="ROLLOUT", help="Cap one rollout instead.")
@click.option("--download-mbit", type=click.FloatRange(min=0), help="With --rollout; 0: none.")
@click.option("--upload-mbit", type=click.FloatRange(min=0), help="With --rollout; 0: none.")
@json_option
def caps(
    *,
    rollout: str | None,
    download_mbit: float | None,
    upload_mbit: float | None,
    as_json: bool,
    **tiers: Any,
) -> None:
    """What each node exchanges at most; without options, what is in force.

    MBIT is Mbit/s both ways (200), or down/up (200/50); 0 is no cap, "default" goes back to the
    controller's settings. Nodes are told at once, and nobody reconnects.
    """
    wanted = {
        tier: None if value == _DEFAULT else value
        for tier, value in tiers.items()
        if value is not None
    }
    if rollout is not None:
        if wanted:
            raise click.UsageError("--rollout goes with --download-mbit and --upload-mbit only")
        _rollout_caps(rollout, download_mbit, upload_mbit, as_json=as_json)
        return
    if download_mbit is not None or upload_mbit is not None:
        raise click.UsageError("--download-mbit and --upload-mbit go with --rollout")
    with connected() as client:
        document = client.put("/caps", wanted) if wanted else client.get("/caps")
    if as_json:
        print_json(document)
        return
    set_now = document["set_at_run_time"]
    print_table(
        ("PEERS IN", "DOWNLOAD", "UPLOAD", "SET BY"),
        [
            (
                tier,
                _mbit(document["caps"][tier]["download_bps"]),
                _mbit(document["caps"][tier]["upload_bps"]),
                "command" if tier in set_now else "settings",
            )
            for tier in _TIERS
        ],
        empty="no caps",
    )
    if document["foreign"]:
        print_line(f"foreign networks that are served: {', '.join(document['foreign'])}")


def _rollout_caps(
    rollout: str, download_mbit: float | None, upload_mbit: float | None, *, as_json: bool
) -> None:
    body = {
        name: int(mbit * 1_000_000 / _BITS_PER_BYTE)
        for name, mbit in (("download_bps", download_mbit), ("upload_bps", upload_mbit))
        if mbit is not None
    }
    if not body:
        raise click.UsageError("--rollout needs --download-mbit, --upload-mbit or both")
    with connected() as client:
        document = client.put(path_of("rollouts", rollout, "caps"), body)
    if as_json:
        print_json(document)
    else:
        down, up = document["download_bps"], document["upload_bps"]
        print_line(f"{document['id']}: each node {_mbit(down)} down, {_mbit(up)} up")


def _mbit(rate_bps: int) -> str:
    return f"{rate_bps * _BITS_PER_BYTE / 1e6:g} Mbit/s" if rate_bps else "no cap"
