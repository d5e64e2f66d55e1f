"""Redis as a Store: batches go through apply.lua, which moves the sentinel in the same step.

Durability: data and offsets are one step for the server, so its AOF and its snapshots hold both or neither. What the
server loses in a crash (appendfsync) it loses with its offsets: `check` and the next `apply` then raise StoreLost,
`open` returns the older offsets, and the missing records are replayed. Hence `flush` has nothing to wait for.
A FLUSHALL, a swapped database and a failover to an older copy are noticed in the same two places.
"""

from __future__ import annotations

import asyncio
from collections.abc import Collection, Iterator, Mapping, Sequence
from operator import itemgetter
from typing import Any

import msgspec

from cdc.config import Config
from cdc.envelope import MARKER_KEYS
from cdc.errors import DecodeError, PreconditionError, RecordError, StoreError
from cdc.failpoint import failpoint
from consumers.redis.layout import Layout, learn
from consumers.redis.reading import Reading, walk
from consumers.redis.rows import PARK, RowEncoder
from consumers.redis.sentinel import Sentinel, compare, key_of, log_field, offset_field, open_sentinel, read_sentinel
from consumers.redis.swapping import Swapping
from consumers.store import Applied, Batch, Offsets, Partition, Record, Rejected

CALL_BYTES = 16 << 20  # of one call's records: Redis takes arguments of 512 MB at most, and answers nobody meanwhile
_pack = msgspec.msgpack.encode
_position = itemgetter(2)


class _Table:
    """One table's names, and the settings of a call that do not change."""

    def __init__(self, config: Config, name: str, layout: Layout) -> None:
        settings = config.tables.get(name) or config.table(*name.split(".", 1))
        prefix = layout.names.index_prefix
        self.layout = layout
        self.encoder = RowEncoder(name, settings, config.redis.vectors, prefix)
        self.call = {
            "floor_field": f"f:{name}",
            "table_field": f"t:{name}",
            "user": settings.user,
            "index_prefix": prefix,
            "recency_limit": config.redis.recency_limit,
            "ttl": settings.ttl_seconds,
            "tomb_seconds": config.redis.tombstone_seconds,
            "tomb_prefix": f"{config.redis.namespace}tomb:",
        }


class RedisStore(Reading, Swapping):
    """Working memory; `database` overrides the url's (a shadow). Fills Store, Inspectable and Rebuildable."""

    name = "redis"

    def __init__(self, config: Config, database: int | None = None) -> None:
        super().__init__(config, database)
        self._state = key_of(config.redis.namespace)
        self._sentinel: Sentinel | None = None
        self._offsets: dict[Partition, int] = {}
        self._tables: dict[str, _Table] = {}
        self._cluster = False

    async def open(self) -> Offsets:
        """The offsets in the sentinel; {} when there was none, so that everything is replayed."""
        self._cluster = await self.link.is_cluster()
        if self._cluster and not _hash_tag(self.config.redis.namespace):
            raise PreconditionError(
                f"Redis at {self.link.where} is a cluster, and [redis] namespace has no hash tag",
                hint="set namespace = '{m}:cdc:' and begin each redis_key with '{{m}}:', so that all keys share a slot",
            )
        self._sentinel = await open_sentinel(self.link, self.config.redis.namespace)
        self._offsets = dict(self._sentinel.offsets)
        self._tables = {}
        return dict(self._offsets)

    @property
    def logs(self) -> Mapping[Partition, str]:
        """As the sentinel has them."""
        return self._opened.logs

    async def begin(self, logs: Mapping[Partition, str], void: Collection[Partition]) -> None:
        """One call of begin.lua."""
        sentinel = self._opened
        gone = [offset_field(partition) for partition in void]
        noted = [word for partition, log in logs.items() for word in (log_field(partition), log)]
        await self.link.run("begin", [self._state], [sentinel.instance, len(gone), *gone, *noted])
        sentinel.logs.update(logs)
        for partition in void:
            self._offsets.pop(partition, None)

    async def apply(self, batch: Batch) -> Applied:
        """In calls of `config.redis.batch` records, each of which moves the offsets past its records: so a server that
        lost the call before (a failover) is noticed by the next. While one call runs the next is encoded."""
        applied = Applied()
        table = await self._table(batch, applied)
        running: asyncio.Task[Applied] | None = None
        try:
            for records, last in _chunks(batch.records, self.config.redis.batch):
                sent, keys, rows = self._encode(table, records, applied)
                if running is not None:
                    _add(applied, await running)
                    failpoint("redis.between-calls")
                offsets = {} if applied.rejected else batch.offsets if last else _reached(batch, records)
                call = self._call(table, sent, keys, rows, {**dict.fromkeys(batch.offsets, 0), **offsets})
                running = asyncio.create_task(call)
                await asyncio.sleep(0)  # lets the task write its request before we encode on
            if running is not None:
                _add(applied, await running)
        finally:
            if running is not None:  # after an error of ours: no call goes on behind the caller's back
                running.cancel()
                await asyncio.gather(running, return_exceptions=True)
        return applied

    async def truncate(self, batch: Batch, below: bytes) -> int:
        """In bounded steps. A floor in the sentinel goes first: whatever below it still comes is stale."""
        name = f"{batch.schema}.{batch.table}"
        known = await self._mark(f"f:{name}", below)
        layout = known.tables.get(name)
        removed = 0
        if layout is not None:
            async for count, _ in walk(self.link, layout, below):
                removed += count
        await self._call(None, [], [], [], batch.offsets)
        return removed

    async def flush(self, *, force: bool = False) -> Offsets:
        """What the sentinel holds; see the module's text for what that promises."""
        return dict(self._offsets)

    async def check(self) -> None:
        """Reads the sentinel and compares it with what this process wrote."""
        reached = dict(self._offsets)  # before the reading: applying goes on meanwhile
        held = await read_sentinel(self.link, self.config.redis.namespace)
        compare(held, self._opened.instance, reached, self.link.where)

    async def close(self) -> None:
        """Closes the connections; `open` may be called again."""
        await self.link.close()

    @property
    def _opened(self) -> Sentinel:
        if self._sentinel is None:
            raise StoreError("the Redis store is used before it was opened", hint="call open() first")
        return self._sentinel

    async def _mark(self, field: str, value: str | bytes) -> Sentinel:
        """Sets a field and returns the sentinel, which may have been swapped in between."""
        instance = self._opened.instance
        await self.link.run("mark", [self._state], [instance, field, value])
        held = await read_sentinel(self.link, self.config.redis.namespace)
        return compare(held, instance, {}, self.link.where)

    async def _table(self, batch: Batch, applied: Applied) -> _Table | None:
        """None for a batch without a usable key: then there is nothing to write but offsets."""
        name = f"{batch.schema}.{batch.table}"
        if name in self._tables:
            return self._tables[name]
        for record in batch.records:
            if record.key in MARKER_KEYS:
                continue
            try:
                layout = learn(self.config, batch.schema, batch.table, record.key)
            except DecodeError:
                continue  # _encode rejects it by name
            self._tables[name] = _Table(self.config, name, await self._register(name, layout))
            return self._tables[name]
        applied.rejected += [Rejected(record, "key", f"a key of {name} does not decode") for record in batch.records]
        return None

    async def _register(self, name: str, layout: Layout) -> Layout:
        """Notes the table's keys in the sentinel; refuses keys that another table could have."""
        known = self._opened.tables
        held = known.get(name)
        if held is not None and (held.template, held.columns) != (layout.template, layout.columns):
            raise StoreError(
                f"Redis holds {name} under keys like {held.template!r}, the config now says {layout.template!r}",
                hint="run `cdc rebuild redis`, or restore redis_key",
            )
        if held is not None and held.indexed == layout.indexed:
            return held
        for other, theirs in known.items():
            if other != name and layout.collides(theirs):
                raise StoreError(
                    f"{name} and {other} would share Redis keys ({layout.template!r}, {theirs.template!r})",
                    hint=f'set tables."{name}".redis_key to a template with a prefix of its own',
                )
        if self._cluster and _hash_tag(layout.names.prefix) != _hash_tag(self.config.redis.namespace):
            raise PreconditionError(
                f"{name}: on a Redis Cluster its keys need the namespace's hash tag",
                hint=f"begin its redis_key with '{{{{{_hash_tag(self.config.redis.namespace)}}}}}:'",
            )
        self._sentinel = await self._mark(f"t:{name}", msgspec.json.encode(layout))
        return layout

    def _encode(
        self, table: _Table | None, records: Sequence[Record], applied: Applied
    ) -> tuple[list[Record], list[bytes], list[Any]]:
        """What goes into one call; what cannot be stored goes to `applied.rejected`."""
        sent: list[Record] = []
        keys: list[bytes] = []
        rows: list[Any] = []
        if table is None:
            return sent, keys, rows
        redis_key, encode = table.layout.redis_key, table.encoder.encode
        before: Record | None = None
        for record in records:
            if record.value is None and before is not None and before[0] == record[0] and before[2] == record[2]:
                continue  # the tombstone after its own delete
            before = record
            try:
                name, key = redis_key(record.key)
            except DecodeError as error:
                applied.rejected.append(Rejected(record, "key", error.message))
                continue
            try:
                rows += encode(record, key)
            except RecordError as error:
                applied.rejected.append(Rejected(record, error.reason, error.message))
                rows += [record.position.decode(), error.reason, PARK]
            keys.append(name)
            sent.append(record)
        return sent, keys, rows

    async def _call(
        self, table: _Table | None, sent: list[Record], keys: list[bytes], rows: list[Any], offsets: Offsets
    ) -> Applied:
        """One call of apply.lua; an offset of 0 is only compared. Raises StoreLost, StoreError, ConnectError."""
        settings: dict[str, Any] = {
            "recency_limit": 0,
            "floor_field": "",
            "table_field": "",
            **(table.call if table else {}),
            "instance": self._opened.instance,
            "watermark": max(map(_position, sent), default=b"").decode(),
            "offsets": [[offset_field(p), self._offsets.get(p, 0), offset] for p, offset in offsets.items()],
        }
        shapes = table.encoder.shapes if table else []
        reply = await self.link.run("apply", [self._state, *keys], [_pack(settings), _pack(shapes), _pack(rows)])
        upserts, deletes, stale, foreign = reply
        if not foreign:
            for partition, offset in filter(itemgetter(1), offsets.items()):
                self._offsets[partition] = max(offset, self._offsets.get(partition, 0))
        rejected = [
            Rejected(sent[i], "foreign", f"the key {keys[i].decode()!r} holds something that is not ours")
            for i in foreign
        ]
        return Applied(upserts, deletes, stale, rejected)


def _chunks(records: Sequence[Record], size: int) -> Iterator[tuple[Sequence[Record], bool]]:
    """Pieces of at most `size` records and about CALL_BYTES, and whether each is the last; an empty batch is one empty
    piece."""
    start = nbytes = 0
    for at, record in enumerate(records):
        weight = len(record.value or b"")
        if at > start and (at - start >= size or nbytes + weight > CALL_BYTES):
            yield records[start:at], False
            start, nbytes = at, 0
        nbytes += weight
    yield records[start:], True


def _add(total: Applied, part: Applied) -> None:
    total.upserts += part.upserts
    total.deletes += part.deletes
    total.stale += part.stale
    total.rejected += part.rejected


def _reached(batch: Batch, records: Sequence[Record]) -> Offsets:
    """The offsets after a piece of a batch; none where the batch names none."""
    reached = {(batch.topic, record.partition): record.offset + 1 for record in records}
    return {place: min(offset, batch.offsets[place]) for place, offset in reached.items() if place in batch.offsets}


def _hash_tag(text: str) -> str:
    """What Redis Cluster hashes of a key that begins so (cluster specification, "Hash tags"); '' without one."""
    _, opened, rest = text.partition("{")
    tag, closed, _ = rest.partition("}")
    return tag if opened and closed else ""
