"""What the gateway takes and gives, as JSON."""

from __future__ import annotations

from typing import Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Field, FiniteFloat, model_validator

TEXT_CHARACTERS = 100_000  # a long document; more is no question
DIMENSIONS = 65_536  # above any embedding, below what a request may cost
RESULTS = 1000
WAIT_SECONDS = 30.0  # a client that waits longer should ask again


class Query(BaseModel):
    """Either `text` or `vector`. `min_position` (32 hex digits): answer only once that is applied."""

    model_config = ConfigDict(extra="forbid")

    text: Annotated[str, Field(min_length=1, max_length=TEXT_CHARACTERS)] | None = None
    vector: Annotated[list[FiniteFloat], Field(min_length=1, max_length=DIMENSIONS)] | None = None
    k: int = Field(10, ge=1, le=RESULTS)
    min_position: Annotated[str, Field(pattern=r"^[0-9a-f]{32}$")] | None = None
    wait_seconds: float = Field(5.0, gt=0, le=WAIT_SECONDS)

    @model_validator(mode="after")
    def _one_question(self) -> Query:
        if (self.text is None) == (self.vector is None):
            raise ValueError("give either text or vector")
        return self


class Hit(BaseModel):
    """One record: its key, how near it is, the version the index holds, and its fields if they can be had."""

    key: dict[str, Any]
    score: float
    position: str
    vector: dict[str, int]
    row: dict[str, str] | None


class Hits(BaseModel):
    """Best first. `rows_error` says why rows lack their fields; `age_seconds` how old the index may be."""

    hits: list[Hit]
    rows_error: str | None = None
    position: str | None = None
    age_seconds: float | None = None


class Health(BaseModel):
    """`stale`: it answers, but is behind the objective."""

    status: Literal["ok", "stale", "down"]
    reason: str | None = None
    age_seconds: float | None = None


class StoreStats(BaseModel):
    """One store; `rows` is absent, never 0, when the store cannot be asked. Freshness is known of one's own store."""

    up: bool
    reason: str | None = None
    rows: dict[str, int] | None = None
    position: str | None = None
    fresh_until: float | None = None
    age_seconds: float | None = None


class Stats(BaseModel):
    """All stores this process can ask."""

    version: str
    stores: dict[str, StoreStats]
