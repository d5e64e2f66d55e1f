"""What a search takes and gives, and what the index's service tells the gateway, as JSON."""

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


class IndexHit(BaseModel):
    """One record: its key as the topics have it and decoded, how near it is, the version the index holds."""

    topic_key: str
    key: dict[str, Any]
    score: float
    position: str
    vector: dict[str, int]


class IndexHits(BaseModel):
    """Best first. `position` and `age_seconds` say how far the index is."""

    hits: list[IndexHit]
    position: str | None = None
    age_seconds: float | None = None


class Health(BaseModel):
    """`stale`: it answers, but is behind the objective."""

    status: Literal["ok", "stale", "down"]
    reason: str | None = None
    age_seconds: float | None = None


class Figures(BaseModel):
    """The index at one moment. `records` are live, `vectors` of them have one; `rejected` ones wait as dead letters.

    `dead` is a share of the index's slots; `memory_bytes` is without Python's overhead, `disk_bytes` all snapshots'."""

    table: str
    kind: str
    dimension: int | None
    records: int
    vectors: int
    rejected: int
    tombstones: int
    dead: float
    memory_bytes: int
    disk_bytes: int


class IndexStats(BaseModel):
    """`figures` are absent, never 0, when the index cannot be asked. `offsets`: topic, partition, next offset."""

    up: bool
    reason: str | None = None
    figures: Figures | None = None
    position: str | None = None
    fresh_until: float | None = None
    age_seconds: float | None = None
    offsets: list[tuple[str, int, int]] = []
