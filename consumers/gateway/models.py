"""What a search gives, and what the index's service tells the gateway, as JSON."""

from __future__ import annotations

from typing import Any, Literal

from pydantic import BaseModel


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
