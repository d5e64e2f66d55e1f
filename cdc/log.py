"""Structured logs for every process: one line an event, fields by fixed names, never a row's values.

Fields: `table`, `position`, `store`, `topic`, `count`, `seconds`, `reason`, `hint`. To stderr, so that a command's
own output stays clean; JSON when stderr is not a terminal.
"""

from __future__ import annotations

import logging
import sys
from typing import Any

import structlog


def configure(process: str, *, verbose: bool = False, quiet: bool = False) -> None:
    """Call once at the start of a process; `process` names it in every line. `quiet`: warnings and worse only."""
    logging.getLogger("aiokafka").setLevel(logging.CRITICAL)  # what it logs, its errors say too, and ours say better
    terminal = sys.stderr.isatty()
    renderer: Any = structlog.dev.ConsoleRenderer() if terminal else structlog.processors.JSONRenderer()
    structlog.configure(
        processors=[
            structlog.contextvars.merge_contextvars,
            structlog.processors.add_log_level,
            structlog.processors.TimeStamper(fmt="iso", utc=True),
            structlog.processors.format_exc_info,
            renderer,
        ],
        wrapper_class=structlog.make_filtering_bound_logger(10 if verbose else 30 if quiet else 20),
        logger_factory=structlog.WriteLoggerFactory(file=sys.stderr),
    )
    structlog.contextvars.bind_contextvars(process=process)


def get(name: str) -> Any:
    """A logger; `name` is the module's."""
    return structlog.get_logger(module=name)
