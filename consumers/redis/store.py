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
from cdc.errors import MALFORMED, DecodeError, PreconditionError, RecordError, StoreError
from cdc.failpoint import failpoint
from consumers.redis.clearing import mark_of
from consumers.redis.keys import decode_parts, parse_template, template_columns
from consumers.redis.layout import Layout, OtherKey, learn
from consumers.redis.reading import Reading, walk
from consumers.redis.rows import PARK, RowEncoder
from consumers.redis.sentinel import Sentinel, compare, key_of, log_field, offset_field, open_sentinel, read_sentinel
from consumers.redis.swapping import Swapping
from consumers.store import Applied, Batch, Offsets, Partition, Record, Rejected

CALL_BYTES = 16 << 20  # of one call's records: Redis takes arguments of 512 MB at most, and answers nobody meanwhile
_pack = msgspec.msgpack.encode
_position, _partition, _offset = itemgetter(2), itemgetter(4), itemgetter(5)


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
            "newest_field": f"n:{name}",
            "layout": msgspec.json.encode(layout).decode(),
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
        await self._clear()
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
                rejected = len(applied.rejected)
                try:
                    sent, keys, rows = self._encode(table, records, applied)
                except OtherKey:
                    del applied.rejected[rejected:]
                    if running is not None:
                        _add(applied, await running)
                        running = None
                    table, kept = await self._rekeyed(batch, records, applied)
                    sent, keys, rows = self._encode(table, kept, applied)
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
        held = self._opened.tables.get(name)
        if held is not None:
            layout = await self._register(name, _configured(self.config, batch, held))
            self._tables[name] = _Table(self.config, name, layout)
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
        if held == layout:
            return held
        self._check(name, layout)
        self._sentinel = await self._mark(f"t:{name}", msgspec.json.encode(layout))
        return layout

    def _check(self, name: str, layout: Layout) -> None:
        """Raises StoreError for keys that another table could have, PreconditionError for a cluster's other slot."""
        known = self._opened.tables
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

    async def _rekeyed(self, batch: Batch, records: Sequence[Record], applied: Applied) -> tuple[_Table, list[Record]]:
        """The table under the key columns of the highest position, and the records that have them; others are stale.

        A switch and what it leaves behind are noted in one step (rekey.lua); the rows left are then removed. `open`
        goes on with that after a crash, and other members notice at their next call and open the store anew."""
        name = f"{batch.schema}.{batch.table}"
        held = self._tables[name].layout
        columns = [_columns(record) for record in records]
        other = [record for record, found in zip(records, columns, strict=True) if found and found != held.key_columns]
        wrong = [record for record in other if record.value is not None and not _bears_key(record)]
        rows = [record for record, found in zip(records, columns, strict=True) if found and _bears_key(record)]
        newest = max(rows, key=_position, default=None)
        if newest is not None and _columns(newest) != held.key_columns:
            layout = learn(self.config, batch.schema, batch.table, newest.key)
            self._check(name, layout)
            texts = [msgspec.json.encode(held), msgspec.json.encode(layout)]
            await self.link.run("rekey", [self._state], [self._opened.instance, name, *texts, newest.position])
            failpoint("redis.rekeyed")
            sentinel = await read_sentinel(self.link, self.config.redis.namespace)
            self._sentinel = compare(sentinel, self._opened.instance, {}, self.link.where)
            self._tables[name] = _Table(self.config, name, self._opened.tables[name])
            await self._clear()
        wanted = self._tables[name].layout.key_columns
        kept = [record for record, found in zip(records, columns, strict=True) if not found or found == wanted]
        wrong = [record for record in wrong if record not in kept]
        applied.stale += len(records) - len(kept) - len(wrong)
        applied.rejected += [Rejected(record, "key", f"a key of {name} is not that of its row") for record in wrong]
        return self._tables[name], kept

    async def _clear(self) -> None:
        """Removes the rows of layouts that tables had before: everything that was applied under them, and no newer."""
        sentinel = self._opened
        for (position, name), layout in list(sentinel.left.items()):
            mark = mark_of(position, name)
            async for _ in walk(self.link, layout, f"{position}~", (self._state, mark)):  # ~: that position included
                pass
            await self.link.run("begin", [self._state], [sentinel.instance, 1, mark])
            del sentinel.left[position, name]

    def _encode(
        self, table: _Table | None, records: Sequence[Record], applied: Applied
    ) -> tuple[list[Record], list[bytes], list[Any]]:
        """What goes into one call; what cannot be stored goes to `applied.rejected`. Raises OtherKey."""
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
            except OtherKey:
                raise
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
            "newest_field": "",
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


def _columns(record: Record) -> frozenset[str]:
    """Of its key; none when it does not decode, which `_encode` rejects."""
    try:
        return frozenset(decode_parts(record.key))
    except DecodeError:
        return frozenset()


class _Rows(msgspec.Struct):
    before: dict[str, msgspec.Raw] | None = None
    after: dict[str, msgspec.Raw] | None = None


def _bears_key(record: Record) -> bool:
    """Whether the change itself has the columns of its key: a spoilt key must not give the table another layout."""
    if record.value is None:
        return False
    try:
        change = msgspec.json.decode(record.value, type=_Rows)
    except MALFORMED:
        return False
    row = change.after or change.before
    return row is not None and _columns(record) <= row.keys()


def _configured(config: Config, batch: Batch, held: Layout) -> Layout:
    """The layout held, as the config has it now. A template for other key columns waits for records that have them."""
    settings = config.table(batch.schema, batch.table)
    columns = tuple(column for column, _ in held.key)
    if template_columns(config, batch.schema, batch.table) in (None, held.key_columns):
        template = parse_template(config, batch.schema, batch.table, columns)
        if (template.text, template.columns) != (held.template, held.columns):
            raise StoreError(
                f"Redis holds {batch.schema}.{batch.table} under keys like {held.template!r}, the config now says "
                f"{template.text!r}",
                hint="run `cdc rebuild redis`, or restore redis_key",
            )
    return msgspec.structs.replace(held, indexed=settings.user)


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
    last = dict(zip(map(_partition, records), map(_offset, records), strict=True))
    reached = {(batch.topic, partition): offset + 1 for partition, offset in last.items()}
    return {place: min(offset, batch.offsets[place]) for place, offset in reached.items() if place in batch.offsets}


def _hash_tag(text: str) -> str:
    """What Redis Cluster hashes of a key that begins so (cluster specification, "Hash tags"); '' without one."""
    _, opened, rest = text.partition("{")
    tag, closed, _ = rest.partition("}")
    return tag if opened and closed else ""
