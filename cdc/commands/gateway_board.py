"""What the status page shows beside the counts: what the processes tell, and what the last verifies found."""

from __future__ import annotations

import asyncio
import math
from collections.abc import Sequence

from cdc.commands.addresses import metrics_address
from cdc.commands.exposition import read_samples, total
from cdc.commands.gateway_control import keep
from cdc.config import Config
from cdc.control import verify_runs
from consumers.gateway.history import Process
from consumers.gateway.overview import Verified

ANSWER_SECONDS = 3.0  # a healthy process answers in milliseconds


class ProcessBoard:
    """Fills Board and Comparisons of consumers.gateway. Raises ConnectError, StoreError."""

    def __init__(self, config: Config) -> None:
        self._config = config

    async def process(self, name: str) -> Process:
        """By its metrics."""
        samples = await read_samples(metrics_address(self._config, name), ANSWER_SECONDS)
        if name == "reader":
            return Process(records=total(samples, "cdc_reader_records_total") or 0.0)
        letters = total(samples, "cdc_store_open_letters", store=name)
        oldest = total(samples, "cdc_store_oldest_letter_timestamp_seconds", store=name)
        return Process(
            records=total(samples, "cdc_store_records_total", store=name) or 0.0,
            open_letters=None if letters is None else int(letters),
            oldest_letter=None if oldest is None or math.isnan(oldest) else oldest,
        )

    async def newest(self) -> Sequence[Verified]:
        """Of each store and table."""
        found = await asyncio.to_thread(keep, self._config, verify_runs.newest)
        return [_verified(run) for run in found]


def _verified(run: verify_runs.VerifyRun) -> Verified:
    return Verified(
        store=run.store,
        table=run.table,
        ended_at=run.ended_at,
        equal=run.equal,
        failed=run.error is not None,
        rows=run.rows,
        share=run.share,
        missing=run.missing,
        extra=run.extra,
        stale=run.stale,
        different=run.different,
        unsettled=run.unsettled,
    )
