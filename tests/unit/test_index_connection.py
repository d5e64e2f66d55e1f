"""A connection to the index's service is never used again at the moment the service gives it up."""

from __future__ import annotations

import uvicorn
from fastapi import FastAPI

from cdc.commands.index_client import IDLE_SECONDS


def test_the_client_lets_go_first() -> None:
    """Both at 5 s: a tenth of all questions that came every 5 s found a closed connection, and an index "down"."""
    assert uvicorn.Config(FastAPI()).timeout_keep_alive / 2 > IDLE_SECONDS
