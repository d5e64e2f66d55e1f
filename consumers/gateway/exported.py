"""What GET /stats tells, as metrics: taken whenever it is asked, and by the gateway itself every now and then.

A place that is down has no count, and neither has a table that is gone: its series ends, and is never 0.
"""

from __future__ import annotations

import time
from collections.abc import Iterable, Mapping
from typing import TYPE_CHECKING

from prometheus_client import Gauge

from cdc import metrics

if TYPE_CHECKING:
    from consumers.gateway.stats import Stats


def export(stats: Stats) -> None:
    """Sets every gauge of the gateway's counts."""
    places = {"postgres": stats.source, **stats.stores}
    _set(metrics.GATEWAY_UP, {(name,): float(place.up) for name, place in places.items()})
    rows: dict[tuple[str, ...], float] = {}
    rows |= {(n, t): float(c.records) for n, place in places.items() for t, c in (place.tables or {}).items()}
    _set(metrics.GATEWAY_ROWS, rows)
    beyond: dict[tuple[str, ...], float] = {}
    for name, store in stats.stores.items():
        beyond |= {(name, table): float(number) for table, number in (store.unexplained or {}).items()}
    _set(metrics.GATEWAY_UNEXPLAINED, beyond)
    metrics.GATEWAY_DEGRADED.set(stats.status == "degraded")
    metrics.GATEWAY_COUNTED.set(time.time())


def _set(gauge: Gauge, values: Mapping[tuple[str, ...], float]) -> None:
    for labels in _known(gauge) - values.keys():
        gauge.remove(*labels)
    for labels, value in values.items():
        gauge.labels(*labels).set(value)


def _known(gauge: Gauge) -> set[tuple[str, ...]]:
    samples: Iterable[Mapping[str, str]] = (sample.labels for family in gauge.collect() for sample in family.samples)
    return {tuple(labels.values()) for labels in samples}
