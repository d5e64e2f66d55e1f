"""The statements by which a table, or a part of it, is read along its key: a span at a time."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import NamedTuple

from psycopg import sql

from cdc.source.events import Table


@dataclass(slots=True)
class Span:
    """A part of the key's range, `(after, upto]`, as text; None is open."""

    after: list[str] | None
    upto: list[str] | None
    number: int


class Selection(NamedTuple):
    """Which rows: those with one of the keys (texts of the key's columns), those that meet the condition, or all."""

    keys: Sequence[Sequence[str]] = ()
    condition: str | None = None


class Spans:
    """Of one table. `columns` are what is selected."""

    def __init__(self, table: Table, columns: Sequence[sql.Composable], selection: Selection) -> None:
        self._table, self._selection = table, selection
        self._keys = [table.columns[i] for i in table.key]
        self._names = [sql.Identifier(column.name) for column in self._keys]
        self._select = sql.SQL(", ").join(columns)
        # qualified: a bare name would mean the output column of that name, maybe text, and sort 10 < 9
        self._order = sql.SQL(", ").join(sql.Identifier(table.schema, table.name, c.name) for c in self._keys)
        self.source = sql.Identifier(table.schema, table.name)
        self._chosen = self._choice()

    def bound(self, after: list[str] | None, limit: int) -> sql.Composed:
        """Texts of the key `limit` rows further on; no row when the table ends before."""
        texts = sql.SQL(", ").join(sql.SQL("{}::text").format(name) for name in self._names)
        return sql.SQL("SELECT {} FROM {} WHERE {} ORDER BY {} OFFSET {} LIMIT 1").format(
            texts, self.source, self._where(Span(after, None, 0)), self._order, sql.Literal(limit - 1)
        )

    def rows(self, span: Span, limit: int) -> sql.Composed:
        """The first rows of a span, by COPY."""
        return sql.SQL("COPY (SELECT {} FROM {} WHERE {} ORDER BY {} LIMIT {}) TO STDOUT").format(
            self._select, self.source, self._where(span), self._order, sql.Literal(limit)
        )

    def wanted(self) -> sql.Composed:
        """The keys asked for, as the key's types write them."""
        names = sql.SQL(", ").join(self._names)
        return sql.SQL("SELECT k.* FROM {} k({})").format(self._values(), names)

    def absent(self) -> sql.Composed:
        """Keys asked for that no row has, to the letter: one that is equal but written in another way is another key to
        the stores."""
        same = sql.SQL(" AND ").join(
            sql.SQL("t.{0} = k.{0} AND t.{0}::text = k.{0}::text").format(name) for name in self._names
        )
        return sql.SQL("SELECT k.* FROM {} k({}) WHERE NOT EXISTS (SELECT FROM {} t WHERE {})").format(
            self._values(), sql.SQL(", ").join(self._names), self.source, same
        )

    def _where(self, span: Span) -> sql.Composable:
        row = sql.SQL("({})").format(sql.SQL(", ").join(self._names))
        parts = [self._chosen]
        for operator, key in ((sql.SQL(">"), span.after), (sql.SQL("<="), span.upto)):
            if key is not None:
                parts.append(sql.SQL("{} {} {}").format(row, operator, self._key(key)))
        return sql.SQL(" AND ").join(parts)

    def _choice(self) -> sql.Composable:
        keys, condition = self._selection
        if keys:
            row = sql.SQL("({})").format(sql.SQL(", ").join(self._names))
            return sql.SQL("{} IN {}").format(row, self._values())
        return sql.SQL("true") if condition is None else bracketed(condition)

    def _values(self) -> sql.Composable:
        return sql.SQL("(VALUES {})").format(sql.SQL(", ").join(map(self._key, self._selection.keys)))

    def _key(self, texts: Sequence[str]) -> sql.Composable:
        values = (
            sql.SQL("{}::{}").format(sql.Literal(text), sql.SQL(column.type_name))
            for text, column in zip(texts, self._keys, strict=True)
        )
        return sql.SQL("({})").format(sql.SQL(", ").join(values))


def bracketed(condition: str) -> sql.Composable:
    """A condition among others; a comment at its end ends with its line."""
    return sql.SQL("(\n{}\n)").format(sql.SQL(condition))
