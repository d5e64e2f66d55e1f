"""What `POST /search` takes, as JSON: the question, and the conditions that hits have to fulfil."""

from __future__ import annotations

from typing import Annotated

from pydantic import BaseModel, ConfigDict, Field, FiniteFloat, StrictBool, StrictInt, model_validator

from consumers.conditions import Condition, Kind, Scalar, Where

TEXT_CHARACTERS = 100_000  # a long document; more is no question
DIMENSIONS = 65_536  # above any embedding, below what a request may cost
RESULTS = 1000
WAIT_SECONDS = 30.0  # a client that waits longer should ask again
COLUMNS = 16  # in one filter
VALUES = 1000  # of one column
CHARACTERS = 1000  # of one value

Text = Annotated[str, Field(max_length=CHARACTERS)]
Value = StrictBool | StrictInt | Annotated[FiniteFloat, Field(strict=True)] | Text


class Bounds(BaseModel):
    """All of what is given has to hold; `in`: one of these."""

    model_config = ConfigDict(extra="forbid")

    among: list[Value] | None = Field(None, alias="in", min_length=1, max_length=VALUES)
    gt: Value | None = None
    gte: Value | None = None
    lt: Value | None = None
    lte: Value | None = None

    @model_validator(mode="after")
    def _says_something(self) -> Bounds:
        if not self.condition().operands:
            raise ValueError("give at least one of in, gt, gte, lt and lte")
        return self

    def condition(self) -> Condition:
        """The same for the index."""
        among: tuple[Scalar, ...] | None = None if self.among is None else tuple(self.among)
        return Condition(among, self.gt, self.gte, self.lt, self.lte)


Name = Annotated[str, Field(min_length=1, max_length=63)]  # as long as PostgreSQL's


class Query(BaseModel):
    """Either `text` or `vector`. `filter`: by column a value, null, or bounds; all have to hold. `min_position` (32 hex
    digits): answer only once that is applied."""

    model_config = ConfigDict(extra="forbid")

    text: Annotated[str, Field(min_length=1, max_length=TEXT_CHARACTERS)] | None = None
    vector: Annotated[list[FiniteFloat], Field(min_length=1, max_length=DIMENSIONS)] | None = None
    k: int = Field(10, ge=1, le=RESULTS)
    filter: dict[Name, Value | Bounds | None] = Field({}, max_length=COLUMNS)
    min_position: Annotated[str, Field(pattern=r"^[0-9a-f]{32}$")] | None = None
    wait_seconds: float = Field(5.0, gt=0, le=WAIT_SECONDS)

    @model_validator(mode="after")
    def _one_question(self) -> Query:
        if (self.text is None) == (self.vector is None):
            raise ValueError("give either text or vector")
        return self


class IndexQuery(Query):
    """What the gateway asks the index. `kinds`: how PostgreSQL compares columns, as far as that is known."""

    kinds: dict[str, Kind] = {}

    def where(self) -> Where | None:
        """None without a filter."""
        conditions = {name: _condition(asked) for name, asked in self.filter.items()}
        return Where(conditions, self.kinds) if conditions else None


def _condition(asked: Value | Bounds | None) -> Condition:
    if isinstance(asked, Bounds):
        return asked.condition()
    return Condition(null=True) if asked is None else Condition((asked,))
