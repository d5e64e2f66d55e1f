"""Records what real plugins send for a workload of every kind of change: `python -m tests.unit.frames.record DSN`.

DSN names an empty database of a PostgreSQL whose wal_level is logical and that allows wal2json. What the catalog
answered is recorded too, so that the unit tests decode without a server. Run it again when a plugin's version
changes.
"""

from __future__ import annotations

import base64
import json
import sys
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from cdc.config import parse
from cdc.source.catalog import Catalog
from cdc.source.events import Decoder
from tests.decoding import PLUGINS, Decoding, decoder

FOLDER = Path(__file__).parent
WORKLOAD = """
CREATE TABLE notes (id int PRIMARY KEY, body text, score real, price numeric, data bytea, tags text[], ok boolean);
ALTER TABLE notes ALTER body SET STORAGE EXTERNAL;
CREATE TABLE parts (id int, kind text, PRIMARY KEY (id, kind)) PARTITION BY LIST (kind);
CREATE TABLE parts_a PARTITION OF parts FOR VALUES IN ('a');
CREATE TABLE parts_b PARTITION OF parts FOR VALUES IN ('b');
INSERT INTO notes VALUES (1, repeat('long ', 500), 0.5, 1.50, '\\x00ff', '{a,NULL,"b,c"}', true);
INSERT INTO notes VALUES (2, E'q"\\\\ \\n é', 'NaN', 'Infinity', NULL, '{}', false);
UPDATE notes SET ok = false WHERE id = 1;
UPDATE notes SET id = 3 WHERE id = 2;
DELETE FROM notes WHERE id = 3;
SELECT pg_logical_emit_message(true, 'memory-cdc', '{"t": 1}');
INSERT INTO parts VALUES (1, 'a');
UPDATE parts SET kind = 'b';
TRUNCATE notes, parts
"""


class RecordingCatalog(Catalog):
    """Keeps each answer of the server."""

    def __init__(self, *args: Any) -> None:
        super().__init__(*args)
        self.answers: dict[str, Any] = {}

    def _run(self, query: str, parameters: Iterable[Any] = ()) -> list[tuple[Any, ...]]:
        rows = super()._run(query, parameters)
        self.answers[asked(query, parameters)] = rows
        return rows


class RecordedCatalog(Catalog):
    """Gives the recorded answers."""

    def __init__(self, answers: dict[str, Any], *args: Any) -> None:
        super().__init__(*args)
        self.answers = answers

    def _run(self, query: str, parameters: Iterable[Any] = ()) -> list[tuple[Any, ...]]:
        return [tuple(row) for row in self.answers.get(asked(query, parameters), [])] or _nothing(query)


def _nothing(query: str) -> list[tuple[Any, ...]]:
    """What a mutated frame may ask for: no such relation or type, no DDL."""
    if "md5" in query:
        return [("",)]
    return [(0,)] if "pg_is_in_recovery" in query else []


def asked(query: str, parameters: Iterable[Any]) -> str:
    """One text a question."""
    return json.dumps([" ".join(query.split()), list(parameters)])


def recorded(plugin: str) -> tuple[list[bytes], Decoder]:
    """The frames, and a decoder that answers itself what the server answered then."""
    content = json.loads((FOLDER / f"{plugin}.json").read_text())
    frames = [base64.b64decode(frame) for frame in content["frames"]]
    config = parse({"postgres": {"dsn": "", "tables": ["public.*"]}, "kafka": {"bootstrap": "none"}})
    return frames, decoder(plugin, RecordedCatalog(content["answers"], None, config))


def record(dsn: str) -> None:
    """Writes frames and answers of each plugin."""
    decoding = Decoding(dsn)
    try:
        decoding.run(WORKLOAD)
        for plugin in PLUGINS:
            catalog = RecordingCatalog(None, decoding.config)
            recording = decoder(plugin, catalog)
            frames = decoding.frames(plugin)
            for frame in frames:
                recording.decode(frame)
            catalog.close()
            text = [base64.b64encode(frame).decode() for frame in frames]
            content = {"frames": text, "answers": catalog.answers}
            (FOLDER / f"{plugin}.json").write_text(json.dumps(content, indent=1) + "\n")
    finally:
        decoding.close()


if __name__ == "__main__":
    record(sys.argv[1])
