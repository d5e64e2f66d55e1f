"""What the gateway speaks for: the index of this process, and the records' fields in working memory."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from cdc.config import Config
from cdc.errors import CdcError
from consumers.faiss import FaissStore
from consumers.faiss.store import table_of
from consumers.gateway.app import Found, Parts
from consumers.redis import RedisStore, keys_for
from consumers.redis.rows import STALE
from consumers.runtime import Runtime
from consumers.store import Version


class IndexSearch:
    """The index as the gateway asks it: one question, a text or a vector."""

    def __init__(self, store: FaissStore) -> None:
        self._store = store

    async def search(self, query: str | Sequence[float], k: int) -> Sequence[Found]:
        """The best `k`. Raises StoreError."""
        found = await self._store.find(query, k)
        return [Found(hit.key, hit.score, Version(hit.position, hit.vector)) for hit in found]


class MemoryRows:
    """The fields of records of the index's table, as working memory has them."""

    def __init__(self, config: Config, memory: RedisStore) -> None:
        self._config = config
        self._table = table_of(config)
        self._memory = memory

    async def __call__(self, keys: Sequence[bytes]) -> Sequence[Mapping[str, str] | None]:
        """None for a record that is not there. Raises ConnectError, StoreError."""
        commands = [("HGETALL", keys_for(self._config, *self._table, key)) for key in keys]
        replies = await self._memory.link.pipeline(commands)
        return [_fields(reply) for reply in replies]


def _fields(reply: object) -> Mapping[str, str] | None:
    """Our own fields begin with `_`, and only what tells that the row is outdated is shown; bytes that are no text (raw
    vectors) are of no use in JSON."""
    if isinstance(reply, CdcError):
        raise reply
    pairs = reply.items() if isinstance(reply, dict) else []
    fields: dict[str, str] = {}
    for name, value in pairs:
        try:
            if not name.startswith(b"_") or name == STALE.encode():
                fields[name.decode()] = value.decode()
        except UnicodeDecodeError:
            continue
    return fields or None


def parts(config: Config, store: FaissStore, memory: RedisStore, runtime: Runtime) -> Parts:
    """Everything the gateway answers from."""
    return Parts(
        store=store.name,
        index=IndexSearch(store),
        freshness=runtime.freshness,
        objective_seconds=config.freshness.objective_seconds,
        wait_for=runtime.wait_for,
        tables=lambda: [table_of(config)],
        counts={store.name: store, memory.name: memory},
        rows=MemoryRows(config, memory),
        vector_of=store.vector_of,
    )
