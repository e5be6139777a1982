"""How every command of distrib and of the agent ends: one line, an exit code, no traceback.

``run`` wraps a click group. With ``--json`` among the arguments an error is an object on standard
output (docs/formats/exit-codes.md).
"""

from __future__ import annotations

import json
import os
import sys
import traceback
from collections.abc import Sequence
from typing import NoReturn

import click

from distrib.errors import DistribError, ExitStatus, TrustRefused

INTERRUPTED = 130
DEBUG_VARIABLE = "DISTRIB_DEBUG"


def run(group: click.Group, *, name: str, arguments: Sequence[str] | None = None) -> NoReturn:
    """Run a command line and exit the process."""
    given = list(sys.argv[1:] if arguments is None else arguments)
    try:
        status = group.main(given, prog_name=name, standalone_mode=False)
    except DistribError as error:
        _tell(name, error, as_json="--json" in given)
        sys.exit(int(error.exit_status))
    except click.exceptions.Exit as error:
        sys.exit(error.exit_code)
    except click.ClickException as error:
        _tell_usage(name, error, as_json="--json" in given)
        sys.exit(int(ExitStatus.USAGE))
    except (click.Abort, KeyboardInterrupt):
        sys.exit(INTERRUPTED)
    except BrokenPipeError:
        # The reader of the pipe has gone; flushing at exit must not complain either.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        sys.exit(int(ExitStatus.DONE))
    except Exception as error:  # noqa: BLE001
        _tell_bug(name, error, as_json="--json" in given)
        sys.exit(int(ExitStatus.BUG))
    sys.exit(status if isinstance(status, int) else int(ExitStatus.DONE))


def printable(text: str) -> str:
    """``text`` without what would steer a terminal: data comes from lists that others wrote."""
    return "".join(char if char.isprintable() else "\N{REPLACEMENT CHARACTER}" for char in text)


def _tell(name: str, error: DistribError, *, as_json: bool) -> None:
    if as_json:
        click.echo(json.dumps({"error": error.as_dict()}, indent=2))
        return
    hint = f" ({printable(error.hint)})" if error.hint else ""
    click.echo(f"{name}: {printable(error.message)}{hint}", err=True)
    if isinstance(error, TrustRefused):
        for reason in error.reasons:
            click.echo(f"  {reason['code']}: {printable(reason['message'])}", err=True)


def _tell_usage(name: str, error: click.ClickException, *, as_json: bool) -> None:
    usage = DistribError(error.format_message(), hint=f"{name} --help")
    usage.code, usage.exit_status = "usage", ExitStatus.USAGE
    _tell(name, usage, as_json=as_json)


def _tell_bug(name: str, error: Exception, *, as_json: bool) -> None:
    if os.environ.get(DEBUG_VARIABLE):
        traceback.print_exception(error)
    bug = DistribError(
        f"{type(error).__name__}: {error}",
        hint=f"a bug: {DEBUG_VARIABLE}=1 shows where; please report it",
    )
    _tell(name, bug, as_json=as_json)
