"""The demo, step by step:

    (1) write     thousands of texts in bulk, watched until every store holds them
    (2) find      a sentence just committed, by a question in other words
    (3) trickle   inserts, updates and deletes one by one, each waited for in both stores
    (4) one row   the same record in three places, with its versions
    (5) kill      a consumer, while writing goes on
    (6) rebuild   the index by replay, after its folder was deleted, while searches go on
    (7) compare   all stores with PostgreSQL, key by key

Nothing is believed: every step ends when the stores themselves show it, or raises a CdcError.
"""

from __future__ import annotations

from collections.abc import Sequence

import httpx
import psycopg
from aiokafka.errors import KafkaError
from redis.exceptions import RedisError

from cdc.demo.mending import compare, kill, rebuild
from cdc.demo.rig import Rig
from cdc.demo.screen import Screen
from cdc.demo.stage import on_stage
from cdc.demo.summary import Summary
from cdc.demo.texts import Text
from cdc.demo.writing import find, one_row, trickle, write
from cdc.errors import ConnectError

STEPS = (write, find, trickle, one_row, kill, rebuild, compare)


async def tell(rig: Rig, texts: Sequence[Text], summary: Summary, screen: Screen) -> None:
    """All steps; what they find goes into `summary`."""
    try:
        async with on_stage(rig, texts, summary, screen) as stage:
            for step in STEPS:
                await step(stage)
    except (psycopg.Error, httpx.HTTPError, RedisError, KafkaError) as error:
        reason = str(error).partition("\n")[0]  # PostgreSQL's further lines hold values of rows
        raise ConnectError(f"a server failed: {type(error).__name__}: {reason}", hint="see its log") from error
