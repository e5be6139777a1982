"""The log of a service: JSON lines for machines, readable lines on a terminal; never a secret.

Everything goes one way, structlog's own lines and those of libraries that use ``logging``. A
DistribError among the fields of a line is written with its code, hint and ids.
"""

from __future__ import annotations

import logging
import sys
from pathlib import Path
from typing import TextIO

import structlog
from structlog.typing import EventDict, Processor, WrappedLogger

from distrib.errors import DistribError
from distrib.printable import printable

SECRET_WORDS = ("token", "password", "secret", "authorization")
HIDDEN = "(hidden)"

# What they say below a warning is of use to their own authors.
_QUIET = ("aiomqtt", "mqtt", "asyncio", "alembic", "uvicorn", "httpx", "paramiko", "sqlalchemy")


def configure(*, level: str = "info", file: Path | None = None) -> None:
    """Set up the log of this process, on standard error or appended to ``file``.

    ``level`` is the least severe that is written: debug, info, warning, error.
    """
    stream: TextIO = sys.stderr
    if file is not None:
        file.parent.mkdir(parents=True, exist_ok=True)
        stream = file.open("a", encoding="utf-8", buffering=1)
    shared: list[Processor] = [
        structlog.contextvars.merge_contextvars,
        structlog.processors.add_log_level,
        structlog.processors.TimeStamper(fmt="iso", utc=True),
        name_errors,
        hide_secrets,
    ]
    human = stream.isatty()
    last: list[Processor] = (
        [make_printable, structlog.dev.ConsoleRenderer()]
        if human
        else [structlog.processors.format_exc_info, structlog.processors.JSONRenderer(default=str)]
    )
    structlog.configure(
        processors=[*shared, structlog.stdlib.ProcessorFormatter.wrap_for_formatter],
        wrapper_class=structlog.make_filtering_bound_logger(_number(level)),
        logger_factory=structlog.stdlib.LoggerFactory(),
        cache_logger_on_first_use=False,
    )
    handler = logging.StreamHandler(stream)
    handler.setFormatter(
        structlog.stdlib.ProcessorFormatter(
            foreign_pre_chain=shared,
            processors=[structlog.stdlib.ProcessorFormatter.remove_processors_meta, *last],
        )
    )
    root = logging.getLogger()
    root.handlers = [handler]
    root.setLevel(_number(level))
    for name in _QUIET:
        logging.getLogger(name).setLevel(logging.WARNING)


def name_errors(_logger: WrappedLogger, _method: str, event: EventDict) -> EventDict:
    """Write a DistribError as code, message, hint and ids."""
    for key, value in list(event.items()):
        if isinstance(value, DistribError):
            if key == "exc_info":
                event["error"] = value.as_dict()
            else:
                event[key] = value.as_dict()
    return event


def hide_secrets(_logger: WrappedLogger, _method: str, event: EventDict) -> EventDict:
    """A field that is called like a secret is not written."""
    for key in event:
        if any(word in key.lower() for word in SECRET_WORDS):
            event[key] = HIDDEN
    return event


def make_printable(_logger: WrappedLogger, _method: str, event: EventDict) -> EventDict:
    """What strangers put into a field does nothing to a terminal, and adds no line to the log."""
    for key, value in event.items():
        if key not in {"exc_info", "exception", "stack_info"} and not _is_plain(value):
            event[key] = printable(value)
    return event


def _is_plain(value: object) -> bool:
    return value is None or isinstance(value, bool | int | float)


def _number(level: str) -> int:
    return logging.getLevelNamesMapping()[level.upper()]
