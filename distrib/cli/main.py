"""``distrib``: finds the command, and turns every failure into one line and an exit status.

Modules of commands are imported when they are called: ``distrib --help`` must not wait for the
libraries of a service (docs/formats/exit-codes.md has the statuses).
"""

from __future__ import annotations

import importlib
import json
import os
import sys
import tempfile
import traceback
from collections.abc import Sequence
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

import click

from distrib.cli.printable import printable
from distrib.errors import DistribError, ExitStatus, OperatorError, TrustRefused

INTERRUPTED = 130

# name: module, attribute, what it is for
COMMANDS: dict[str, tuple[str, str, str]] = {
    "list": ("distrib.cli.lists", "lists", "Image lists: sign, verify, subscribe."),
    "image": ("distrib.cli.image", "image", "Images of the site: add, approve, deny, name."),
    "endorser": ("distrib.cli.endorser", "endorser", "Who may sign which image list."),
    "node": ("distrib.cli.node", "node", "The inventory of worker nodes."),
    "rollout": ("distrib.cli.rollout", "rollout", "Bring an image to nodes, and watch it."),
    "token": ("distrib.cli.token", "token", "Tokens of the API."),
    "audit": ("distrib.cli.audit", "audit", "Who did what, and when."),
    "torrent": ("distrib.cli.torrent", "torrent", "Torrents, offline."),
    "up": ("distrib.cli.services", "up", "Broker, controller and seeder on this machine."),
    "controller": ("distrib.cli.services", "controller", "Run the controller."),
    "seeder": ("distrib.cli.services", "seeder", "Run a seeder."),
    "testpki": ("distrib.cli.testpki", "testpki", "Certificates for demos and tests."),
}


class Interrupted(Exception):
    """Ctrl-C. click would end the line on standard error, and so break the quiet of scripts."""


class ReaderGone(Exception):
    """Nobody reads our output any more. click would call that a failure."""


class LazyGroup(click.Group):
    """Knows its commands by name, and imports the one that is called."""

    def invoke(self, ctx: click.Context) -> object:
        """Run the command; what click has an opinion of is taken out of its sight."""
        try:
            return super().invoke(ctx)
        except KeyboardInterrupt:
            raise Interrupted from None
        except BrokenPipeError:
            raise ReaderGone from None

    def list_commands(self, ctx: click.Context) -> list[str]:
        """All names, in the order in which they are used."""
        return list(COMMANDS)

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:
        """Import the command; None for a name that there is not."""
        if cmd_name not in COMMANDS:
            return None
        module, attribute, _ = COMMANDS[cmd_name]
        command: click.Command = getattr(importlib.import_module(module), attribute)
        return command

    def format_commands(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        """The list in ``--help``, without importing anything."""
        with formatter.section("Commands"):
            formatter.write_dl([(name, text) for name, (_, _, text) in COMMANDS.items()])


def _print_version(ctx: click.Context, _param: click.Parameter, wanted: bool) -> None:
    if wanted:
        click.echo(f"distrib {_version()}")
        ctx.exit()


@click.command(
    cls=LazyGroup,
    context_settings={"help_option_names": ["-h", "--help"]},
    epilog="Exit: 0 done, 1 bug, 2 usage, 3 trust refused, 4 not found, 5 no space,"
    " 6 unreachable, 7 time-out, 8 some nodes failed, 9 forbidden.",
)
@click.option(
    "--config",
    type=click.Path(path_type=Path, dir_okay=False),
    help="Settings of the client; $DISTRIB_CONFIG, or ~/.config/distrib/client.toml.",
)
@click.option(
    "--version",
    is_flag=True,
    is_eager=True,
    expose_value=False,
    callback=_print_version,
    help="Print the version.",
)
@click.pass_context
def cli(ctx: click.Context, config: Path | None) -> None:
    """Trusted VM images on every worker node of a batch farm."""
    ctx.obj = config


def main(arguments: Sequence[str] | None = None) -> None:
    """Run the command of ``arguments`` (default: the process's) and exit with its status."""
    given = list(sys.argv[1:] if arguments is None else arguments)
    sys.exit(_run(given))


def _run(arguments: list[str]) -> int:
    as_json = "--json" in arguments
    try:
        status = cli.main(arguments, prog_name="distrib", standalone_mode=False)
        sys.stdout.flush()
        return status if isinstance(status, int) else 0
    except (click.Abort, Interrupted, KeyboardInterrupt):
        return INTERRUPTED
    except (ReaderGone, BrokenPipeError):
        # Whoever read our output has had enough. Python would complain when it flushes at exit.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 0
    except click.exceptions.NoArgsIsHelpError as error:
        click.echo(error.format_message(), err=True)
        return ExitStatus.USAGE
    except Exception as error:  # noqa: BLE001
        return _fail(_ours(error), as_json=as_json)


def _ours(error: Exception) -> DistribError:
    if isinstance(error, DistribError):
        return error
    return _usage_error(error) if isinstance(error, click.ClickException) else _bug(error)


def _usage_error(error: click.ClickException) -> OperatorError:
    hint = ""
    if isinstance(error, click.UsageError) and error.ctx is not None:
        hint = f"see {error.ctx.command_path} --help"
    return OperatorError(error.format_message().rstrip("."), hint=hint)


def _bug(error: Exception) -> DistribError:
    what = f"unexpected {type(error).__name__}: {error}"
    if os.environ.get("DISTRIB_DEBUG"):
        traceback.print_exception(error)
        return DistribError(what, hint="this is a bug: please report it")
    return DistribError(
        what,
        hint=f"this is a bug: {_keep_traceback(error)} has the traceback, or set DISTRIB_DEBUG=1",
    )


def _keep_traceback(error: Exception) -> Path:
    base = os.environ.get("XDG_STATE_HOME") or str(Path.home() / ".local" / "state")
    text = "".join(traceback.format_exception(error))
    for folder in (Path(base) / "distrib", Path(tempfile.gettempdir())):
        file = folder / "distrib-error.log"
        try:
            folder.mkdir(parents=True, exist_ok=True)
            with file.open("a", encoding="utf-8") as stream:
                stream.write(f"distrib {_version()} {sys.argv[1:2]}\n{text}\n")
        except OSError:
            continue
        return file
    return Path(os.devnull)


def _fail(error: DistribError, *, as_json: bool) -> int:
    if as_json:
        click.echo(json.dumps({"error": error.as_dict()}))
        return error.exit_status
    hint = f" ({error.hint})" if error.hint else ""
    click.echo(printable(f"distrib: {error.message}{hint}"), err=True)
    if isinstance(error, TrustRefused) and len(error.reasons) > 1:
        for reason in error.reasons:
            click.echo(printable(f"  {reason['code']}: {reason['message']}"), err=True)
    return error.exit_status


def _version() -> str:
    try:
        return version("distrib")
    except PackageNotFoundError:
        return "unknown"


if __name__ == "__main__":
    main()
