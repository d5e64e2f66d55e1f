"""How a request is refused: with a reason, and never with the input, which may hold a row's value or NaN."""

from __future__ import annotations

from fastapi import Request
from fastapi.exceptions import RequestValidationError
from fastapi.responses import JSONResponse

from cdc.errors import CdcError, ConfigError, DecodeError, PreconditionError

ASKED_WRONGLY = (ConfigError, DecodeError, PreconditionError)  # what a request names does not fit; all else is a server


async def malformed(_request: Request, error: Exception) -> JSONResponse:
    """422 with each field and its rule."""
    found = error.errors() if isinstance(error, RequestValidationError) else []
    return JSONResponse({"detail": [{"loc": e["loc"], "msg": e["msg"], "type": e["type"]} for e in found]}, 422)


async def refused(_request: Request, error: Exception) -> JSONResponse:
    """422 for what was asked wrongly, 503 for a server that cannot answer; the sentence with its remedy."""
    return JSONResponse({"detail": str(error)}, 422 if isinstance(error, ASKED_WRONGLY) else 503)


HANDLERS = {RequestValidationError: malformed, CdcError: refused}
