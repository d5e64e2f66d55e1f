"""Values of every type, as SQL writes them, and how each wire form is loaded back (docs/types.md)."""

from __future__ import annotations

import base64
import json
from typing import Any

from cdc.envelope import decode_floats

SETUP = """
CREATE EXTENSION IF NOT EXISTS hstore;
CREATE EXTENSION IF NOT EXISTS citext;
CREATE TYPE mood AS ENUM ('sad', 'so, "so"', 'happy \\ ');
CREATE DOMAIN posint AS integer CHECK (VALUE > 0);
CREATE DOMAIN score AS real;
CREATE DOMAIN amount AS numeric;
CREATE DOMAIN note AS text;
CREATE DOMAIN blob AS bytea;
CREATE DOMAIN flag AS boolean;
CREATE DOMAIN posints AS posint[];
CREATE DOMAIN smallpos AS posint CHECK (VALUE < 100);
CREATE TYPE pair AS (a integer, b text);
CREATE TYPE nested AS (p pair, list integer[]);
CREATE SCHEMA "Odd Schema";
CREATE TYPE "Odd Schema"."Odd "" Type" AS ENUM ('x', 'y');
"""

# type → values; the text of a value is cast to the type
SAMPLES: dict[str, list[str]] = {
    "smallint": ["0", "-32768", "32767"],
    "integer": ["1", "-2147483648", "2147483647"],
    "bigint": ["-9223372036854775808", "9223372036854775807"],
    "oid": ["0", "4294967295"],
    "numeric": ["0", "1.50", "-0.0000001", "123456789012345678901234567890.123456789", "NaN", "Infinity", "-Infinity"],
    "numeric(10,2)": ["1.5", "NaN"],
    "real": ["0.1", "-0", "1e-45", "3.4028235e38", "NaN", "Infinity", "-Infinity"],
    "double precision": ["0.1", "-0", "5e-324", "1.7976931348623157e308", "NaN", "Infinity", "-Infinity"],
    "text": ["", "NULL", "null", 'q"\\u0041\\', "tab\tline\r\n", "ünïcödé 🐘\u2028", "\x01\x1f\x7f</script>", "{1,2}"],
    "varchar(10)": ["", "abc "],
    "char(5)": ["ab", "abcde"],
    '"char"': ["x", '"'],
    "name": ["a name"],
    "bytea": ["\\x", "\\x00ff10"],
    "boolean": ["t", "f"],
    "date": ["2024-02-29", "infinity", "-infinity", "4713-01-01 BC"],
    "time": ["24:00:00", "12:34:56.789012"],
    "timetz": ["12:34:56+05:30"],
    "timestamp": ["2024-02-29 12:00:00.000001", "infinity", "-infinity", "0044-03-15 10:00:00 BC"],
    "timestamptz": ["2024-02-29 12:00:00+02", "infinity", "-infinity", "0044-03-15 10:00:00+00 BC"],
    "interval": ["1 day -00:00:01", "-1 mon +3 days 00:00:00.5", "-178000000 years -11 mons", "0", "-0.5 sec"],
    "uuid": ["a0eebc99-9c0b-4ef8-bb6d-6bb9bd380a11"],
    "json": ['{"a":  1, "a": "é"}', "null", "1e2"],
    "jsonb": ['{"b": [1, 2.50], "a": "x\\"y"}', "null", '""'],
    "integer[]": ["{}", "{1,NULL,3}", "{{1,2},{3,4}}", "{{{1},{NULL}}}"],
    "text[]": ['{"",NULL,"NULL",a,"b,c","{}","q\\"\\\\",é}', '{{a,b},{c," d "}}'],
    "boolean[]": ["{t,f,NULL}"],
    "bytea[]": ['{"\\\\x00ff",NULL}'],
    "real[]": ["{0.1,NaN,-Infinity,NULL}", "{1e-45,-0}"],
    "double precision[]": ["{0.1,5e-324,Infinity}"],
    "numeric[]": ["{1.50,NaN,-Infinity}"],
    "timestamptz[]": ['{"2024-02-29 12:00:00+00",infinity}'],
    "jsonb[]": ['{"{\\"a\\": 1}",NULL}'],
    "interval[]": ["{P1DT-1S}"],
    "box[]": ["{(3,4),(1,2);(1,1),(0,0)}"],
    "mood": ["sad", 'so, "so"', "happy \\ "],
    "mood[]": ['{sad,"so, \\"so\\""}'],
    '"Odd Schema"."Odd "" Type"': ["x"],
    "posint": ["7"],
    "smallpos": ["8"],
    "score": ["0.5", "NaN", "Infinity"],
    "amount": ["1.50", "NaN"],
    "note": ['a "note"'],
    "blob": ["\\x0102"],
    "flag": ["t"],
    "posints": ["{1,2}"],
    "posint[]": ["{1,NULL}"],
    "score[]": ["{0.5,NaN}"],
    "pair": ['(1,"a ""b"", c")', "(,)", '(,"")'],
    "pair[]": ['{"(1,a)",NULL}'],
    "nested": ['("(1,x)","{1,2}")'],
    "int4range": ["[1,5)", "empty", "(,)"],
    "numrange": ["[1.10,2.5]"],
    "tstzrange": ['["2024-01-01 00:00:00+00",infinity]'],
    "int4multirange": ["{[1,2),[5,9)}", "{}"],
    "int4range[]": ['{"[1,5)",empty}'],
    "inet": ["192.168.1.1", "192.168.1.1/24", "::1"],
    "cidr": ["10.0.0.0/8"],
    "macaddr": ["08:00:2b:01:02:03"],
    "macaddr8": ["08:00:2b:01:02:03:04:05"],
    "bit(3)": ["101"],
    "bit varying": ["", "10110"],
    "money": ["-1234.56"],
    "xml": ["<a b='1'>é</a>"],
    "point": ["(1.5,-2)"],
    "line": ["{1,2,3}"],
    "lseg": ["[(1,2),(3,4)]"],
    "box": ["(3,4),(1,2)"],
    "path": ["((1,2),(3,4))", "[(1,2),(3,4)]"],
    "polygon": ["((1,2),(3,4),(5,6))"],
    "circle": ["<(1,2),3>"],
    "tsvector": ["'a':1 'b c':2"],
    "tsquery": ["'a' & 'b'"],
    "pg_lsn": ["16/B374D848"],
    "int2vector": ["1 2 3"],
    "jsonpath": ["$.a"],
    "regtype": ["integer"],
    "hstore": ['"a"=>"1", "b"=>NULL', '"q\\""=>"x, y"'],
    "hstore[]": ['{"\\"a\\"=>\\"1\\""}'],
    "citext": ["MiXed é"],
    "citext[]": ["{A,b}"],
}


def columns() -> list[tuple[str, str]]:
    """(column name, type) of the table of all types."""
    return [(f"c{i}", kind) for i, kind in enumerate(SAMPLES)]


def create(table: str) -> str:
    """The table of all types, by key `id`."""
    body = ", ".join(f"{name} {kind}" for name, kind in columns())
    return f"CREATE TABLE {table} (id integer PRIMARY KEY, {body})"


def inserts(table: str) -> list[tuple[str, list[Any]]]:
    """Statements with parameters: row n holds the n-th value of each type, NULL where there is none; the last only
    NULL."""
    count = max(map(len, SAMPLES.values()))
    casts = ", ".join(f"%s::text::{kind}" for kind in SAMPLES)
    rows = [[n, *(values[n] if n < len(values) else None for values in SAMPLES.values())] for n in range(count + 1)]
    statement = f"INSERT INTO {table} VALUES (%s, {casts})"
    return [(statement, row) for row in rows]


def text_of(fragment: bytes, kind: str) -> str | None:
    """What PostgreSQL takes back as `kind`."""
    value = json.loads(fragment, parse_int=str, parse_float=str)
    return None if value is None else _text(value, kind)


def _text(value: Any, kind: str) -> str:
    if isinstance(value, bool):
        return "true" if value else "false"
    if isinstance(value, list):
        return _array(value, kind)
    if kind in ("bytea", "blob"):
        return "\\x" + base64.b64decode(value).hex()
    if isinstance(value, str) and value[:4] in ("f32:", "f64:"):
        numbers = ",".join(repr(float(x)) for x in decode_floats(value))
        return f"{{{numbers}}}" if kind.endswith("[]") else f"[{numbers}]"
    return str(value)


def _array(values: list[Any], kind: str) -> str:
    element = kind.removesuffix("[]")
    delimiter = ";" if element == "box" else ","
    return "{" + delimiter.join(_element(value, kind, element) for value in values) + "}"


def _element(value: Any, kind: str, element: str) -> str:
    if value is None:
        return "NULL"
    if isinstance(value, list):
        return _array(value, kind)
    return '"' + _text(value, element).replace("\\", "\\\\").replace('"', '\\"') + '"'
