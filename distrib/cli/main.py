"""``distrib``: the commands of operators and endorsers."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import ClassVar, NoReturn

import click

from distrib.command import Lazy, LazyGroup, product_version, run


class Commands(LazyGroup):
    """All commands of ``distrib``, in the order in which they are used."""

    commands_by_name: ClassVar[Mapping[str, Lazy]] = {
        "list": Lazy("distrib.cli.lists", "lists", "Image lists: sign, verify, subscribe."),
        "image": Lazy("distrib.cli.image", "image", "Images: add, approve, deny, name."),
        "endorser": Lazy("distrib.cli.endorser", "endorser", "Who may sign which image list."),
        "node": Lazy("distrib.cli.node", "node", "The inventory of worker nodes."),
        "rollout": Lazy("distrib.cli.rollout", "rollout", "Bring an image to nodes; watch it."),
        "token": Lazy("distrib.cli.token", "token", "Tokens of the API."),
        "audit": Lazy("distrib.cli.audit", "audit", "Who did what, and when."),
        "event": Lazy("distrib.cli.events", "event", "Event handlers: what they were told."),
        "tsunami": Lazy("distrib.cli.tsunami", "tsunami", "Files to hosts that have only sshd."),
        "serve-pieces": Lazy(
            "distrib.cli.serve_pieces", "serve_pieces", "The one command of nodes' keys."
        ),
        "torrent": Lazy("distrib.cli.torrent", "torrent", "Torrents: make one, export one."),
        "swarm": Lazy("distrib.cli.swarm", "swarm", "Who fetches from whom; how it goes."),
        "up": Lazy("distrib.cli.services", "up", "Broker, controller and seeder, here."),
        "controller": Lazy("distrib.cli.services", "controller", "Run the controller."),
        "seeder": Lazy("distrib.cli.services", "seeder", "Run a seeder."),
        "testpki": Lazy("distrib.cli.testpki", "testpki", "Certificates for demos and tests."),
    }


@click.command(
    cls=Commands,
    context_settings={"help_option_names": ["-h", "--help"]},
    epilog="Exit: 0 done, 1 bug, 2 usage, 3 trust refused, 4 not found, 5 no space,"
    " 6 unreachable, 7 time-out, 8 some nodes failed, 9 forbidden.",
)
@click.option(
    "--config",
    type=click.Path(path_type=Path, dir_okay=False),
    help="Settings of the client; $DISTRIB_CONFIG, or ~/.config/distrib/client.toml.",
)
@click.version_option(product_version(), prog_name="distrib", message="%(prog)s %(version)s")
@click.pass_context
def cli(ctx: click.Context, config: Path | None) -> None:
    """Trusted VM images on every worker node of a batch farm."""
    ctx.obj = config


def main(arguments: Sequence[str] | None = None) -> NoReturn:
    """Entry point."""
    run(cli, name="distrib", arguments=arguments)


if __name__ == "__main__":
    main()
