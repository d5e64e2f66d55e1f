"""Structured logs for every process: one line an event, fields by fixed names, never a row's values.

Fields: `table`, `position`, `store`, `topic`, `count`, `seconds`, `reason`, `hint`. To stderr, so that a command's
own output stays clean; JSON when stderr is not a terminal. Messages of unforeseen errors and of other libraries may
quote values, so that of those only their kind and their place are shown.
"""

from __future__ import annotations

import logging
import sys
import traceback
from collections.abc import Iterator
from typing import Any

import structlog


class OthersFormatter(logging.Formatter):
    """What other libraries log: who, the sentence without what was filled in, and the places of an error."""

    def format(self, record: logging.LogRecord) -> str:
        """One line, and a traceback without messages."""
        text = f"{record.levelname.lower()} {record.name}: {str(record.msg).partition(chr(10))[0]}"
        error = record.exc_info[1] if record.exc_info else None
        return text if error is None else f"{text}\n{''.join(places(error))}".rstrip()


def places(error: BaseException) -> Iterator[str]:
    """A traceback that shows code and kinds of errors but no message."""
    cause = error.__cause__ or (None if error.__suppress_context__ else error.__context__)
    if cause is not None:
        yield from places(cause)
    for member in error.exceptions if isinstance(error, BaseExceptionGroup) else ():
        yield from places(member)
    yield from traceback.format_tb(error.__traceback__)
    yield f"{type(error).__module__}.{type(error).__qualname__}\n"


def origin(error: BaseException) -> BaseException:
    """What went wrong first: of a group its first member's."""
    return origin(error.exceptions[0]) if isinstance(error, BaseExceptionGroup) else error


def place(error: BaseException) -> str:
    """Where it was raised: `file:line`."""
    frames = traceback.extract_tb(error.__traceback__)
    return f"{frames[-1].filename}:{frames[-1].lineno}" if frames else "nowhere"


def configure(process: str, *, verbose: bool = False, quiet: bool = False) -> None:
    """Call once at the start of a process; `process` names it in every line. `quiet`: warnings and worse only."""
    logging.getLogger("aiokafka").setLevel(logging.CRITICAL)  # what it logs, its errors say too, and ours say better
    others = logging.StreamHandler(sys.stderr)
    others.setFormatter(OthersFormatter())
    logging.basicConfig(handlers=[others], level=logging.WARNING)  # nothing when there are handlers already
    terminal = sys.stderr.isatty()
    renderer: Any = structlog.dev.ConsoleRenderer() if terminal else structlog.processors.JSONRenderer()
    structlog.configure(
        processors=[
            structlog.contextvars.merge_contextvars,
            structlog.processors.add_log_level,
            structlog.processors.TimeStamper(fmt="iso", utc=True),
            renderer,
        ],
        wrapper_class=structlog.make_filtering_bound_logger(10 if verbose else 30 if quiet else 20),
        logger_factory=structlog.WriteLoggerFactory(file=sys.stderr),
    )
    structlog.contextvars.bind_contextvars(process=process)


def verbose() -> bool:
    """Whether details are logged: what costs something to put together is only then."""
    return bool(structlog.get_logger().bind().is_enabled_for(logging.DEBUG)) if structlog.is_configured() else False


def get(name: str) -> Any:
    """A logger; `name` is the module's."""
    return structlog.get_logger(module=name)
