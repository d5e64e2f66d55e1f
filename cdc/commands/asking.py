"""Running a command's coroutine: clients' own errors leave as one sentence of ours."""

from __future__ import annotations

import asyncio
from collections.abc import Coroutine
from typing import TYPE_CHECKING, TypeVar

if TYPE_CHECKING:
    from cdc.config import Config

T = TypeVar("T")


def ask(config: Config, work: Coroutine[object, object, T]) -> T:
    """The coroutine's result. Raises CdcError."""
    from cdc import log

    log.configure("cdc", quiet=True)
    _quiet()
    return asyncio.run(translated(config, work))


async def translated(config: Config, work: Coroutine[object, object, T]) -> T:
    """The coroutine's result, in whatever loop. Raises CdcError."""
    import redis.exceptions
    from aiokafka.errors import KafkaConnectionError, KafkaError

    from cdc.errors import ConnectError
    from cdc.kafka import failure

    try:
        return await work
    except KafkaConnectionError as error:
        raise await failure.explain(config.kafka) from error
    except KafkaError as error:
        raise failure.typed(error, config.kafka, "answering this command") from error
    except redis.exceptions.RedisError as error:
        raise ConnectError(f"Redis: {type(error).__name__}", hint="run `cdc doctor`") from error


def _quiet() -> None:
    """The client libraries log every failed attempt; the error that follows says it once, with the remedy."""
    import logging

    for name in ("aiokafka", "httpx", "asyncio"):
        logging.getLogger(name).setLevel(logging.CRITICAL)
