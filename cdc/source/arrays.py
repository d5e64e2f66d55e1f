"""Array literals: PostgreSQL's text output of an array → JSON array.

Strict about array_out's form (PostgreSQL manual, "Arrays: Array Input and Output Syntax"): elements with special
characters are quoted, a bare NULL is null, lower bounds other than 1 come first as `[2:3]=`. The bounds do not travel:
JSON arrays have none (docs/types.md). Raises DecodeError with the byte offset.
"""

from __future__ import annotations

import re

from cdc.errors import DecodeError
from cdc.source.events import NULL, Codec

_BOUNDS = re.compile(rb"(?:\[[+-]?\d+:[+-]?\d+\])+=")
_QUOTED = re.compile(rb'"((?:[^"\\]|\\.)*)"', re.DOTALL)
_ESCAPE = re.compile(rb"\\(.)", re.DOTALL)
_DEPTH = 6  # MAXDIM of PostgreSQL
_OPEN, _CLOSE, _QUOTE = b'{}"'


def body(text: bytes) -> bytes:
    """The literal without its lower bounds."""
    bounds = _BOUNDS.match(text) if text[:1] == b"[" else None
    return text[bounds.end() :] if bounds else text


def array_codec(element: Codec, delimiter: bytes = b",") -> Codec:
    """Codec of an array whose elements `element` encodes; `delimiter` is pg_type.typdelim (`;` for box)."""
    bare = re.compile(rb'[^{}"\\' + re.escape(delimiter) + rb"]+")
    special = re.compile(rb'["\\{}]')

    def encode(text: bytes) -> bytes:
        literal = body(text)
        if literal[:1] != b"{" or literal[-1:] != b"}" or len(literal) < 2:
            raise _malformed(0)
        inner = literal[1:-1]
        if not inner:
            return b"[]"
        if special.search(inner) is None:  # one dimension, nothing quoted: the usual case
            parts = inner.split(delimiter)
            if b"" in parts:
                raise _malformed(0)
            return b"[" + b",".join([NULL if part == b"NULL" else element(part) for part in parts]) + b"]"
        return _Parser(literal, element, delimiter, bare).parse()

    return encode


class _Parser:
    """Recursive descent over one literal; the depth is bounded as PostgreSQL bounds it."""

    def __init__(self, text: bytes, element: Codec, delimiter: bytes, bare: re.Pattern[bytes]) -> None:
        self.text, self.element, self.delimiter, self.bare = text, element, delimiter, bare
        self.at = 0

    def parse(self) -> bytes:
        """The whole literal; nothing may follow it."""
        fragment = self._array(1)
        if self.at != len(self.text):
            raise _malformed(self.at)
        return fragment

    def _array(self, depth: int) -> bytes:
        if depth > _DEPTH:
            raise _malformed(self.at)
        self.at += 1
        items = [self._item(depth)]
        while self._next() == self.delimiter[0]:
            self.at += 1
            items.append(self._item(depth))
        if self._next() != _CLOSE:
            raise _malformed(self.at)
        self.at += 1
        return b"[" + b",".join(items) + b"]"

    def _item(self, depth: int) -> bytes:
        start = self._next()
        if start == _OPEN:
            return self._array(depth + 1)
        match = (_QUOTED if start == _QUOTE else self.bare).match(self.text, self.at)
        if match is None:
            raise _malformed(self.at)
        self.at = match.end()
        if start == _QUOTE:
            return self.element(_ESCAPE.sub(rb"\1", match[1]))
        return NULL if match[0] == b"NULL" else self.element(match[0])

    def _next(self) -> int:
        return self.text[self.at] if self.at < len(self.text) else -1


def _malformed(offset: int) -> DecodeError:
    return DecodeError(
        f"an array literal is malformed at byte {offset}", hint="pin the session's settings (docs/types.md)"
    )
