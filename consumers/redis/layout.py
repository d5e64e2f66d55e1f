"""How one table's topic keys become Redis keys and back; kept in the sentinel, so that any process can read the store.

Most keys are rebuilt from the Redis key alone. One whose bytes would not come back exactly (unusual escapes or types)
is stored beside its record in the field `_key`.
"""

from __future__ import annotations

import re
from functools import cached_property

import msgspec

from cdc.config import Config
from cdc.errors import DecodeError
from consumers.redis.keys import INDEX, Template, decode_parts, parse_template, unify

# Bytes of a JSON string that stand for themselves in a Redis key: ASCII without quote, backslash, %, :, { or }
_PLAIN = rb"((?!%b\")[^\x00-\x20\x7f-\xff\"\\%%:{}]*)" % INDEX.encode()
_NUMBER = rb"(-?[0-9][0-9.eE+-]*)"


class OtherKey(DecodeError):
    """A record's key has other columns than its table's layout: the table got another key, or this is from before."""


class Layout(msgspec.Struct, frozen=True, dict=True):
    """`key`: columns in key order with True where the value is a JSON string; `template` and its parts; `indexed`:
    the column whose values have a recency index."""

    template: str
    literals: tuple[str, ...]
    columns: tuple[str, ...]
    key: tuple[tuple[str, bool], ...]
    indexed: str | None = None

    @cached_property
    def names(self) -> Template:
        """The template again."""
        return Template(self.template, self.literals, self.columns)

    @cached_property
    def key_columns(self) -> frozenset[str]:
        """Of the table's key, in no order."""
        return frozenset(self.columns)

    def collides(self, other: Layout) -> bool:
        """True when some key, of a record or an index, could belong to both tables."""
        ours, theirs = (each.names.patterns(indexed=each.indexed is not None) for each in (self, other))
        return any(unify(a, b) for a in ours for b in theirs)

    @cached_property
    def _usual(self) -> re.Pattern[bytes]:
        pairs = (
            re.escape(msgspec.json.encode(column)) + (b':"' + _PLAIN + b'"' if quoted else b":" + _NUMBER)
            for column, quoted in self.key
        )
        return re.compile(rb"\{" + b",".join(pairs) + rb"\}")

    @cached_property
    def _in_order(self) -> bool:
        return self.columns == tuple(column for column, _ in self.key)

    @cached_property
    def _format(self) -> bytes:
        return b"%b".join(literal.encode().replace(b"%", b"%%") for literal in self.literals)

    def redis_key(self, key: bytes) -> tuple[bytes, str | None]:
        """`(Redis key, what the field _key has to hold or None)`. Raises DecodeError; OtherKey for other columns."""
        usual = self._usual.fullmatch(key) if self._in_order else None
        if usual is not None:
            return self._format % usual.groups(), None
        parts = decode_parts(key)
        if parts.keys() != self.key_columns:
            raise OtherKey("a record's key has other columns than its table's earlier ones")
        name = self.names.render({column: text for column, (text, _) in parts.items()})
        return name.encode(), None if self.topic_key(name) == key else key.decode()

    def topic_key(self, name: str) -> bytes:
        """The topic's key bytes of a record without `_key`."""
        values = self.names.values(name)
        encode = msgspec.json.encode
        pairs = (
            encode(column) + b":" + (encode(values[column]) if quoted else values[column].encode())
            for column, quoted in self.key
        )
        return b"{" + b",".join(pairs) + b"}"


def learn(config: Config, schema: str, table: str, key: bytes) -> Layout:
    """The layout of a table from its settings and the first key seen. Raises ConfigError, DecodeError."""
    parts = decode_parts(key)
    template = parse_template(config, schema, table, tuple(parts))
    kinds = tuple((column, quoted) for column, (_, quoted) in parts.items())
    user = config.table(schema, table).user
    return Layout(template.text, template.literals, template.columns, kinds, user)
