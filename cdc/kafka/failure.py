"""Turns what aiokafka raises into one sentence of ours with its remedy; why it takes no connection is `cdc.refusal`."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

from aiokafka import errors as kafka_errors

from cdc.config import Kafka
from cdc.errors import CdcError, ConnectError, FencedError, PreconditionError
from cdc.refusal import CONNECT_SECONDS as CONNECT_SECONDS
from cdc.refusal import chain, denied, find
from cdc.refusal import explain as explain

_FENCED = (kafka_errors.ProducerFenced, kafka_errors.InvalidProducerEpoch)


def typed(error: BaseException, kafka: Kafka, doing: str) -> CdcError:
    """Our error for one of aiokafka's; `doing` completes "Kafka at … failed while …"."""
    where = f"Kafka at {kafka.bootstrap}"
    if find(error, _FENCED):
        return FencedError(
            f"{where}: another writer with the same source name took over while {doing}",
            hint="run one reader a source; stop this one, or give it another source_name and prefix",
        )
    if refused := denied(error, kafka, doing):
        return refused
    if find(error, (kafka_errors.InvalidTransactionTimeout,)):
        return PreconditionError(
            f"{where} refuses a transaction time-out of {kafka.transaction_timeout_seconds:g} s",
            hint="lower [kafka] transaction_timeout_seconds or raise the broker's transaction.max.timeout.ms",
        )
    if find(error, (TimeoutError, kafka_errors.KafkaTimeoutError)):
        return ConnectError(
            f"{where} did not answer in time while {doing}",
            hint="look whether all its brokers are up and min.insync.replicas are in sync; nothing is lost meanwhile",
        )
    cause = list(chain(error))[-1]
    return ConnectError(
        f"{where} failed while {doing}: {type(cause).__name__}", hint="look into the broker's log; it is tried again"
    )


@asynccontextmanager
async def bounded(kafka: Kafka, doing: str, seconds: float = CONNECT_SECONDS) -> AsyncIterator[None]:
    """Everything inside takes at most `seconds`, and fails with an error of ours."""
    try:
        async with asyncio.timeout(seconds):
            yield
    except kafka_errors.KafkaConnectionError as error:
        raise await explain(kafka) from error
    except (kafka_errors.KafkaError, OSError, TimeoutError) as error:
        raise typed(error, kafka, doing) from error


async def start(client: Any, kafka: Kafka, doing: str) -> None:
    """Starts an aiokafka client within the bound; a client that fails to start has to be stopped by the caller."""
    async with bounded(kafka, doing):
        await client.start()
