"""From events to chunks, without servers: ordinals, what is skipped, cuts, key changes, snapshot chunks and races."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Sequence
from typing import Any

import pytest

from cdc.assembler import Assembler
from cdc.assembly import Assembly
from cdc.config import Config, parse
from cdc.errors import GapError
from cdc.kafka.block import Rows
from cdc.kafka.chunk import Outgoing
from cdc.kafka.progress import Backfill, Progress, SnapshotState
from cdc.position import decode_position
from cdc.source.events import MESSAGE_PREFIX, UNCHANGED, Begin, Column, Commit, Event, Message, Row, Table, Truncate
from cdc.source.rows import Origin
from cdc.source.runs import packed
from cdc.source.snapshot import TableSnapshot
from cdc.source.visibility import Shot
from cdc.source.window import Chunk

NAME = ("public", "memories")
LABEL = "public.memories"
TOPIC = "memories.public.memories"
TABLE = Table(
    *NAME,
    columns=(Column("id", 23, "integer", bytes), Column("v", 25, "text", bytes)),
    key=(0,),
    full=False,
    row_template=b'"id":%b,"v":%b',
    key_template=b'{"id":%b}',
)


def config(rows: int = 1000) -> Config:
    kafka = {"bootstrap": "none", "transaction_rows": rows}
    return parse({"postgres": {"dsn": "postgresql://unused"}, "kafka": kafka})


def begun(epoch: int = 1, **values: Any) -> Progress:
    return Progress(source="memories", slot="s", system_id="1", timeline=1, epoch=epoch, **values)


def assembler(progress: Progress | None = None, rows: int = 1000) -> Assembler:
    progress = progress or begun()
    made = Assembler(config(rows), Origin("memories", "db", progress.epoch), progress, lambda content: None)
    made.begin()
    return made


def transaction(lsn: int, *events: Event, xid: int = 0) -> list[Event]:
    return [Begin(xid or lsn, lsn, 1_000_000), *events, Commit(lsn, lsn + 8)]


def put(number: int, op: str = "c", value: Any = b'"v"') -> Row:
    return Row(op, TABLE, [b"%d" % number, value], None)


def message(**content: Any) -> Message:
    return Message(MESSAGE_PREFIX, json.dumps(content).encode(), True)


def feed(target: Assembler, *transactions: list[Event]) -> Assembly:
    for events in transactions:
        for event in events:
            target.add(event)
    return target.take()


def records(chunk: Assembly, topic: str = TOPIC) -> list[Outgoing]:
    """Those of blocks among them."""
    found: list[Outgoing] = []
    start, listed = 0, chunk.records.get(topic, [])
    for index, block in chunk.blocks.get(topic, []):
        found += [*listed[start:index], *block.records()]
        start = index
    return [*found, *listed[start:]]


def places(chunk: Assembly) -> list[tuple[Any, ...]]:
    """(LSN, ordinal, op or None, key) of each record."""
    found = []
    for key, value, _timestamp, headers in records(chunk):
        position = decode_position(dict(headers)["cdc.pos"])
        op = json.loads(value)["op"] if value else None
        found.append((position.commit_lsn, position.ordinal, op, json.loads(key).get("id")))
    return found


def test_ordinals_count_from_one_in_each_transaction() -> None:
    delete = Row("d", TABLE, None, [b"1", UNCHANGED])
    moved = Row("u", TABLE, [b"3", b'"w"'], [b"2", UNCHANGED])
    chunk = feed(assembler(), transaction(10, put(1), put(2)), transaction(20, delete, moved, put(3, "u")))
    assert places(chunk) == [
        (10, 1, "c", 1), (10, 2, "c", 2), (20, 1, "d", 1), (20, 1, None, 1),
        (20, 2, "d", 2), (20, 2, None, 2), (20, 3, "c", 3), (20, 4, "u", 3),
    ]  # fmt: skip
    assert chunk.progress is not None
    assert (chunk.progress.commit_lsn, chunk.progress.end_lsn, chunk.progress.complete) == (20, 28, True)


def test_what_is_in_kafka_already_is_skipped() -> None:
    target = assembler(begun(commit_lsn=20, ordinal=2, complete=True, end_lsn=28))
    chunk = feed(target, transaction(10, put(1)), transaction(20, put(1), put(2)), transaction(30, put(3)))
    assert places(chunk) == [(30, 1, "c", 3)]
    assert target.skipped == 2


@pytest.mark.parametrize("done", range(1, 6))
def test_a_cut_transaction_goes_on_behind_its_last_ordinal(done: int) -> None:
    """Wherever it was cut, also between a key change's delete and create, and at a truncate."""
    moved = Row("u", TABLE, [b"3", b'"w"'], [b"2", UNCHANGED])
    events = transaction(20, put(1), put(2), moved, Truncate([TABLE]), put(9))
    whole = places(feed(assembler(), events))
    rest = places(feed(assembler(begun(commit_lsn=20, ordinal=done, complete=False, end_lsn=15)), events))
    assert rest == [place for place in whole if place[1] > done]


def test_a_full_chunk_says_how_far_it_goes_and_keeps_the_slot_where_it_was() -> None:
    target = assembler(begun(end_lsn=5), rows=2)
    target.take()
    chunks = []
    for event in transaction(20, *(put(n) for n in range(5))):
        target.add(event)
        if target.full:
            assert target.ready
            chunks.append(target.take())
    chunks.append(target.take())
    states = [chunk.progress for chunk in chunks]
    assert [(s.ordinal, s.complete, s.end_lsn) for s in states if s] == [(2, False, 5), (4, False, 5), (5, True, 28)]
    assert not target.ready


def test_a_chunk_that_ends_at_a_truncate_says_so() -> None:
    """Else a restart would write all of it again."""
    target = assembler(rows=2)
    events = transaction(20, put(1), Truncate([TABLE]), put(2))
    chunk = feed(target, events[:3])
    assert chunk.progress is not None
    assert (chunk.progress.commit_lsn, chunk.progress.ordinal, chunk.progress.complete) == (20, 2, False)
    assert places(feed(assembler(chunk.progress), events)) == [(20, 3, "c", 2)]


def test_nothing_is_taken_in_the_middle_of_a_transaction_that_fits() -> None:
    target = assembler()
    target.take()
    for event in transaction(20, put(1))[:2]:
        target.add(event)
    assert not target.ready
    target.add(Commit(20, 28))
    assert target.ready


def test_a_hole_weighs_what_it_may_become() -> None:
    target = assembler()
    before = target.pending_bytes
    for event in transaction(20, put(1, "u", UNCHANGED)):
        target.add(event)
    assert target.pending_bytes - before > 4096
    chunk = target.take()
    assert [hole.missing for hole in chunk.holes] == [[1]]


class Offering:
    """A snapshot chunk on its way through an assembler."""

    def __init__(self, target: Assembler, rows: Sequence[int], running: frozenset[int] = frozenset()) -> None:
        content = Rows.of(packed(TABLE, [b"%d" % n, b'"s"']) for n in rows)
        self.chunk = Chunk("c", NAME, TABLE, content, Shot(1000, running), [str(rows[-1])], True, True)
        self.answer = target.offer(self.chunk, TableSnapshot(NAME, SnapshotState()), 0)


LOW, HIGH = message(kind="low", chunk="c", table=NAME), message(kind="high", chunk="c", table=NAME)


async def test_a_chunk_stands_at_its_high_message_less_what_was_touched() -> None:
    target = assembler()
    moved = Row("u", TABLE, [b"4", b'"w"'], [b"3", UNCHANGED])
    offering = Offering(target, [1, 2, 3, 4, 5])
    chunk = feed(
        target,
        transaction(10, put(1)),
        transaction(20, LOW),
        transaction(30, put(2, "u"), moved),
        transaction(40, HIGH),
    )
    assert places(chunk)[-2:] == [(40, 1, "r", 1), (40, 2, "r", 5)]
    assert not offering.answer.done()  # not before it is durable
    assert chunk.progress is not None
    assert chunk.progress.snapshots[LABEL] == SnapshotState(done=True, after=["5"], rows=5)
    assert [offer.chunk for offer in chunk.offers] == [offering.chunk]


async def test_a_key_without_a_row_is_deleted_at_the_high_message_unless_it_came() -> None:
    target = assembler()
    offering = Offering(target, [1])
    offering.chunk.gone = [[b"7", UNCHANGED], [b"8", UNCHANGED]]
    state = Backfill(table=LABEL, keys=[["1"], ["7"], ["8"]])
    target.set_backfill("b", state)
    table = target._offers["c"].snapshot
    table.id, table.state = "b", state
    chunk = feed(target, transaction(20, LOW), transaction(30, put(8)), transaction(40, HIGH))
    assert places(chunk)[1:] == [(40, 1, "r", 1), (40, 2, "d", 7), (40, 2, None, 7)]
    assert chunk.progress is not None
    assert chunk.progress.backfills == {"b": Backfill(table=LABEL, done=True, rows=1, gone=2)}
    assert LABEL not in chunk.progress.snapshots
    assert not chunk.markers


@pytest.mark.parametrize("harm", ["race", "truncate", "no low"])
async def test_a_chunk_whose_place_is_unknown_is_read_again(harm: str) -> None:
    """Above all: a transaction delivered before low that the chunk's snapshot did not see."""
    target = assembler()
    offering = Offering(target, [1, 2], frozenset({77}))
    first = transaction(10, put(1, "u"), xid=77 if harm == "race" else 5)
    between = transaction(30, Truncate([TABLE]) if harm == "truncate" else put(9))
    low = [] if harm == "no low" else transaction(20, LOW)
    chunk = feed(target, first, low, between, transaction(40, HIGH))
    assert offering.answer.result() is False
    assert "r" not in {op for _lsn, _ordinal, op, _key in places(chunk)}
    assert chunk.progress is not None
    assert LABEL not in chunk.progress.snapshots


async def test_the_last_chunk_of_a_new_epoch_sweeps_what_is_older() -> None:
    target = assembler(begun(epoch=2))
    Offering(target, [1])
    chunk = feed(target, transaction(20, LOW), transaction(40, HIGH))
    markers = [json.loads(chunk.records[TOPIC][index][1] or b"") for index in chunk.markers[TOPIC]]
    assert [marker["source"]["below"][:8] for marker in markers] == ["00000002"]


async def test_a_table_asked_for_again_is_not_done_by_the_snapshot_under_way() -> None:
    target = assembler()
    target.requested.add(LABEL)
    target.set_snapshot(LABEL, SnapshotState())
    Offering(target, [1])
    chunk = feed(target, transaction(20, LOW), transaction(40, HIGH))
    assert chunk.progress is not None
    assert chunk.progress.snapshots[LABEL] == SnapshotState()


async def test_an_answer_nobody_waits_for_any_more() -> None:
    target = assembler()
    offering = Offering(target, [1], frozenset({10}))
    offering.answer.cancel()
    feed(target, transaction(10, put(1)), transaction(20, LOW), transaction(40, HIGH))
    assert offering.answer.cancelled()
    await asyncio.sleep(0)


def test_spans_done_out_of_order_wait_for_those_before() -> None:
    table = TableSnapshot(NAME, SnapshotState())

    def done(number: int, rows: int, *, whole: bool = True, final: bool = False) -> SnapshotState:
        content = Rows.of([(b"", b"", None)] * rows)
        chunk = Chunk("c", NAME, TABLE, content, Shot(1000, frozenset()), [f"{number}.{rows}"], final, whole)
        return table.advance(number, chunk)

    assert done(1, 3, whole=False) == SnapshotState()  # a part of a span whose turn has not come
    assert done(2, 4, final=True) == SnapshotState()
    assert done(0, 2, whole=False) == SnapshotState(after=["0.2"], rows=2)
    assert done(0, 1) == SnapshotState(after=["0.1"], rows=3)
    assert done(1, 5) == SnapshotState(done=True, after=["2.4"], rows=15)


def test_a_history_written_anew_is_refused_before_anything_of_it_is_taken() -> None:
    """The slot is below progress, whose last commit has to come again: same place, same transaction, same time."""
    progress = begun(commit_lsn=20, ordinal=1, end_lsn=28, xid=7, commit_us=1_000_000)

    def started(confirmed: int) -> Assembler:
        return Assembler(config(), Origin("memories", "db", 1), progress, lambda content: None, confirmed_lsn=confirmed)

    known = started(18)
    assert not known.proof.given
    chunk = feed(known, transaction(18, put(1)), transaction(20, put(1), xid=7), transaction(30, put(3)))
    assert places(chunk) == [(30, 1, "c", 3)]
    assert known.proof.given
    others = [transaction(30, put(3)), transaction(20, put(1), xid=8), [Begin(7, 20, 1_000_001)]]
    for other in others:
        target = started(18)
        with pytest.raises(GapError, match="written anew"):
            feed(target, transaction(18, put(1)), other)
        assert not target.proof.given
        assert places(target.take()) == []
    assert started(28).proof.given  # told by us, in the history we know


@pytest.mark.parametrize("epoch", [1, 2])
async def test_a_snapshot_asked_for_sweeps_what_is_older_than_the_request(epoch: int) -> None:
    target = assembler(begun(epoch=epoch))
    since = f"{epoch:08x}{15:016x}{0:08x}"
    offering = Offering(target, [1])
    target._offers["c"].snapshot.state = SnapshotState(since=since)
    chunk = feed(target, transaction(20, LOW), transaction(40, HIGH))
    markers = [json.loads(chunk.records[TOPIC][index][1] or b"") for index in chunk.markers[TOPIC]]
    assert [marker["source"]["below"] for marker in markers] == [since]
    assert not offering.answer.done()
