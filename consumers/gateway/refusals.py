"""How a request is refused: with a reason, and never with the input, which may hold a row's value or NaN."""

from __future__ import annotations

from collections.abc import Awaitable, Callable

from fastapi import Request
from fastapi.exceptions import RequestValidationError
from fastapi.responses import JSONResponse
from pydantic import BaseModel
from starlette.exceptions import HTTPException

from cdc.errors import CdcError, ConfigError, DecodeError, PreconditionError

ASKED_WRONGLY = (ConfigError, DecodeError, PreconditionError)  # what a request names does not fit; all else is a server


class Fault(BaseModel):
    """One field and the rule it breaks."""

    loc: list[str | int]
    msg: str
    type: str


class Refusal(BaseModel):
    """Why: a sentence with its remedy, or each field that is wrong."""

    detail: str | list[Fault]


async def malformed(_request: Request, error: Exception) -> JSONResponse:
    """422 with each field and its rule."""
    found = error.errors() if isinstance(error, RequestValidationError) else []
    return JSONResponse({"detail": [{"loc": e["loc"], "msg": e["msg"], "type": e["type"]} for e in found]}, 422)


async def refused(_request: Request, error: Exception) -> JSONResponse:
    """422 for what was asked wrongly, 503 for a server that cannot answer; the sentence with its remedy."""
    return JSONResponse({"detail": str(error)}, 422 if isinstance(error, ASKED_WRONGLY) else 503)


async def answered(_request: Request, error: Exception) -> JSONResponse:
    """As it was raised; but a body whose bytes are no text is 422 as any malformed one, where FastAPI says 400."""
    assert isinstance(error, HTTPException)
    code = 422 if error.status_code == 400 else error.status_code
    return JSONResponse({"detail": error.detail}, code, headers=dict(error.headers or {}))


Handler = Callable[[Request, Exception], Awaitable[JSONResponse]]
ANSWERS: dict[int | str, dict[str, type[BaseModel]]] = {422: {"model": Refusal}, 503: {"model": Refusal}}
HANDLERS: dict[type[Exception], Handler] = {
    RequestValidationError: malformed,
    CdcError: refused,
    HTTPException: answered,
}
