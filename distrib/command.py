"""How every command of distrib and of the agent is found, and how it ends.

One line and an exit status, never a traceback; with ``--json`` among the arguments an error is an
object on standard output (docs/formats/exit-codes.md). Modules of commands are imported when they
are called: ``--help`` and a hook must not wait for the libraries of a service.
"""

from __future__ import annotations

import importlib
import json
import os
import sys
import tempfile
import traceback
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import ClassVar, NoReturn

import click

from distrib.errors import DistribError, ExitStatus, OperatorError, TrustRefused
from distrib.printable import printable

INTERRUPTED = 130


@dataclass(frozen=True)
class Lazy:
    """A command that is imported when it is called: ``attribute`` of ``module``."""

    module: str
    attribute: str
    help: str


class Interrupted(Exception):
    """Ctrl-C. click would end the line on standard error, and so break the quiet of scripts."""


class ReaderGone(Exception):
    """Nobody reads our output any more. click would call that a failure."""


class LazyGroup(click.Group):
    """Knows its commands by name, and imports the one that is called."""

    commands_by_name: ClassVar[Mapping[str, Lazy]] = {}

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
        return list(self.commands_by_name)

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:
        """Import the command; None for a name that there is not."""
        lazy = self.commands_by_name.get(cmd_name)
        if lazy is None:
            return None
        command: click.Command = getattr(importlib.import_module(lazy.module), lazy.attribute)
        return command

    def format_commands(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        """The list in ``--help``, without importing anything."""
        with formatter.section("Commands"):
            formatter.write_dl([(name, one.help) for name, one in self.commands_by_name.items()])


def run(group: click.Group, *, name: str, arguments: Sequence[str] | None = None) -> NoReturn:
    """Run the command of ``arguments`` (default: the process's) and exit with its status."""
    given = list(sys.argv[1:] if arguments is None else arguments)
    sys.exit(_run(group, name, given))


def _run(group: click.Group, name: str, arguments: list[str]) -> int:
    # What follows -- is a job's.
    own = arguments[: arguments.index("--")] if "--" in arguments else arguments
    as_json = "--json" in own
    try:
        status = group.main(arguments, prog_name=name, standalone_mode=False)
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
        return _fail(name, _ours(error), as_json=as_json)


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
                stream.write(f"distrib {product_version()} {sys.argv[1:2]}\n{text}\n")
        except OSError:
            continue
        return file
    return Path(os.devnull)


def _fail(name: str, error: DistribError, *, as_json: bool) -> int:
    if as_json:
        click.echo(json.dumps({"error": error.as_dict()}))
        return error.exit_status
    hint = f" ({error.hint})" if error.hint else ""
    reasons = error.reasons if isinstance(error, TrustRefused) else ()
    rows = [f"{reason['code']}: {reason['message']}" for reason in reasons]
    message = error.message
    if len(rows) > 1:
        # The message names them all in one line; here each has its own.
        message = message.removesuffix("; ".join(rows)).rstrip(": ")
    click.echo(printable(f"{name}: {message}{hint}"), err=True)
    for row, reason in zip(rows, reasons, strict=True) if len(rows) > 1 else ():
        what_to_do = f" ({reason['hint']})" if reason.get("hint") else ""
        click.echo(printable(f"  {row}{what_to_do}"), err=True)
    return error.exit_status


def product_version() -> str:
    """The version of the installed package."""
    try:
        return version("distrib")
    except PackageNotFoundError:
        return "unknown"
