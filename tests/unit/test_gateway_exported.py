"""What /stats tells as metrics: a place that is down has no count, and never 0."""

from __future__ import annotations

from prometheus_client import Gauge

from cdc import metrics
from consumers.gateway.exported import export
from consumers.gateway.parts import Counts
from consumers.gateway.stats import SourceStats, Stats, StoreStats

TABLE = "public.memories"


def stats(redis: int | None, unexplained: int | None = None) -> Stats:
    """Of a source with 1,095 rows; None: Redis is down."""
    tables = None if redis is None else {TABLE: Counts(records=redis)}
    store = StoreStats(up=redis is not None, tables=tables, counted_at=1.0, counted_age_seconds=0.0)
    store.unexplained = None if unexplained is None else {TABLE: unexplained}
    source = SourceStats(up=True, tables={TABLE: Counts(records=1095)}, counted_at=1.0, counted_age_seconds=0.0)
    status = "ok" if redis == 1095 else "degraded"
    return Stats.model_construct(status=status, reasons=[], source=source, stores={"redis": store})


def values(gauge: Gauge) -> dict[tuple[str, ...], float]:
    return {tuple(s.labels.values()): s.value for family in gauge.collect() for s in family.samples}


def test_a_store_that_is_down_has_no_count() -> None:
    export(stats(1095, 0))
    assert values(metrics.GATEWAY_ROWS) == {("postgres", TABLE): 1095, ("redis", TABLE): 1095}
    assert values(metrics.GATEWAY_UNEXPLAINED) == {("redis", TABLE): 0}
    assert values(metrics.GATEWAY_DEGRADED) == {(): 0}
    export(stats(None))
    assert values(metrics.GATEWAY_ROWS) == {("postgres", TABLE): 1095}
    assert values(metrics.GATEWAY_UNEXPLAINED) == {}
    assert values(metrics.GATEWAY_UP) == {("postgres",): 1, ("redis",): 0}
    assert values(metrics.GATEWAY_DEGRADED) == {(): 1}


def test_an_empty_store_is_not_a_store_that_is_down() -> None:
    export(stats(0, 1095))
    assert values(metrics.GATEWAY_ROWS)["redis", TABLE] == 0
    assert values(metrics.GATEWAY_UNEXPLAINED) == {("redis", TABLE): 1095}
