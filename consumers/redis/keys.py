"""Names of Redis keys: readable, predictable, and never the same for two records.

A record's key is the table's template (`redis_key`, default `<table>:<key columns joined by ':'>`) filled with its key
columns. `{column}` stands for a value, `{{` and `}}` for braces, so `memory:{{{id}}}` gives the hash tag `memory:{7}`.
Inside a value `%`, `:`, `{`, `}`, spaces and control characters are percent-encoded (as UTF-8 text otherwise), and a
value that is exactly `by_user` begins with `%62`: so no value can imitate a separator, a hash tag or an index.
The recency index of a user is `<prefix>:by_user:<user>`; the prefix is the template's text before its first column.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass
from string import Formatter

import msgspec

from cdc.config import Config
from cdc.errors import MALFORMED, ConfigError, DecodeError

INDEX = "by_user"
_ODD = re.compile(r"[%:{}\x00-\x20\x7f]")
_ENCODED = re.compile(r"%([0-9A-F]{2})")
_FIELD = "\0"  # stands for a value in a pattern; no key holds it
_HINT = "was this topic written by another program?"
_PARTS = msgspec.json.Decoder(dict[str, msgspec.Raw])


def encode_value(value: str) -> str:
    """One value as it stands in a key."""
    if value == INDEX:
        return "%62y_user"
    return encode_odd(value)


def encode_odd(value: str) -> str:
    """Percent-encodes what would be mistaken for a part of a key; apply.lua does the same."""
    return _ODD.sub(lambda found: f"%{ord(found[0]):02X}", value)


def decode_value(text: str) -> str:
    """The inverse of `encode_value`."""
    return _ENCODED.sub(lambda found: chr(int(found[1], 16)), text)


def decode_parts(key: bytes) -> dict[str, tuple[str, bool]]:
    """A topic's key → column → (exact text, whether it is a JSON string), in key order. Raises DecodeError."""
    try:
        parts = {column: _part(bytes(raw)) for column, raw in _PARTS.decode(key).items()}
    except MALFORMED as error:
        raise DecodeError(f"not a record key: {error}", hint=_HINT) from error
    if not parts:
        raise DecodeError("a record's key has no columns", hint=_HINT)
    return parts


def _part(raw: bytes) -> tuple[str, bool]:
    quoted = raw[:1] == b'"'
    return (msgspec.json.decode(raw, type=str) if quoted else raw.decode()), quoted


@dataclass(frozen=True)
class Template:
    """A parsed key template: literals and columns by turns, `literals` one longer than `columns`."""

    text: str
    literals: tuple[str, ...]
    columns: tuple[str, ...]

    @property
    def prefix(self) -> str:
        """What every key of the table begins with."""
        return self.literals[0]

    @property
    def index_prefix(self) -> str:
        """A user's recency index is this and the encoded user."""
        return f"{self.prefix.rstrip(':{')}:{INDEX}:"

    @property
    def glob(self) -> str:
        """SCAN's MATCH pattern: matches every key of the table, and perhaps others."""
        return "*".join(re.sub(r"([*?\[\]\\])", r"\\\1", literal) for literal in self.literals)

    @property
    def index_glob(self) -> str:
        """SCAN's MATCH pattern of the recency indexes."""
        return re.sub(r"([*?\[\]\\])", r"\\\1", self.index_prefix) + "*"

    @property
    def lua(self) -> str:
        """Lua pattern that only keys of this template match."""
        literals = (re.sub(r"([^A-Za-z0-9_])", r"%\1", literal) for literal in self.literals)
        return "^" + "[^:{}]*".join(literals) + "$"

    def render(self, values: Mapping[str, str]) -> str:
        """The key of a record; `values` by column, not encoded."""
        parts = [self.literals[0]]
        for column, literal in zip(self.columns, self.literals[1:], strict=True):
            parts += (encode_value(values[column]), literal)
        return "".join(parts)

    def values(self, key: str) -> dict[str, str]:
        """The inverse of `render`; raises DecodeError for a key of another template."""
        found = re.fullmatch("([^:{}]*)".join(map(re.escape, self.literals)), key)
        if found is None:
            raise DecodeError(f"a key is not of the template {self.text!r}")
        return {column: decode_value(text) for column, text in zip(self.columns, found.groups(), strict=True)}

    def patterns(self, *, indexed: bool) -> list[str]:
        """Record and index keys with values blanked, to compare with other tables'."""
        return [_FIELD.join(self.literals), *([self.index_prefix + _FIELD] if indexed else [])]


def unify(left: str, right: str) -> bool:
    """Whether two patterns can yield one key; values hold no ':', so segment by segment. Errs on the safe side."""
    ours, theirs = left.split(":"), right.split(":")
    return len(ours) == len(theirs) and all(map(_segments_unify, ours, theirs))


def _segments_unify(left: str, right: str) -> bool:
    if _FIELD not in left and _FIELD not in right:
        return left == right
    if {left, right} == {_FIELD, INDEX}:
        return False  # encode_value never yields it
    for literal, pattern in ((left, right), (right, left)):
        if _FIELD not in literal:
            return re.fullmatch(".*".join(map(re.escape, pattern.split(_FIELD))), literal) is not None
    (head, *_, tail), (other_head, *_, other_tail) = left.split(_FIELD), right.split(_FIELD)
    heads = head.startswith(other_head) or other_head.startswith(head)
    return heads and (tail.endswith(other_tail) or other_tail.endswith(tail))


def parse_template(config: Config, schema: str, table: str, key_columns: tuple[str, ...]) -> Template:
    """The table's template, checked against its key columns; raises ConfigError."""
    default = f"{table}:" + ":".join(f"{{{column}}}" for column in key_columns)
    text = config.table(schema, table).redis_key or default
    where = f'tables."{schema}.{table}".redis_key = {text!r}'
    template = _parse(text, where) if text != default else _default(table, text, key_columns)
    if set(template.columns) != set(key_columns) or len(template.columns) != len(key_columns):
        raise ConfigError(
            f"{where} has to name each key column once: {', '.join(key_columns)}",
            hint=f"for instance {default!r}; `{{{{` stands for a brace",
        )
    if any(not set(":{}") & set(literal) for literal in template.literals[1:-1]):
        raise ConfigError(f"{where} leaves two columns without a ':' between them", hint="put ':' between them")
    namespace, prefix = config.redis.namespace, template.prefix
    if not prefix or prefix.startswith(namespace) or namespace.startswith(prefix):
        raise ConfigError(
            f"{where} could meet our own keys, which begin with {namespace!r}",
            hint="begin the template with a word of its own, e.g. the table's name",
        )
    return template


def template_columns(config: Config, schema: str, table: str) -> frozenset[str] | None:
    """Which columns the table's `redis_key` names; None when there is none. Raises ConfigError."""
    text = config.table(schema, table).redis_key
    return frozenset(_parse(text, f'tables."{schema}.{table}".redis_key = {text!r}').columns) if text else None


def _default(table: str, text: str, key_columns: tuple[str, ...]) -> Template:
    """Column names may hold any character, so the default does not go through the parser."""
    return Template(text, (f"{table}:", *(":" for _ in key_columns[1:]), ""), key_columns)


def _parse(text: str, where: str) -> Template:
    literals, columns, literal = [], [], ""
    try:
        for before, field, spec, conversion in Formatter().parse(text):
            literal += before
            if field is None:
                continue
            if not field or spec or conversion:
                raise ValueError("only plain {column} is allowed")
            literals.append(literal)
            columns.append(field)
            literal = ""
    except ValueError as error:
        raise ConfigError(f"{where} is no template: {error}", hint="write it like 'memory:{id}'") from error
    return Template(text, (*literals, literal), tuple(columns))


def keys_for(config: Config, schema: str, table: str, key: bytes) -> str:
    """The Redis key of the record with this topic key, as a person types it. Raises ConfigError, DecodeError."""
    parts = decode_parts(key)
    template = parse_template(config, schema, table, tuple(parts))
    return template.render({column: text for column, (text, _) in parts.items()})
