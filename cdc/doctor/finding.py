"""What a check says."""

from __future__ import annotations

from typing import Literal, NamedTuple

Level = Literal["ok", "warning", "error"]


class Finding(NamedTuple):
    """`text` is one sentence; `remedy` what to do about it, empty when all is well."""

    area: str
    level: Level
    text: str
    remedy: str = ""


def ok(area: str, text: str) -> Finding:
    """As it has to be."""
    return Finding(area, "ok", text)


def warning(area: str, text: str, remedy: str) -> Finding:
    """It works, and may hurt later."""
    return Finding(area, "warning", text, remedy)


def error(area: str, text: str, remedy: str) -> Finding:
    """The pipeline does not start, or loses something."""
    return Finding(area, "error", text, remedy)
