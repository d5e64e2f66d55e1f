"""Runs make the records that decoder, assembler and envelope make, or leave a message to them: byte for byte."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import suppress
from dataclasses import replace
from functools import partial
from typing import Any

import pytest
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st

from cdc.assembler import Assembler
from cdc.config import parse
from cdc.dead_letter import TIME
from cdc.errors import CdcError, DecodeError
from cdc.kafka.block import Rows
from cdc.oversized import Oversized
from cdc.source import runs
from cdc.source.events import Column, Decoder, Table
from cdc.source.rows import Envelope
from cdc.source.runs import COMPILED, Packed, copy_reader, literals, result_reader
from cdc.source.types import boolean, floating, integer, numeric, string
from tests.unit.frames.record import recorded
from tests.unit.mutation import mutated
from tests.unit.test_assembler import HIGH, LOW, Offering, assembler, feed, put, records, transaction

pytestmark = pytest.mark.skipif(not COMPILED, reason="the compiled half is not there: everything goes the ordinary way")
FRAMES = {plugin: recorded(plugin)[0] for plugin in ("wal2json", "pgoutput")}
TEXTS = st.one_of(
    st.text(st.characters(exclude_categories=["Cs"], exclude_characters="\0"), max_size=12),
    st.sampled_from(["", "plain", 'q"', "back\\slash", "new\nline", "tab\t\\N", "é", "\x7f", "null"]),
)


class Plain:
    """A decoder that knows no runs."""

    def __init__(self, decoder: Decoder) -> None:
        self.options, self.decode = decoder.options, decoder.decode

    def run(self, payload: bytes) -> None:
        """None."""


def fed(frames: list[bytes], decoder: Decoder, to: Assembler, *, by_runs: bool) -> tuple[Any, int]:
    """What came of the frames, as far as they went; how many messages runs took."""
    at, taken, take = 0, [], to.run

    def counted(run: Any, payloads: list[bytes], start: int) -> int:
        stop = take(run, payloads, start)
        taken.append(stop - start)
        return stop

    to.run = counted  # type: ignore[method-assign]
    with suppress(CdcError):
        while at < len(frames):
            at = to.feed(decoder if by_runs else Plain(decoder), frames, at)
    chunk = to.take()
    return (chunk.records, chunk.count, chunk.nbytes, chunk.progress, len(chunk.holes), to.full, at), sum(taken)


def same(plugin: str, frames: list[bytes], rows: int = 1000) -> int:
    """Both ways give the same; how many messages runs took."""
    found, taken = fed(frames, recorded(plugin)[1], assembler(rows=rows), by_runs=True)
    wanted, _ = fed(frames, recorded(plugin)[1], assembler(rows=rows), by_runs=False)
    assert found == wanted
    return taken


def rows_of(plugin: str) -> list[bytes]:
    """An insert, and updates that show the whole row."""
    marks = (b'{"action":"I"', b'{"action":"U"') if plugin == "wal2json" else (b"I", b"U")
    return [frame for frame in FRAMES[plugin] if frame.startswith(marks)]


@pytest.mark.parametrize("plugin", FRAMES)
def test_the_recorded_workload_again_and_again(plugin: str) -> None:
    begin, *rest = FRAMES[plugin]
    assert same(plugin, [begin, *rest, begin, *rest]) > 0
    inserts = [frame for frame in rows_of(plugin) if b"long" in frame][:1]
    announced = rest[: rest.index(inserts[0])]
    assert same(plugin, [begin, *announced, *inserts * 5]) >= 4
    assert same(plugin, [begin, *announced, *inserts * 5], rows=3) >= 2


@pytest.mark.parametrize("plugin", FRAMES)
@settings(max_examples=300, deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(data=st.data())
def test_broken_frames_among_good_ones(plugin: str, data: st.DataObject) -> None:
    frames = [*FRAMES[plugin], FRAMES[plugin][0]]
    frames += data.draw(st.lists(mutated(rows_of(plugin)) | st.sampled_from(FRAMES[plugin]), max_size=6))
    same(plugin, frames, rows=data.draw(st.sampled_from([1000, 20, 3])))


INSERT = (
    '{"action":"I","xid":9,"schema":"public","table":"notes","columns":[{"name":"id","typeoid":23,"value":%s},'
    '{"name":"body","typeoid":25,"value":%s},{"name":"score","typeoid":700,"value":%s},'
    '{"name":"price","typeoid":1700,"value":%s},{"name":"data","typeoid":17,"value":%s},'
    '{"name":"tags","typeoid":1009,"value":%s},{"name":"ok","typeoid":16,"value":%s}]}'
)
UPDATE = INSERT.replace('"I"', '"U"')[:-1] + ',"identity":[{"name":"id","typeoid":23,"value":%s}]}'
JSON_TEXTS = st.sampled_from(['"plain"', '"a\\nb"', '"\\u00e9"', '"é"', '"\\x"', '"open', '"tab\t"', "null", '""'])
NUMBERS = st.sampled_from(
    [
        "1",
        "-1",
        "0",
        "1.50",
        "-0.5",
        "1e+20",
        "-",
        "--1",
        "1.",
        ".5",
        "1.e5",
        "1e",
        "007",
        "-0",
        "null",
        "NaN",
        "12ab",
        "",
    ]
)


@settings(max_examples=600, deadline=None)
@given(
    values=st.tuples(
        NUMBERS, JSON_TEXTS, NUMBERS, NUMBERS, st.sampled_from(['"00ff"', "null", '"0"']),
        st.sampled_from(['"{a,NULL}"', '"{}"', "null", '"{"']), st.sampled_from(["true", "false", "null", "tru"]),
    ),
    old=NUMBERS,
)  # fmt: skip
@example(values=("7", '"plain"', "0.5", "1.50", "null", '"{}"', "true"), old="7")
def test_values_of_every_kind_wal2json(values: tuple[str, ...], old: str) -> None:
    good = ("7", '"plain"', "0.5", "1.50", "null", '"{}"', "true")
    begin = FRAMES["wal2json"][0]
    inserts = [INSERT % good, INSERT % good, INSERT % values, INSERT % good]
    updates = [UPDATE % (*good, "7"), UPDATE % (*good, "7"), UPDATE % (*values, old), UPDATE % (*good, "7")]
    assert same("wal2json", [begin, *[text.encode() for text in inserts]]) >= 1
    assert same("wal2json", [begin, *[text.encode() for text in updates]]) >= 1


@settings(max_examples=600, deadline=None)
@given(
    texts=st.tuples(NUMBERS, TEXTS, NUMBERS, NUMBERS, st.sampled_from(["\\x00ff", "00"]), st.sampled_from(["{}", "{a"]),
                    st.sampled_from(["t", "f", "x"])),
    kinds=st.lists(st.sampled_from("tttnu"), min_size=7, max_size=7),
    action=st.sampled_from([b"I", b"U"]), more=st.binary(max_size=2),
)  # fmt: skip
def test_values_of_every_kind_pgoutput(texts: tuple[str, ...], kinds: list[str], action: bytes, more: bytes) -> None:
    frames = FRAMES["pgoutput"]
    first = next(i for i, frame in enumerate(frames) if frame.startswith(b"I"))
    message = bytearray(action + frames[first][1:8])
    for kind, text in zip(kinds, texts, strict=True):
        raw = text.encode()
        message += b"t" + len(raw).to_bytes(4) + raw if kind == "t" else kind.encode()
    same("pgoutput", [*frames[: first + 1], bytes(message), bytes(message) + more, frames[first]])


def test_the_parts_of_a_template() -> None:
    assert literals(b'"a%%b":%b,"%%":%b') == (b'"a%b":', b',"%":', b"")
    assert literals(b"%%%b") == (b"%", b"")


COLUMNS = tuple(
    Column(name, 25, "text", codec)
    for name, codec in (("id", integer), ("k%", string), ("n", numeric), ("f", floating), ("b", boolean), ("v", string))
)
RESULT = Table(
    "s", "t", COLUMNS, (1, 0), full=False, row_template=b'"id":%b,"k%%":%b,"n":%b,"f":%b,"b":%b,"v":%b',
    key_template=b'{"k%%":%b,"id":%b}', version_index=5,
)  # fmt: skip


ROWS = st.lists(
    st.tuples(
        st.integers().map(str), TEXTS, *[st.none() | strategy for strategy in (
            st.sampled_from(["1.50", "NaN", "-7"]), st.sampled_from(["0.5", "1e+20", "Infinity"]),
            st.sampled_from(["t", "f"]), TEXTS,
        )],
    ),
    max_size=5,
)  # fmt: skip


@given(rows=ROWS)
def test_rows_of_a_query(rows: list[tuple[str | None, ...]]) -> None:
    cells = [[None if value is None else value.encode() for value in row] for row in rows]
    found: list[Packed] = []
    wanted: list[Packed] = []

    def get(row: int, column: int) -> bytes | None:
        return cells[row][column]

    size = result_reader(RESULT)(get, len(rows), found)
    assert size == runs._read(RESULT, get, len(rows), wanted)
    assert found == wanted


@pytest.mark.parametrize("bad", [b"1x", b""])
def test_a_row_that_no_server_writes(bad: bytes) -> None:
    for read in (result_reader(RESULT), partial(runs._read, RESULT)):
        with pytest.raises(DecodeError, match="an integer"):
            read(lambda row, column: bad, 1, [])


def line(row: tuple[str | None, ...]) -> bytes:
    """As COPY writes it (copyto.c, CopyAttributeOutText)."""
    marks = {"\\": "\\\\", "\b": "\\b", "\f": "\\f", "\n": "\\n", "\r": "\\r", "\t": "\\t", "\v": "\\v"}
    cells = ["\\N" if value is None else "".join(marks.get(c, c) for c in value) for value in row]
    return "\t".join(cells).encode() + b"\n"


def lines(given: list[bytes]) -> Callable[[int], tuple[int, Any]]:
    """libpq's get_copy_data: all of them, then nothing yet."""
    rest = iter(given)

    def get(_async: int) -> tuple[int, Any]:
        found = next(rest, b"")
        return len(found), memoryview(found)

    return get


@pytest.mark.parametrize("version", [None, 5])
@given(rows=ROWS)
def test_lines_of_copy(version: int | None, rows: list[tuple[str | None, ...]]) -> None:
    table = replace(RESULT, version_index=version)
    given = [line(row) for row in rows]
    found: list[bytes] = []
    wanted: list[bytes] = []
    taken = copy_reader(table)(lines(given), found)
    assert taken == runs._copied(table, lines(given), wanted)
    assert found == wanted
    objects: list[Packed] = []
    cells = [[None if value is None else value.encode() for value in row] for row in rows]
    runs._read(table, lambda row, column: cells[row][column], len(rows), objects)
    assert list(Rows(found, len(rows), 0)) == objects


@pytest.mark.parametrize(
    "bad", [b"\n", b"1\t2\n", b"1\t2\t3\t4\tt\t6\t7\n", b"1\t2\t3\t4\tt\t6", b"x\t2\t3\t4\tt\t6\n"]
)
def test_a_line_that_no_server_writes(bad: bytes) -> None:
    for read in (copy_reader(RESULT), partial(runs._copied, RESULT)):
        with pytest.raises(DecodeError):
            read(lines([bad]), [])


LETTERS = "memories.cdc.dead-letters.reader"


def placed(limit: int) -> Any:
    """What a snapshot's chunk becomes, of which the stream touched a key, with records of at most `limit` bytes."""
    to = assembler()
    kafka = {"bootstrap": "none", "oversized": "dead-letter"}
    to._oversized = Oversized(parse({"postgres": {"dsn": "postgresql://unused"}, "kafka": kafka}), {})
    to._oversized.limit = limit
    rows = Offering(to, range(90, 110))  # keys of two lengths, so that a limit can lie between
    chunk = feed(to, transaction(20, LOW), transaction(25, put(95)), transaction(30, HIGH))
    letters = [[pair for pair in record[3] if pair[0] != TIME] for record in chunk.records.pop(LETTERS, [])]
    return records(chunk), letters, chunk.count, chunk.nbytes, chunk.ops, rows.answer.done()


async def test_a_snapshots_rows(monkeypatch: pytest.MonkeyPatch) -> None:
    sizes = sorted(len(key) + len(value) for key, value, _, _ in placed(1 << 20)[0] if value is not None)
    limits = (1 << 20, sizes[-1] - 1, sizes[0], sizes[0] - 1)
    found = [placed(limit) for limit in limits]
    monkeypatch.setattr(Envelope, "block", lambda *_: None)
    assert [placed(limit) for limit in limits] == found
    set_aside = [len(letters) for _, letters, *_ in found]
    assert set_aside[0] == 0 < set_aside[1] < set_aside[3]
